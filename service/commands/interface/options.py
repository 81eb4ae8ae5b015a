"""Options that several commands share, the console they print to, and how a command was given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()

DataDir = Annotated[Path, typer.Option("--data", help="Folder of recordings, one .npz a subject (docs/recordings.md).")]
MediaDir = Annotated[
    Path,
    typer.Option("--data", help="Images or sounds as FOLDER/[USER/]LABEL/*, or a table of texts (docs/training.md)."),
]
AnyData = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Folder of recordings, one .npz a subject (docs/recordings.md); with --backbone images or sounds as "
        "FOLDER/[USER/]LABEL/*, or a table of texts (docs/training.md).",
    ),
]
Subjects = Annotated[
    str, typer.Option("--subjects", help="Globs over file names, comma-separated; a leading ! leaves out: 'a_*,!a_3'.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of all randomness; recorded.")]
Url = Annotated[str, typer.Option("--url", help="Where the service answers.")]
ModelName = Annotated[str, typer.Option("--model", help="Name of the model on the service.")]
TaskName = Annotated[
    str | None, typer.Option("--task", help="Which output of the model is meant, where it has several.")
]
User = Annotated[str, typer.Option("--user", help="The user's id.")]


def command_line() -> str:
    """The command as it was given, for records."""
    return " ".join(["headway", *sys.argv[1:]])
