"""Tables of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from exporters import bundle as bundles

HEADINGS = ("model", "ver", "task", "input", "labels", "feat.", "kind", "MiB", "created", "ok")
"""Of bundles; `labels` are targets where the task is a regression, with `+` where users may add their own."""


def recordings_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """One line a file of recordings, with how many problems it has; it fits into 80 columns."""
    shown = {
        "file": "file", "modality": "kind", "channels": "ch", "fs": "Hz", "labels": "labels", "repetitions": "reps",
        "sessions": "sessions", "recordings": "recs", "seconds": "s", "problems": "problems",
    }  # fmt: skip
    table = Table(box=None, pad_edge=False)
    for key, heading in shown.items():
        table.add_column(heading, justify="left" if key in ("file", "modality") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_text(round(row[k]) if k == "seconds" and row.get(k) else row.get(k)) for k in shown))
    return table


def counted(number: int, noun: str) -> str:
    """Return a number of things in words: `1 window`, `5 windows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple | dict | set):
        return str(len(value))
    return str(value)


def bundles_table(models: Path, found: Mapping[str, list[int]]) -> Table:
    """One line a version, with what it takes and whether it verifies; it fits into 80 columns."""
    table = Table(box=None, pad_edge=False, collapse_padding=True, padding=(0, 1))
    for heading in HEADINGS:
        right = heading in ("ver", "labels", "feat.", "MiB")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for name, versions in found.items():
        for version in versions:
            path = models / name / str(version)
            try:
                m = bundles.load(path).manifest
            except bundles.BundleError as e:
                table.add_row(name, str(version), *[""] * 7, str(e))
                continue
            size = sum(entry.bytes for entry in m.files.values()) / 2**20
            shape = "×".join("…" if n < 0 else str(n) for n in m.input.window_shape)
            kinds = [m.of_output(output) for output in m.names] or [m]
            rows = " + ".join(f"{len(k.head_rows)}{'+' if k.user_labels else ''}" for k in kinds)
            tasks = " + ".join(dict.fromkeys(k.task for k in kinds))
            kind = (tasks, shape, rows, str(m.feature_dim), m.precision, f"{size:.1f}", m.created[:10] or "–", "yes")
            table.add_row(name, str(version), *kind)
    return table
