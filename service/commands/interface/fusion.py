"""`headway fuse`: several models of what goes together (sensors, a picture and its caption) become one bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.interface.options import Seed, Subjects, command_line

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
        typer.Option(
            "--data",
            help="Recordings: NAME=DIR for each member, of the same sittings, files named alike. Images, texts, "
            "sounds: one table (.csv, .tsv, .jsonl) with a column for each member, label, and perhaps user.",
        ),
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
    seed: Seed = 0,
    description: Annotated[str, typer.Option(help="One sentence, for the card.")] = "",
) -> None:
    """Fuse several models into one bundle of several inputs, which answers with any of them missing."""
    from service.commands.fusing import run_fusion

    run_fusion(
        member,
        data,
        models,
        name=name,
        how=how,
        personal=personal,
        subjects=subjects,
        seed=seed,
        description=description,
        command=command_line(),
    )
