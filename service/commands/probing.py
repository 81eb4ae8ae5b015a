"""`headway train --backbone …`: images, sounds or texts to a finished run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from models.data.asked import asks
from models.data.collections import Collection, load_collection
from models.data.tasks import load_tasks
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
Trainer = Callable[[Collection, Tick], MediaRun]
PROBES = ("linear-probe", "cached-features")


@dataclass(frozen=True)
class Plan:
    """How a run is asked for: its recipe, where it is written, what flags and `--set` say, and how it is made."""

    recipe: str
    out: Path
    given: dict[str, Any]
    settings: tuple[str, ...]
    cache: Path | None
    resume: bool
    where: Where
    command: str

    def check_frozen(self) -> None:
        """Raise `TrainingError` where a recipe without steps is asked to go on."""
        if self.resume:
            raise TrainingError(f"{self.recipe} has nothing to resume: what is in --cache is not computed again.")


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
    tasks: Sequence[str],
    resume: bool,
    seed: int,
    where: Where,
    command: str,
) -> None:
    """Train by a recipe for one label an item, or for `tasks`, and say what was left out would get.

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
    plan = Plan(recipe, out, given, tuple(settings), cache, resume, where, command)
    if tasks:
        from service.commands.several import run_tasks

        run_tasks(plan, load_tasks(data, asks(tasks), seed), console)
        return
    train = trainer(plan)
    run_labels(plan, train, load_collection(data, seed, column))


def run_labels(plan: Plan, train: Trainer, collection: Collection) -> None:
    """Train for one label an item."""
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
    console.print(f"written to {plan.out}; next: headway export {plan.out} --models bundles", highlight=False)


def trainer(plan: Plan) -> Trainer:
    """What trains by the recipe; its settings are checked here, before any data are read."""
    out, cache, command = plan.out, plan.cache, plan.command
    given = {**plan.given, "recipe": plan.recipe}
    if plan.recipe in TUNED:
        tuned = configured(TuneConfig, given, plan.settings)
        return lambda collection, tick: fine_tune(
            collection, tuned, out, cache=cache, progress=tick, resume=plan.resume, command=command, where=plan.where
        )
    plan.check_frozen()
    probe = configured(LinearProbeConfig, given, plan.settings)
    return lambda collection, tick: train_probe(
        collection, probe, out, cache=cache, progress=tick, command=command, where=plan.where
    )
