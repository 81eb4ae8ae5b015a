"""Evaluations as Markdown and as tables of the terminal."""

from __future__ import annotations

from rich.table import Table

from models.evaluation.run import GENERIC, PERSONAL, ZERO_SHOT, Evaluation
from models.evaluation.scores import Summary


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return "–"
    return f"{100 * summary.mean.accuracy:.2f} ± {100 * summary.sd:.1f}"


def to_markdown(evaluation: Evaluation) -> str:
    """Write an evaluation as Markdown: accuracy by method and condition, then the personal head in detail."""
    made = evaluation.made_of
    users = evaluation.table[GENERIC][ZERO_SHOT].users
    lines = [
        f"Protocol `{evaluation.protocol}`, inductive track: {evaluation.description}.",
        f"{users} users, {evaluation.recordings_scored} recordings, {evaluation.windows_scored:,} windows scored. "
        f"Model `{made['model']}`, configuration `{made['configuration']}`.",
        f"Command: `{made['command']}` ({made['seconds']:.0f} s).",
        "",
        "Window accuracy, %, mean ± sd over users:",
        "",
        f"| method | {' | '.join(evaluation.conditions)} |",
        f"|--|{'--|' * len(evaluation.conditions)}",
    ]
    for method, row in evaluation.table.items():
        name = f"**{method}**" if method == PERSONAL else method
        lines.append(f"| {name} | {' | '.join(_cell(row.get(c)) for c in evaluation.conditions)} |")
    lines += ["", "The generic and the personal head in detail:", "", *_details(evaluation)]
    if evaluation.notes:
        lines += ["", "Not every user is in every column:", "", *(f"* {note}" for note in evaluation.notes)]
    return "\n".join(lines) + "\n"


def _details(evaluation: Evaluation) -> list[str]:
    lines = [
        f"| condition | accuracy | worst user | below generic | by > 1 point | voted ({evaluation.vote_ms:.0f} ms) "
        "| balanced | macro F1 | active error | rejected (p < 0.5) | accuracy of the rest "
        "| calibration error | guard |",
        f"|{'--|' * 13}",
    ]
    for condition in evaluation.conditions:
        method = GENERIC if condition == ZERO_SHOT else PERSONAL
        s = evaluation.table[method].get(condition)
        if s is None:
            continue
        m = s.mean
        guard = ", ".join(f"{n} {what}" for what, n in evaluation.outcomes.get(condition, {}).items())
        lines.append(
            f"| {condition} | {100 * m.accuracy:.2f} ± {100 * s.sd:.1f} | {100 * s.worst:.1f} ({s.worst_user}) "
            f"| {_names(s.harmed)} | {_names(s.harmed_by_a_point)} | {100 * m.voted:.2f} | {100 * m.balanced:.2f} "
            f"| {100 * m.macro_f1:.2f} | {100 * m.active_error:.2f} | {100 * m.rejected:.2f} | {100 * m.accepted:.2f} "
            f"| {100 * m.calibration_error:.2f} | {guard} |"
        )
    return lines


def _names(users: tuple[str, ...]) -> str:
    return f"{len(users)}: {', '.join(users)}" if users else "0"


def to_table(evaluation: Evaluation) -> Table:
    """Accuracy by method and condition, for the terminal; with all seven conditions it fits into 80 columns."""
    users = evaluation.table[GENERIC][ZERO_SHOT].users
    title = (
        f"window accuracy, %, mean over {users} users, and below it ± sd ({evaluation.recordings_scored} recordings)"
    )
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 1), collapse_padding=True, title_justify="left")
    table.add_column("method", overflow="fold", min_width=20)
    for condition in evaluation.conditions:
        table.add_column(condition, justify="right", min_width=5)
    for method, row in evaluation.table.items():
        style = "bold" if method == PERSONAL else None
        cells = (_cell(row.get(c)).replace(" ±", "\n±") for c in evaluation.conditions)
        table.add_row(method, *cells, style=style)
    return table
