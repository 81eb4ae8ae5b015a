"""Plots of a comparison: share of the raw limit and processor time a request, by server and load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot

Found = dict[tuple[Any, ...], dict[str, float]]


def draw(found: Found, out: Path) -> list[Path]:
    """Draw one picture a model, number of users and of rows from `report.medians`; returns the files."""
    files = []
    for model, users, rows in sorted({key[:3] for key in found}):
        batch = f"-batch{rows}" if rows > 1 else ""
        file = out.with_name(f"{out.name}-{model}-{users}{batch}.png")
        title = f"{model}, {users:,} user{'s' * (users > 1)}, {rows} window{'s' * (rows > 1)} a request"
        _picture({k[3:]: v for k, v in found.items() if k[:3] == (model, users, rows)}, title, file)
        files.append(file)
    return files


def _picture(found: Found, title: str, file: Path) -> None:
    loads = sorted({connections for _, connections, _ in found})
    best = {
        (server, c): max((v for (_, at, s), v in found.items() if (at, s) == (c, server)), key=lambda v: v["rate"])
        for _, c, server in found
    }
    servers = sorted({s for s, _ in best}, key=lambda s: -max(v["rate"] for (name, _), v in best.items() if name == s))
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5))
    for axis, field, label in ((axes[0], "share", "share of raw ONNX Runtime"), (axes[1], "cpu_us", "server CPU-µs")):
        for i, c in enumerate(loads):
            heights = [best[s, c][field] if (s, c) in best else 0.0 for s in servers]
            width = 0.8 / len(loads)
            axis.bar(
                [x + i * width for x in range(len(servers))], heights, width, label=f"{c} connection{'s' * (c > 1)}"
            )
        axis.set_xticks([x + 0.4 - 0.4 / len(loads) for x in range(len(servers))], servers, rotation=30, ha="right")
        axis.set_title(f"{label} a request" if field == "cpu_us" else label)
    axes[1].set_yscale("log")
    axes[0].legend()
    figure.suptitle(f"{title}, each server's best body")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
