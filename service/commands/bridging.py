"""`headway bridge`: a map between two backbones' features, fitted on recordings of the population."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from exporters import bundle as bundles
from exporters.bridge import FEWEST_PEOPLE, BridgeError, Data, Rows, bridge_outputs, in_words
from exporters.bundle import Bundle
from models.data.recordings import load_folder
from service.commands.judging import located, together

console = Console(stderr=True)


def run_bridge(old: Path, new: Path, data: Sequence[str], models: Path | None, subjects: str) -> str:
    """Fit a bridge for each output that there are data for, write the newer bundle, and say what they are worth."""
    after = bundles.resolve(new)
    with console.status("reading recordings") as status:
        where = located(bundles.read_manifest(after)[0], data)
        bundle = bundles.load(after)
        people: dict[str, Data] = {name: _people(bundle, name, path, subjects) for name, path in where.items()}
        path, found = bridge_outputs(old, new, people, models or after.parent.parent, lambda text: status.update(text))
    told = [
        f"{f'{name}: ' if name else ''}{in_words(fitted.parity)}"
        + ("" if fitted.parity.passes else "; not good enough, left out")
        for name, fitted in found.items()
    ]
    return "\n".join((*told, f"written to {path}"))


def _people(bundle: Bundle, output: str, data: Path, subjects: str) -> Data:
    """Everybody's recordings, or rows for a fused model.

    Raises:
        BridgeError: the data name too few users, so that nobody could be left out.
    """
    manifest = bundle.manifest.of_output(output) if output else bundle.manifest
    if not manifest.input.parts:
        return load_folder(data, subjects)
    found = together(manifest, bundle.file, data, subjects)
    if found.people < FEWEST_PEOPLE:
        raise BridgeError(
            f"{data} has rows of {found.people} people or users; a bridge is judged by leaving each of "
            f"{FEWEST_PEOPLE} or more out (a column user names them)"
        )
    own = [np.flatnonzero(found.user == u) for u in np.unique(found.user)]
    y, x = np.asarray(found.y, np.int64), np.asarray(found.x, np.float32)
    return [Rows(str(found.user[i[0]]), x[i], y[i], found.repetition[i]) for i in own]
