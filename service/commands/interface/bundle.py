"""`headway bundle`: what is in a folder of bundles, variants of one, and an output added to one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from service.commands.interface.options import Seed, Subjects, console

app = typer.Typer(help="List, verify and show bundles.", no_args_is_help=True)


@app.command("list")
def bundle_list(
    folder: Annotated[Path | None, typer.Argument(help="Folder of bundles; by default the shipped ones.")] = None,
    models: Annotated[Path | None, typer.Option("--models", help="The same as an option.")] = None,
) -> None:
    """List the bundles of a folder."""
    if folder is not None and models is not None:
        raise typer.BadParameter("the folder is given twice, as an argument and by --models")
    from exporters import bundle as bundles
    from service.commands.tables import bundles_table
    from service.config import ZOO

    chosen = folder or models or ZOO
    console.print(bundles_table(chosen, bundles.find(chosen)))


@app.command("verify")
def bundle_verify(path: Annotated[Path, typer.Argument(help="Bundle: DIR/NAME or DIR/NAME/VERSION.")]) -> None:
    """Check a bundle's digests and prior, and that its graph runs."""
    from exporters import bundle as bundles
    from service.engine.runtime import Runtime

    bundle = bundles.load(bundles.resolve(path))
    Runtime.of(bundle, max_batch=2)
    console.print(
        f"{bundle.manifest.name} version {bundle.manifest.version}: {len(bundle.manifest.files)} files as listed, "
        f"features {bundle.manifest.feature_dim}, {_outputs(bundle.manifest.names)}digest {bundle.digest[:16]}",
        highlight=False,
    )


def _outputs(names: Sequence[str]) -> str:
    return f"outputs {', '.join(names)}, " if names else ""


@app.command("convert")
def bundle_convert(
    path: Annotated[Path, typer.Argument(help="FP32 bundle: DIR/NAME or DIR/NAME/VERSION.")],
    models: Annotated[Path, typer.Option("--models", help="Folder of bundles to write the variant into.")],
    precision: Annotated[str, typer.Option(help="fp16 or int8.")] = "fp16",
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="Recordings, files or texts to measure on; fp16 can do with synthetic windows. Of several outputs "
            "OUTPUT=DIR: what each is labelled for.",
        ),
    ] = None,
    subjects: Subjects = "*",
    held_out: Annotated[
        str | None, typer.Option("--held-out", help="int8: globs of the people in --data that judge the variant.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Convert a bundle to half precision or 8 bits, through a gate on features and on what heads decide."""
    if precision not in ("fp16", "int8"):
        raise typer.BadParameter(f"unknown precision {precision!r}; there are: fp16, int8")
    from service.commands.conversion import run_conversion

    console.print(
        run_conversion(
            path, models, precision=precision, data=data or (), subjects=subjects, held_out=held_out, seed=seed
        ),
        highlight=False,
    )


@app.command("add-task")
def bundle_add_task(
    path: Annotated[Path, typer.Argument(help="Bundle: DIR/NAME or DIR/NAME/VERSION.")],
    data: Annotated[Path, typer.Option("--data", help="Table of files or texts, or recordings, with the answers.")],
    task: Annotated[
        str, typer.Option("--task", metavar="NAME=COLUMN", help="The output, by its column, or array of recordings.")
    ],
    called: Annotated[
        str, typer.Option("--called", help="Name of the present output of a bundle that has one, without a name yet.")
    ] = "",
    models: Annotated[
        Path | None, typer.Option("--models", help="Folder of bundles to write into; by default that of the bundle.")
    ] = None,
    user_labels: Annotated[
        int, typer.Option(min=0, max=256, help="Labels of their own that a user may add; 0: a closed set.")
    ] = 0,
    subjects: Subjects = "*",
    seed: Seed = 0,
) -> None:
    """Add an output to a bundle: heads on its features as they are; users' heads in the others stay valid."""
    from service.commands.adding import run_add_task

    run_add_task(
        path,
        data,
        task,
        called=called,
        models=models,
        user_labels=user_labels,
        subjects=subjects,
        seed=seed,
        console=console,
    )


@app.command("show")
def bundle_show(path: Annotated[Path, typer.Argument(help="Bundle: DIR/NAME or DIR/NAME/VERSION.")]) -> None:
    """Print a bundle's manifest."""
    from exporters import bundle as bundles

    manifest, _ = bundles.read_manifest(bundles.resolve(path))
    typer.echo(manifest.model_dump_json(indent=2))
