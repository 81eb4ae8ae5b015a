"""`headway user`: a user or a head as a file. `headway recalibrate`: users follow a new backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.interface.options import ModelName, TaskName, Url, User, console

app = typer.Typer()
user_app = typer.Typer(help="Take a user or a head out of a running service, and into one.", no_args_is_help=True)

URL = "http://127.0.0.1:8000"


@user_app.command("export")
def user_export(
    model: ModelName,
    user: User,
    out: Annotated[Path, typer.Option("--out", help="File to write (.zip).")],
    url: Url = URL,
) -> None:
    """Write all of a user to one file: heads, statistics, reports, pointers."""
    from service.commands.portable import export_user

    console.print(export_user(url, model, user, out), highlight=False)


@user_app.command("import")
def user_import(
    model: ModelName,
    user: User,
    file: Annotated[Path, typer.Option("--file", help="File that `headway user export` wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace all that is known of the user.")] = False,
    url: Url = URL,
) -> None:
    """Restore a user from such a file, on a service with the same feature space."""
    from service.commands.portable import import_user

    console.print(import_user(url, model, user, file, replace), highlight=False)


@user_app.command("onnx")
def user_onnx(
    model: ModelName,
    user: User,
    out: Annotated[Path, typer.Option("--out", help="File to write (.onnx).")],
    version: Annotated[
        str, typer.Option(help="Version of the user's head, or shared; by default the active one, of every output.")
    ] = "active",
    task: TaskName = None,
    url: Url = URL,
) -> None:
    """Write a standalone ONNX model with the user's head: raw input to probabilities, or to values."""
    from service.commands.portable import export_onnx

    console.print(export_onnx(url, model, user, out, version, task), highlight=False)


@app.command()
def recalibrate(
    model: ModelName,
    from_version: Annotated[int | None, typer.Option("--from", min=1, help="Only users of this version.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come of it; change nothing.")] = False,
    wait: Annotated[bool, typer.Option(help="Show the progress until it is done.")] = True,
    task: TaskName = None,
    url: Url = URL,
    store: Annotated[
        str | None, typer.Option("--store", help="Without a service: URL of the store in which users are moved.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option("--models", help="With --store: folder of bundles; by default as `headway serve`.")
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="With --store (PostgreSQL): ranges of users side by side as Ray tasks.")
    ] = False,
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster, as auto or HOST:6379; without it one is started here.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="With --store: TOML file of settings.")] = None,
) -> None:
    """Move users' heads to the newest version of a model (docs/upgrades.md): by a service, or without one."""
    if store is None:
        if models is not None or config is not None or ray or ray_address:
            raise typer.BadParameter("--models, --config and --ray are of moving users without a service: give --store")
        from service.commands.portable import run_recalibration

        run_recalibration(url, model, from_version, dry_run=dry_run, wait=wait, task=task)
        return
    if not wait:
        raise typer.BadParameter("with --store it is this command that moves users: leave --no-wait out")
    import os

    # As a service has it: with other threads, sums are in another order. Read when numpy is first imported, below.
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

    from service.commands.bulk import Wanted, run_bulk
    from service.config import load

    settings = load({"store": store, "models": models}, config)
    run_bulk(settings, Wanted(model, task, from_version, dry_run), ray=ray, ray_address=ray_address)
