"""`headway fuse`: several models of the same people, one a sensor, become one bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.interface.options import Subjects, command_line

app = typer.Typer()


@app.command()
def fuse(
    member: Annotated[
        list[str],
        typer.Option(
            "--member",
            help="NAME=PATH, twice or more: a folder that `headway train` wrote, or a bundle; NAME is the input's.",
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option("--data", help="NAME=DIR for each member: recordings of the same sittings, files named alike."),
    ],
    models: Annotated[Path, typer.Option("--models", help="Folder of bundles to write into.")],
    name: Annotated[str, typer.Option("--name", help="Name of the fused model.")],
    how: Annotated[
        str, typer.Option(help="late: weighed posteriors of the members; concatenated: one probe on all features.")
    ] = "late",
    personal: Annotated[
        int, typer.Option(min=2, max=200, help="Features that personal heads are fitted in, at most.")
    ] = 64,
    subjects: Subjects = "*",
    description: Annotated[str, typer.Option(help="One sentence, for the card.")] = "",
) -> None:
    """Fuse models of several sensors into one bundle, which answers with any of its inputs missing."""
    from service.commands.fusing import run_fusion

    run_fusion(
        member,
        data,
        models,
        name=name,
        how=how,
        personal=personal,
        subjects=subjects,
        description=description,
        command=command_line(),
    )
