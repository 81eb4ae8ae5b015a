"""`headway bridge`: a map between two backbones' features, fitted on recordings of the population."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from exporters import bundle as bundles
from exporters.bridge import bridge_outputs, in_words
from models.data.recordings import load_folder
from service.commands.judging import located

console = Console(stderr=True)


def run_bridge(old: Path, new: Path, data: Sequence[str], models: Path | None, subjects: str) -> str:
    """Fit a bridge for each output that there are data for, write the newer bundle, and say what they are worth."""
    after = bundles.resolve(new)
    with console.status("reading recordings") as status:
        where = located(bundles.read_manifest(after)[0], data)
        people = {name: load_folder(folder, subjects) for name, folder in where.items()}
        path, found = bridge_outputs(old, new, people, models or after.parent.parent, lambda text: status.update(text))
    told = [
        f"{f'{name}: ' if name else ''}{in_words(fitted.parity)}"
        + ("" if fitted.parity.passes else "; not good enough, left out")
        for name, fitted in found.items()
    ]
    return "\n".join((*told, f"written to {path}"))
