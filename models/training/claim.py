"""A run's folder while it is being made: whose it is, and whether a killed run may go on in it."""

import json
from pathlib import Path
from typing import Any

from models.files import write_atomically
from models.training.config import TrainingError

__all__ = ["ASKED", "CHECKPOINTS", "check", "claim", "free"]

CHECKPOINTS, ASKED = "checkpoints", "asked.json"


def free(out: Path) -> None:
    """Raise `TrainingError` for a folder with something in it."""
    if out.exists() and any(out.iterdir()):
        raise TrainingError(f"The folder {out} is not empty; take another --out.")


def check(out: Path, asked: dict[str, Any], *, resume: bool) -> None:
    """Check that the folder is free, or when resuming that it holds the same work.

    Raises:
        TrainingError: it is neither.
    """
    file = out / ASKED
    if not resume:
        if out.exists() and any(out.iterdir()):
            raise TrainingError(f"The folder {out} is not empty; take another --out, or resume the run in it.")
        return
    if not file.is_file():
        raise TrainingError(f"There is nothing to resume in {out}.")
    try:
        before = json.loads(file.read_text())
    except ValueError as e:
        raise TrainingError(f"{file} is damaged, so the run cannot be resumed; begin again in another --out.") from e
    if before != asked:
        raise TrainingError(f"The run in {out} was begun with other settings or recordings; resume it with the same.")


def claim(out: Path, asked: dict[str, Any]) -> None:
    """Note in the folder what is being made there."""
    write_atomically(out / ASKED, json.dumps(asked, indent=2).encode())
