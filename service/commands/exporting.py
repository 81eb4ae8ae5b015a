"""`headway export --latency-ms`: the most accurate variant of a run inside a bound, and the table of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from exporters.card import inputs_of
from exporters.export import Draft
from exporters.variants import Bound, Variant, export_within
from exporters.worth import Labelled
from service.commands.judging import judges, located


def run_export_within(
    draft: Draft, models: Path, bound: Bound, *, data: Sequence[str], held_out: str, console: Console
) -> Path:
    """Judge, time and choose; prints the table and returns the bundle's folder.

    Raises:
        ExportError: no variant is inside the bound.
        PrecisionError: the data cannot judge the model.
    """
    found, trained_on = dict[str, Labelled](), None
    if data:
        where = located(draft.manifest, data, together=True)
        found, trained_on = judges(draft.manifest, draft.files.__getitem__, where, held_out, seed=0)
    path, rows = export_within(draft, models, bound, found, trained_on=trained_on)
    by = f"the run's {len(draft.inputs)} inputs"
    if found:
        by = "; ".join(_people(name, labelled) for name, labelled in found.items())
    console.print(_table(rows, bound, by))
    timing = next(row.timing for row in rows if row.verdict == "taken")
    if timing is not None and timing.batch.p95 > bound.milliseconds:
        console.print(
            f"the median keeps the bound, but one call in twenty took {timing.batch.p95:.2f} ms or more: "
            "the bound is too near, or this machine had other work",
            highlight=False,
        )
    return path


def _people(output: str, judged: Labelled) -> str:
    told = inputs_of(len(judged.y), judged.people)
    return f"{output}: {told}" if output else told


def _table(rows: list[Variant], bound: Bound, by: str) -> Table:
    table = Table(title=f"{bound.device}, a batch of {bound.batch}; judged on {by}", title_justify="left")
    judged = any(row.accuracy is not None for row in rows)
    names = list(next(row.agreement.outputs for row in rows if row.agreement is not None))
    several = [name or "values" for name in names] or ["right" if judged else "as fp32"]
    for heading in ("variant", "MB", "ms", "95 %", "of fp32", "cosine", *several, ""):
        table.add_column(heading)
    for row in rows:
        timing, found = row.timing, row.agreement
        times = ["–"] * 3
        if timing is not None:
            times = [f"{timing.batch.median:.2f}", f"{timing.batch.p95:.2f}", f"{row.ratio:.2f}"]
        right = [str(row.accuracy) if judged and row.accuracy is not None else "–"]
        if not judged and found is not None:
            right = [f"{found.decisions:.1%}"]
        if names:
            right = [_worth(row, name) for name in names]
        table.add_row(
            row.name,
            f"{row.bytes / 1e6:.1f}" if row.bytes else "–",
            *times,
            "–" if found is None else f"{found.min_cosine:.4f}",
            *right,
            row.verdict,
        )
    return table


def _worth(row: Variant, output: str) -> str:
    """What an output is worth in a variant, or how much of what it says is as in FP32."""
    if row.agreement is None:
        return "–"
    return str(row.outputs.get(output, f"{row.agreement.outputs[output].kept:.1%} as fp32"))
