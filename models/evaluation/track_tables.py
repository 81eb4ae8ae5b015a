"""Tables of the causal and the batch track, as Markdown and JSON, and their line in the log of runs."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from models.evaluation.tracks import HARM, Cell, TrackTable

__all__ = ["log_track", "to_json", "to_markdown"]


def to_markdown(table: TrackTable) -> str:
    """Write a track as Markdown: one table a kind of stream, methods by conditions, and what the guard decided."""
    made = table.made_of
    lines = [
        f"Protocol `{table.protocol}`, {table.track} track; draws by seed {table.seed}"
        + (f"; heads fitted anew every {table.every} windows" if table.track == "causal" else "")
        + f". Model `{made.get('model')}`, configuration `{made.get('configuration')}`.",
        f"Command: `{made.get('command')}` ({made.get('seconds')} s).",
        "",
        "Window accuracy, %, mean over users; in brackets the mean gain over the calibrated head, the least gain of "
        f"any user, of any single draw, and how many users lost more than {100 * HARM:g} points.",
    ]
    for stream, methods in table.runs.items():
        conditions = list(next(iter(methods.values())))
        lines += ["", f"**{stream}**", "", f"| method | {' | '.join(conditions)} |", f"|--|{'--|' * len(conditions)}"]
        for method in methods:
            cells = [_cell(table.cell(stream, method, c)) for c in conditions]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        decided = table.outcomes.get(stream, {})
        said = (", ".join(f"{n} {what}" for what, n in decided.get(c, {}).items()) for c in conditions)
        lines.append(f"| guard, at the end | {' | '.join(said)} |")
    return "\n".join(lines) + "\n"


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    text = f"{100 * cell.accuracy:.2f} ± {100 * cell.sd:.1f}"
    if not (cell.gain or cell.worst_draw):
        return text
    gains = " / ".join(f"{100 * g:+.2f}" for g in (cell.gain, cell.worst_gain, cell.worst_draw))
    return f"{text} ({gains}; {len(cell.harmed)})"


def to_json(table: TrackTable) -> str:
    """Write every draw of every user, and the summaries, as JSON."""
    cells = {
        stream: {m: {c: asdict(cell) for c in row if (cell := table.cell(stream, m, c))} for m, row in methods.items()}
        for stream, methods in table.runs.items()
    }
    return json.dumps({**asdict(table), "table": cells}, indent=1)


def log_track(path: Path, table: TrackTable) -> int:
    """Append a track's run to a log (one JSON object a line) and return how many it holds."""
    entry = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "protocol": table.protocol,
        "track": table.track,
        **{k: table.made_of.get(k) for k in ("model", "configuration", "command")},
        "accuracy": {
            stream: {
                m: {c: round(100 * cell.accuracy, 2) for c in row if (cell := table.cell(stream, m, c))}
                for m, row in methods.items()
            }
            for stream, methods in table.runs.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as f:
        f.write(json.dumps(entry) + "\n")
        f.flush()
        os.fsync(f.fileno())
    return len(path.read_text().splitlines())
