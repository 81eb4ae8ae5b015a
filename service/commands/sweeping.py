"""`headway sweep`: a recipe with many settings, and which did best."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from models.training.config import TrainConfig, TrainingError
from models.training.held_out import Asked
from models.training.linear_probe import LinearProbeConfig
from models.training.runners import Where
from models.training.sweep import RESULTS, Config, Study, Trial, sweep
from models.training.sweep_space import settings_of, space_of
from models.training.tuned import TUNED, TuneConfig
from service.commands.configured import configured
from service.commands.probing import media_recipes
from service.commands.progress import stages

console = Console()


def run_sweep(
    data: Path,
    out: Path,
    *,
    subjects: str,
    held_out: str | None,
    recipe: str | None,
    backbone: str | None,
    cache: Path | None,
    settings: Sequence[str],
    vary: Sequence[str],
    trials: int | None,
    by: str,
    quick: bool,
    resume: bool,
    seed: int,
    where: Where,
    command: str,
) -> None:
    """Train every trial, and print the table.

    Raises:
        TrainingError: settings that the recipe does not have, a folder in use, or no trial came to its end.
    """
    config = _config(recipe, backbone, settings, quick=quick, seed=seed)
    tried = settings_of(space_of(type(config), vary, settings), trials, seed)
    console.print(f"{len(tried)} trials of {config.recipe}", highlight=False)
    study = Study(data, config, subjects, cache, where, command, held_out)
    with stages(console) as tick:
        swept = sweep(study, tried, out, by=by, resume=resume, progress=tick)
    found = swept.trials
    console.print(_table(found))
    for trial in found:
        if trial.error is not None:
            console.print(f"trial {trial.number} failed: {trial.error}", highlight=False, markup=False, soft_wrap=True)
    best = found[0]
    if best.figures[by] is None:
        raise TrainingError(f"No trial has a figure '{by}'; {out / RESULTS} says why.")
    console.print(
        f"trial {best.number} is the best of {len(found)} by {by}, on people or items that its own networks left out; "
        f"chosen by that figure among so many, it will do a little worse on others{_told(swept.held_out)}\n"
        f"written to {out / RESULTS}; next: headway export {shlex.quote(str(out / best.folder))} --models bundles "
        f"--name {shlex.quote(out.name)}",
        highlight=False,
        soft_wrap=True,
    )


def _config(recipe: str | None, backbone: str | None, settings: Sequence[str], *, quick: bool, seed: int) -> Config:
    """Settings of the recipe before any of them varies."""
    if backbone is None and recipe not in media_recipes():
        few = TrainConfig.QUICK if quick else {}
        return configured(TrainConfig, {**few, "recipe": recipe or "episodic", "seed": seed}, settings)
    recipe = recipe or ("linear-probe" if str(backbone).startswith("onnx:") else "lp-ft")
    if backbone is None:
        raise TrainingError(f"The recipe {recipe} needs --backbone, as 'package:efficientnet-lite0'.")
    given = {"backbone": backbone, "recipe": recipe, "seed": seed}
    if recipe in TUNED:
        return configured(TuneConfig, given, settings)
    return configured(LinearProbeConfig, given, settings)


def _told(asked: Asked | None) -> str:
    if asked is None:
        return ": ask some who were in no trial (--held-out)"
    share = f"{asked['shared']:.1%} (worst {asked['worst']:.1%})"
    return f"; of people who were in no trial ({asked['people']:g}) the shared head has {share}"


def _table(found: Sequence[Trial]) -> Table:
    names = list(found[0].settings)
    table = Table("trial", *names, "shared head", "worst user", "personal heads")
    for trial in found:
        values = [f"{v:g}" if isinstance(v, float) else str(v) for v in trial.settings.values()]
        figures = ["failed" if trial.error else "–" if f is None else f"{f:.1%}" for f in trial.figures.values()]
        table.add_row(str(trial.number), *values, *figures)
    return table
