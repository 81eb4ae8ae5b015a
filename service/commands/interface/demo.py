"""`headway demo`: all of it in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.interface.options import Out, Seed, command_line

app = typer.Typer()


@app.command()
def demo(
    data: Annotated[
        str,
        typer.Option(
            "--data", help="watch (real smartwatch data), synth, or a folder of recordings such as the Myo ones."
        ),
    ] = "watch",
    out: Out = Path("demo-out"),
    seed: Seed = 0,
) -> None:
    """Train, export, serve, calibrate and measure on people the model never saw, in one go."""
    from service.commands.demo import run_demo

    run_demo(data, out, seed, command=command_line())
