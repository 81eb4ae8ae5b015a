"""`headway train --backbone …`: images, sounds or texts to a finished run."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from models.data.collections import load_collection
from models.training.config import TrainingError
from models.training.linear_probe import LinearProbeConfig, train_probe
from models.training.media_run import MediaRun
from service.commands.progress import stages
from service.commands.tables import counted

console = Console()


def run_probe(
    data: Path,
    out: Path,
    *,
    recipe: str | None,
    backbone: str | None,
    personal: int,
    cache: Path | None,
    seed: int,
    command: str,
) -> MediaRun:
    """Fit a probe and a prior, and say what was left out would get.

    Raises:
        TrainingError: no backbone is named, or another recipe.
    """
    if backbone is None:
        raise TrainingError("The recipe linear-probe needs --backbone, as 'package:efficientnet-lite0'.")
    if recipe not in (None, "linear-probe"):
        raise TrainingError(f"With --backbone the recipe is linear-probe; '{recipe}' is for recordings.")
    collection = load_collection(data, seed)
    people = f"{len(collection.users)} users" if collection.users else "no users"
    console.print(f"{len(collection)} {collection.kind}s, {len(collection.labels)} labels, {people}", highlight=False)
    with stages(console) as tick:
        run = train_probe(
            collection,
            LinearProbeConfig(backbone=backbone, personal=personal, seed=seed),
            out,
            cache=cache,
            progress=tick,
            command=command,
        )
    zero = run.evaluation["zero_shot"]
    console.print(
        f"left out: generic head {zero['mean']:.1%} (worst of {zero['of']} {zero['worst']:.1%}); "
        f"{run.provenance['features_computed']} of {len(collection)} features computed",
        highlight=False,
    )
    if run.prior.hyper.pooled:
        console.print("fewer than 3 users: the prior is pooled, and the guard has no record to go by", highlight=False)
    for e in run.prior.hyper.evidence:
        console.print(
            f"  personal head from {counted(e.windows, 'example')} a label ({counted(e.repetitions, 'repetition')}): "
            f"{e.gain:+.1%} over generic, worst user {e.floor:.1%}",
            highlight=False,
        )
    console.print(f"written to {out}; next: headway export {out} --models bundles", highlight=False)
    return run
