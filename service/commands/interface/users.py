"""`headway calibrate` and `headway predict`: a user on a running service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.interface.options import ModelName, TaskName, Url, User

app = typer.Typer()


@app.command()
def calibrate(
    model: ModelName,
    user: User,
    file: Annotated[Path, typer.Option("--file", help="A subject's recordings (.npz).")],
    url: Url = "http://127.0.0.1:8000",
    session: Annotated[str | None, typer.Option(help="Session to use; by default the first.")] = None,
    repetitions: Annotated[str, typer.Option(help="Repetitions to use: '0', '0,1' or '0-3'.")] = "0",
    windows: Annotated[
        int | None, typer.Option(min=1, help="Use only so many windows a class, from the first recordings.")
    ] = None,
    method: Annotated[str, typer.Option(help="map, lda, ncm, ridge, logistic or auto.")] = "map",
    mode: Annotated[str, typer.Option(help="update or replace.")] = "update",
    activate: Annotated[str, typer.Option(help="if_better, always or never.")] = "if_better",
    task: TaskName = None,
) -> None:
    """Calibrate a user on a running service from recordings, and print the guard's verdict."""
    from service.commands.client import run_calibration

    chosen = {"method": method, "mode": mode, "activate": activate}
    run_calibration(url, model, user, file, session, repetitions, windows, chosen, task)


@app.command()
def predict(
    model: ModelName,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file", help="A subject's recordings (.npz), an image or a sound; NAME=PATH for each input of several."
        ),
    ] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="A text; NAME=TEXT for an input of several.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Whose head answers; without it the shared one.")] = None,
    url: Url = "http://127.0.0.1:8000",
    session: Annotated[str | None, typer.Option(help="Session to use; by default the last.")] = None,
    repetitions: Annotated[
        str | None, typer.Option(help="Repetitions to use: '0', '0,1' or '1-3'; by default all.")
    ] = None,
    task: TaskName = None,
) -> None:
    """Predict on a running service: accuracy by gesture of recordings, or what an image, sound or text is taken for."""
    from service.commands.media_client import is_media, run_media_prediction

    if is_media(file or (), text or ()):
        if session is not None or repetitions is not None:
            raise typer.BadParameter("--session and --repetitions are of recordings (.npz)")
        run_media_prediction(url, model, file or (), text or (), user, task)
        return
    from service.commands.client import run_prediction

    assert file
    run_prediction(url, model, Path(file[0]), user, session, repetitions, task)
