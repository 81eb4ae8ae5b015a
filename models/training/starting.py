"""Which weights fine-tuning starts from: pre-trained, random, or those of another run."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from models.backbones.module import EncoderModule, create_encoder
from models.backbones.probe import recorded
from models.training.claim import ASKED
from models.training.config import TrainingError
from models.training.media_run import is_media_run, load_media_run
from models.training.run import RECORD
from models.training.tasks_run import is_tasks_run, load_tasks_run
from models.training.tuned import TuneConfig

__all__ = ["start_digest", "starting_encoder", "strangers_to"]


def starting_encoder(config: TuneConfig) -> EncoderModule:
    """The encoder that training starts from: pre-trained, of another run, or (scratch) with random weights by the seed.

    Raises:
        BackboneError, RunError: it cannot be built.
    """
    if config.start is not None:
        return _of_run(Path(config.start), config)
    encoder = create_encoder(config.backbone, config.settings)
    if config.recipe != "scratch":
        return encoder
    told = recorded(config.backbone, encoder)
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(config.seed)
        blank = create_encoder(told["encoder"], told["settings"])
    blank.files.update(encoder.files)
    return blank


def _of_run(start: Path, config: TuneConfig) -> EncoderModule:
    """The encoder of another run, which must be of the same backbone."""
    if config.recipe == "scratch" or config.settings:
        other = "the recipe scratch" if config.recipe == "scratch" else "settings of the encoder"
        raise TrainingError(f"Weights and settings are those of the run in start={start}; leave {other} out.")
    if (start / RECORD).is_file() and not is_media_run(start):
        raise TrainingError(f"start={start} is a run on recordings; one on images, texts or sounds was expected.")
    run = load_tasks_run(start) if is_tasks_run(start) else load_media_run(start)
    if run.architecture.encoder != config.backbone:
        raise TrainingError(
            f"start={start} is a run of {run.architecture.encoder}, and the backbone is {config.backbone}; name that."
        )
    return run.backbone().encoder


def start_digest(start: str | None) -> str | None:
    """What a run that is started from is, so that resuming notices another in its place."""
    if start is None or not (Path(start) / RECORD).is_file():
        return None
    return hashlib.sha256((Path(start) / RECORD).read_bytes()).hexdigest()


def strangers_to(start: str | None, digests: Sequence[str]) -> None:
    """Raise `TrainingError` where weights to start from were trained on some of these data.

    Nothing could then be left out of them, and every figure and the record that the guard goes by would be too good.
    """
    if start is None:
        return
    file = Path(start) / ASKED
    seen = set(json.loads(file.read_text())["data"]) & set(digests) if file.is_file() else set()
    if seen:
        raise TrainingError(
            f"start={start} was trained on {len(seen)} of these {len(digests)} examples, so nothing could be left out "
            "of its weights; give other data, or begin at the pre-trained ones."
        )
