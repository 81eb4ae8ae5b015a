"""`headway bridge`: a map between two backbones' features, fitted on recordings of the population."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from exporters import bundle as bundles
from exporters.bridge import bridge, in_words
from models.data.recordings import load_folder

console = Console(stderr=True)


def run_bridge(old: Path, new: Path, data: Path, models: Path | None, subjects: str) -> str:
    """Fit a bridge, write the newer bundle with it, and say what it is worth."""
    folder = models or bundles.resolve(new).parent.parent
    with console.status("reading recordings") as status:
        people = load_folder(data, subjects)
        path, fitted = bridge(old, new, people, folder, lambda text: status.update(text))
    return f"{in_words(fitted.parity)}\nwritten to {path}"
