"""Tables of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from exporters import bundle as bundles


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
    """One line a version, with what it takes and whether it verifies."""
    table = Table("model", "version", "input", "Hz", "labels or targets", "features", "MiB", "verified")
    for name, versions in found.items():
        for version in versions:
            path = models / name / str(version)
            try:
                m = bundles.load(path).manifest
            except bundles.BundleError as e:
                table.add_row(name, str(version), "", "", "", "", "", str(e))
                continue
            size = sum(entry.bytes for entry in m.files.values()) / 2**20
            shape = "×".join(map(str, m.input.window_shape))
            rate = f"{m.input.sample_rate:g}" if m.input.sample_rate else "–"
            rows = [len(m.of_output(output).head_rows) for output in m.names] or [len(m.head_rows)]
            row = (shape, rate, " + ".join(map(str, rows)), str(m.feature_dim), f"{size:.2f}", "yes")
            table.add_row(name, str(version), *row)
    return table
