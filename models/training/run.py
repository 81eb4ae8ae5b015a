"""A finished training run: the folder that holds everything an export needs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import nn

from models.backbones import BackboneError, create
from models.heads import prior as priors
from models.heads.prior import HyperParameters, Prior
from models.training.checkpoint import write_atomically
from models.training.config import TrainingError
from models.training.people import Signal

__all__ = ["Run", "RunError", "load_run", "save_run"]

RECORD, WEIGHTS, PRIOR, PARITY = "run.json", "weights.safetensors", "prior.safetensors", "parity.npz"
FORMAT = 1


class RunError(TrainingError):
    """A folder is not a finished run; the message says why."""


@dataclass(frozen=True, eq=False)
class Run:
    """What training made: backbone, prior with hyper-parameters, windows for the parity gate, and the record.

    Attributes:
        folder: where it lies.
        signal: what the recordings are.
        labels: class names, in the order of every array.
        prior: the population prior.
        windows: real windows `(n, C, T)` float32.
        preprocessing: what the graph does with raw input, in words.
        provenance: data, settings, seed, commit, versions, times.
        evaluation: figures on left-out people of the population.
    """

    folder: Path
    signal: Signal
    labels: tuple[str, ...]
    prior: Prior
    windows: NDArray[np.float32]
    preprocessing: str
    provenance: dict[str, Any]
    evaluation: dict[str, Any]
    architecture: dict[str, Any]

    @property
    def prior_bytes(self) -> bytes:
        """The prior's arrays as they go into a bundle."""
        return priors.to_bytes(self.prior)

    def backbone(self) -> nn.Module:
        """Build the backbone with its trained weights, in evaluation mode.

        Raises:
            RunError: the weights are damaged or belong to another architecture.
        """
        file = self.folder / WEIGHTS
        try:
            module = create(self.architecture["name"], self.architecture["settings"])
            module.load_state_dict(safetensors.torch.load(file.read_bytes()))
        except (OSError, SafetensorError, BackboneError, KeyError, RuntimeError) as error:
            raise RunError(f"The weights {file} cannot be loaded: {error}") from error
        return module.eval()


def save_run(
    folder: Path,
    module: nn.Module,
    prior: Prior,
    signal: Signal,
    windows: NDArray[np.float32],
    record: Mapping[str, Any],
    architecture: Mapping[str, Any],
) -> None:
    """Write a run; `run.json` comes last, so that a folder with one is finished."""
    state = {name: value.detach().contiguous() for name, value in module.state_dict().items()}
    write_atomically(folder / WEIGHTS, safetensors.torch.save(state))
    write_atomically(folder / PRIOR, priors.to_bytes(prior))
    temporary = folder / f".{PARITY}.tmp.npz"
    np.savez_compressed(temporary, windows=windows)
    temporary.replace(folder / PARITY)
    content = {
        "format": FORMAT,
        "labels": prior.labels,
        "signal": vars(signal),
        "architecture": dict(architecture),
        "hyper": prior.hyper.model_dump(mode="json"),
        **record,
    }
    write_atomically(folder / RECORD, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


def load_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        RunError: the folder holds no finished run, or one that is damaged.
    """
    file = folder / RECORD
    if not file.is_file():
        raise RunError(f"{folder} holds no finished training run: there is no {RECORD} in it.")
    try:
        record = json.loads(file.read_text())
        if record["format"] != FORMAT:
            raise RunError(f"{file} is of format {record['format']}; this Headway reads format {FORMAT}.")
        labels = tuple(record["labels"])
        hyper = HyperParameters.model_validate(record["hyper"])
        prior = priors.from_bytes((folder / PRIOR).read_bytes(), labels, hyper)
        with np.load(folder / PARITY, allow_pickle=False) as arrays:
            windows = arrays["windows"]
        return Run(
            folder=folder,
            signal=Signal(**record["signal"]),
            labels=labels,
            prior=prior,
            windows=windows,
            preprocessing=record["preprocessing"],
            provenance=record["provenance"],
            evaluation=record["evaluation"],
            architecture=record["architecture"],
        )
    except RunError:
        raise
    except (OSError, KeyError, TypeError, ValueError, ValidationError) as error:
        raise RunError(f"The run in {folder} is damaged: {error}") from error


def as_float32(x: torch.Tensor) -> NDArray[np.float32]:
    """A tensor as a float32 array."""
    return np.asarray(x.numpy(), np.float32)
