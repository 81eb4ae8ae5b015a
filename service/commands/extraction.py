"""`headway extract`: features of a folder or table into one file."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from models.data.collections import load_collection
from models.training.config import TrainingError
from models.training.extract import Source, extract, write_features
from models.training.runners import OnRay, Serial
from service.commands.progress import stages

console = Console()


def run_extract(
    data: Path,
    out: Path,
    *,
    model: Path | None,
    backbone: str | None,
    ray: bool,
    ray_address: str | None,
    command: str,
) -> None:
    """Compute features of everything in `data` and write them to `out`.

    Raises:
        TrainingError: neither or both of a bundle and a backbone are named, or the data do not fit.
    """
    if (model is None) is (backbone is None):
        raise TrainingError("Give either --model, a bundle, or --backbone, the name of an encoder.")
    if out.suffix != ".npz":
        raise TrainingError(f"--out {out}: a file name that ends in .npz was expected.")
    source, collection = Source(model, backbone), load_collection(data)
    runner = OnRay(ray_address) if ray or ray_address else Serial()
    with stages(console) as tick:
        features = extract(source, collection, runner, tick)
    write_features(out, features, source, collection, command)
    console.print(f"{features.shape[0]} items, {features.shape[1]} features each: written to {out}", highlight=False)
