"""`headway bridge`: a map between two backbones' features, fitted on recordings of the population."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from exporters import bundle as bundles
from exporters.bridge import FEWEST_PEOPLE, BridgeError, Rows, bridge, in_words
from models.data.recordings import load_folder
from service.commands.judging import together

console = Console(stderr=True)


def run_bridge(old: Path, new: Path, data: Path, models: Path | None, subjects: str) -> str:
    """Fit a bridge, write the newer bundle with it, and say what it is worth."""
    folder = models or bundles.resolve(new).parent.parent
    with console.status("reading recordings") as status:
        people = _rows(new, data, subjects) or load_folder(data, subjects)
        path, fitted = bridge(old, new, people, folder, lambda text: status.update(text))
    return f"{in_words(fitted.parity)}\nwritten to {path}"


def _rows(model: Path, data: Path, subjects: str) -> list[Rows]:
    """Everybody's rows for a fused model; of others none.

    Raises:
        BridgeError: the data name no users, so that nobody could be left out.
    """
    bundle = bundles.load(bundles.resolve(model))
    if not bundle.manifest.input.parts:
        return []
    found = together(bundle.manifest, bundle.file, data, subjects)
    if found.people < FEWEST_PEOPLE:
        raise BridgeError(
            f"{data} has rows of {found.people} people or users; a bridge is judged by leaving each of "
            f"{FEWEST_PEOPLE} or more out (a column user names them)"
        )
    people = np.unique(found.user)
    return [Rows(str(u), *(part[found.user == u] for part in (found.x, found.y, found.repetition))) for u in people]
