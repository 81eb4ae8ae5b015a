"""`headway train --backbone …`: images, sounds or texts to a finished run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from models.data.collections import Collection, load_collection
from models.training.config import TrainingError
from models.training.fine_tuning import fine_tune
from models.training.linear_probe import LinearProbeConfig, train_probe
from models.training.loop import Tick
from models.training.media_run import MediaRun
from models.training.runners import Where
from models.training.tuned import TUNED, TuneConfig
from service.commands.configured import configured
from service.commands.progress import stages
from service.commands.tables import counted

console = Console()
PROBES = ("linear-probe", "cached-features")


def media_recipes() -> tuple[str, ...]:
    """Names of the recipes for images, texts and sounds."""
    return (*PROBES, *TUNED)


def run_probe(
    data: Path,
    out: Path,
    *,
    column: str | None = None,
    recipe: str | None,
    backbone: str | None,
    personal: int,
    cache: Path | None,
    steps: int | None,
    settings: Sequence[str],
    resume: bool,
    seed: int,
    where: Where,
    command: str,
) -> MediaRun:
    """Train by a recipe, and say what was left out would get.

    Raises:
        TrainingError: no backbone is named, or a recipe that is not for these data.
    """
    usual = "linear-probe" if (backbone or "").startswith("onnx:") else "lp-ft"  # whose graph cannot learn
    recipe = recipe or usual
    if backbone is None:
        raise TrainingError(f"The recipe {recipe} needs --backbone, as 'package:efficientnet-lite0'.")
    if recipe not in media_recipes():
        raise TrainingError(
            f"With --backbone the recipe is one of {', '.join(media_recipes())}; '{recipe}' is for recordings."
        )
    given = {"backbone": backbone, "personal": personal, "seed": seed, **({"steps": steps} if steps else {})}
    train = _trainer(recipe, out, given, settings, cache, resume, where, command)
    collection = load_collection(data, seed, column)
    people = f"{len(collection.users)} users" if collection.users else "no users"
    console.print(f"{len(collection)} {collection.kind}s, {len(collection.labels)} labels, {people}", highlight=False)
    with stages(console) as tick:
        run = train(collection, tick)
    zero = run.evaluation["zero_shot"]
    computed = run.provenance.get("features_computed")
    console.print(
        f"left out: generic head {zero['mean']:.1%} (worst of {zero['of']} {zero['worst']:.1%})"
        + (f"; {computed} of {len(collection)} features computed" if computed is not None else ""),
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


def _trainer(
    recipe: str,
    out: Path,
    given: dict[str, Any],
    settings: Sequence[str],
    cache: Path | None,
    resume: bool,
    where: Where,
    command: str,
) -> Callable[[Collection, Tick], MediaRun]:
    """What trains by the recipe; its settings are checked here, before any data are read."""
    if recipe in TUNED:
        tuned = configured(TuneConfig, {**given, "recipe": recipe}, settings)
        return lambda collection, tick: fine_tune(
            collection, tuned, out, cache=cache, progress=tick, resume=resume, command=command, where=where
        )
    if resume:
        raise TrainingError(f"{recipe} has nothing to resume: what is in --cache is not computed again.")
    probe = configured(LinearProbeConfig, {**given, "recipe": recipe}, settings)
    return lambda collection, tick: train_probe(collection, probe, out, cache=cache, progress=tick, command=command)
