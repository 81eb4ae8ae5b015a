"""`headway sweep`: a recipe with many settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.interface.options import DataDir, Seed, Subjects, command_line

app = typer.Typer()


@app.command()
def sweep(
    data: DataDir,
    out: Annotated[Path, typer.Option("--out", help="Folder to write: a run a trial, and results.json.")],
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=…",
            help="A setting and what to try: learning_rate=1e-3,1e-4, dropout=0:0.5, learning_rate=1e-5:1e-3:log. "
            "Values of several make a grid.",
        ),
    ],
    trials: Annotated[
        int | None, typer.Option(min=1, help="So many settings, drawn; without it the whole grid.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="What is best for people left out: shared (mean), worst (user), personal (heads).")
    ] = "shared",
    subjects: Subjects = "*",
    held_out: Annotated[
        str | None, typer.Option(help="Globs of people (files, or users) in no trial, who are asked about the best.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="As for `headway train`.")] = None,
    backbone: Annotated[str | None, typer.Option(help="As for `headway train`.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder in which features are kept, for all trials.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting that is the same in all trials.")
    ] = None,
    accelerator: Annotated[str, typer.Option(help="cpu, cuda or auto: what a trial is trained on.")] = "cpu",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = "32-true",
    ray: Annotated[bool, typer.Option("--ray", help="Trials side by side as Ray tasks.")] = False,
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster, as auto or ray://host:10001; without it one is started here.")
    ] = None,
    logger: Annotated[list[str] | None, typer.Option(help="Keep logs, too: csv, tensorboard, mlflow.")] = None,
    quick: Annotated[bool, typer.Option(help="A small budget of each trial, on recordings.")] = False,
    resume: Annotated[
        bool, typer.Option(help="Go on in --out: what has ended is not trained again, --trials may be more.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Train a recipe with many settings, and list what left-out people would get with each, the best first."""
    from service.commands.sweeping import run_sweep
    from service.commands.training import where_of

    where = where_of(1, accelerator, precision, nodes=1, ray=ray, ray_address=ray_address, loggers=logger or ())
    if ray or ray_address:  # whose processes were started elsewhere
        data, out, cache = data.absolute(), out.absolute(), cache and cache.absolute()
    run_sweep(
        data,
        out,
        subjects=subjects,
        held_out=held_out,
        recipe=recipe,
        backbone=backbone,
        cache=cache,
        settings=settings or (),
        vary=vary,
        trials=trials,
        by=by,
        quick=quick,
        resume=resume,
        seed=seed,
        where=where,
        command=command_line(),
    )
