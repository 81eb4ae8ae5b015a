"""A small table of pictures with two tasks: their colour, and how much of them is lit; some cells are empty."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from models.data.asked import asks
from models.data.tasks import Tasks, load_tasks
from tests.tiny_media import COLOURS

ASKED = ("colour", "lit")


def lit_picture(colour: str, part: float, rng: np.random.Generator) -> bytes:
    """A noisy picture of a colour, the upper part of it lit."""
    from PIL import Image

    pixels = rng.normal(0, 8, (40, 40, 3)) + np.array(COLOURS[colour])
    pixels[: round(40 * part)] += 50
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_table(
    folder: Path, count: int = 60, users: int = 4, missing: float = 0.3, own: float = 0.0, seed: int = 0
) -> Path:
    """`FOLDER/table.csv` with columns file, user (none for 0 of them), colour and lit [%], and the pictures.

    Users differ by `own` in what they call lit: each adds so much more than the one before, around 0.
    """
    rng, rows = np.random.default_rng(seed), []
    folder.mkdir(parents=True)
    for i in range(count):
        colour, part = list(COLOURS)[i % 3], float(rng.uniform(0, 1))
        (folder / f"{i}.png").write_bytes(lit_picture(colour, part, rng))
        said = 100 * part + own * (i // 3 % users - (users - 1) / 2) if users else 100 * part
        known = (rng.random(2) >= missing).tolist()
        row = {
            "file": f"{i}.png",
            "colour": colour if known[0] else "",
            "lit [%]": f"{said:.1f}" if known[1] else "",
        }
        rows.append(row | ({"user": f"user{i // 3 % users}"} if users else {}))
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "table.csv"


def tiny_tasks(folder: Path, *asked: str, **table: float) -> Tasks:
    """The table as it is read for `asked`, by default both tasks."""
    return load_tasks(write_table(folder, **table), asks(asked or ASKED))  # type: ignore[arg-type]
