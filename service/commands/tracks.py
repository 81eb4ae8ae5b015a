"""`headway evaluate --track causal|batch`: what windows without labels add to a bundle's personal heads."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from models.evaluation.personaliser import LocalPersonaliser
from models.evaluation.protocols import ProtocolError, plan
from models.evaluation.run import made_of
from models.evaluation.track_tables import log_track, to_json, to_markdown
from models.evaluation.tracks import TRACKS, evaluate_track
from service.commands.progress import steps

INDUCTIVE = "inductive"
console = Console()


def run_track(
    track: str,
    model: Path,
    data: Path,
    *,
    protocol: str,
    subjects: str | None,
    allow_training_subjects: bool,
    json_file: Path | None,
    markdown: Path | None,
    log: Path | None,
    command: str,
) -> None:
    """Score a track, print its tables and write what was asked for.

    Raises:
        ProtocolError: there is no such track, or nobody to score.
    """
    if track not in TRACKS:
        raise ProtocolError(f"There is no track '{track}'; there are: {', '.join((INDUCTIVE, *TRACKS))}.")
    begin = time.monotonic()
    personaliser = LocalPersonaliser(model)
    people = plan(
        protocol,
        personaliser.manifest,
        data,
        subjects=subjects,
        allow_training_subjects=allow_training_subjects,
    )
    with steps("evaluating", console) as progress:
        table = evaluate_track(track, personaliser, people, progress=progress)
    table.made_of = made_of(personaliser, people, command, time.monotonic() - begin)
    text = to_markdown(table)
    console.print(Markdown(text))
    for file, content in ((json_file, to_json(table)), (markdown, text)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            console.print(f"written to {file}", highlight=False)
    if log is not None:
        console.print(f"run {log_track(log, table)} of {log}", highlight=False)
