"""Tables of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from exporters import bundle as bundles


def recordings_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """One line a file of recordings, with what is wrong with it."""
    table = Table(
        "file", "modality", "channels", "Hz", "labels", "repetitions", "sessions", "recordings", "s", "problems"
    )
    for row in rows:
        table.add_row(
            *(
                _text(row.get(key))
                for key in (
                    "file", "modality", "channels", "fs", "labels", "repetitions", "sessions", "recordings", "seconds",
                    "problems",
                )
            )
        )  # fmt: skip
    return table


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
    table = Table("model", "version", "input", "Hz", "labels", "features", "MiB", "verified")
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
            row = (shape, rate, str(len(m.labels)), str(m.feature_dim), f"{size:.2f}", "yes")
            table.add_row(name, str(version), *row)
    return table
