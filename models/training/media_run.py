"""A finished run on images, sounds or texts: what an export of it needs."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError

from exporters.input_spec import InputSpec
from models.backbones import BackboneError
from models.backbones.probe import ProbeConfig, ProbedEncoder
from models.backbones.registry import create
from models.heads import prior as priors
from models.heads.prior import HyperParameters, Prior
from models.training.checkpoint import write_atomically
from models.training.run import PARITY, PRIOR, RECORD, WEIGHTS, RunError

__all__ = ["MediaRun", "is_media_run", "load_media_run", "save_media_run"]

KIND = "media-1"


@dataclass(frozen=True, eq=False)
class MediaRun:
    """What training on images, sounds or texts made.

    Attributes:
        folder: where it lies.
        labels: class names, in the order of every array.
        prior: the population prior.
        input: the tensor that the model takes, and the media that are read into it.
        files: what reading the media needs, by name.
        items: real inputs `(n, …)` in the input's datatype, for the parity gate.
        preprocessing: what happens to raw input, in words.
        architecture: of the backbone.
        provenance: data, settings, seed, commit, versions, times.
        evaluation: figures on what was left out.
    """

    folder: Path
    labels: tuple[str, ...]
    prior: Prior
    input: InputSpec
    files: dict[str, bytes]
    items: NDArray[Any]
    preprocessing: str
    architecture: ProbeConfig
    provenance: dict[str, Any]
    evaluation: dict[str, Any]

    def backbone(self) -> ProbedEncoder:
        """Build the backbone with its weights, in inference mode.

        Raises:
            RunError: the weights are damaged or belong to another architecture.
        """
        file = self.folder / WEIGHTS
        try:
            module = create("probe", self.architecture.model_dump())
            assert isinstance(module, ProbedEncoder)
            module.load_state_dict(safetensors.torch.load(file.read_bytes()))
        except (OSError, SafetensorError, BackboneError, RuntimeError) as error:
            raise RunError(f"The weights {file} cannot be loaded: {error}") from error
        module.files.update(self.files)
        return module.eval()


def save_media_run(
    folder: Path, module: ProbedEncoder, prior: Prior, items: NDArray[Any], record: Mapping[str, Any]
) -> None:
    """Write a run; `run.json` comes last, so that a folder with one is finished."""
    state = {name: value.detach().clone().contiguous() for name, value in module.state_dict().items()}
    write_atomically(folder / WEIGHTS, safetensors.torch.save(state))
    write_atomically(folder / PRIOR, priors.to_bytes(prior))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, items=items)
    write_atomically(folder / PARITY, buffer.getvalue())
    for name, data in module.files.items():
        write_atomically(folder / name, data)
    content = {
        "kind": KIND,
        "labels": prior.labels,
        "input": module.input.model_dump(mode="json"),
        "files": sorted(module.files),
        "architecture": module.default_cfg.model_dump(mode="json"),
        "hyper": prior.hyper.model_dump(mode="json"),
        **record,
    }
    write_atomically(folder / RECORD, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


def is_media_run(folder: Path) -> bool:
    """Whether a folder holds a run of this kind, finished and readable or not."""
    try:
        return "media" in str(json.loads((folder / RECORD).read_text()).get("kind", ""))
    except (OSError, ValueError, AttributeError):
        return False


def load_media_run(folder: Path) -> MediaRun:
    """Read a finished run.

    Raises:
        RunError: the folder holds no finished run of this kind, or one that is damaged.
    """
    file = folder / RECORD
    if not file.is_file():
        raise RunError(f"{folder} holds no finished training run: there is no {RECORD} in it.")
    try:
        record = json.loads(file.read_text())
        if record["kind"] != KIND:
            raise RunError(f"{file} is of kind {record['kind']}; this Headway reads {KIND}.")
        labels = tuple(record["labels"])
        prior = priors.from_bytes(
            (folder / PRIOR).read_bytes(), labels, HyperParameters.model_validate(record["hyper"])
        )
        with np.load(folder / PARITY, allow_pickle=False) as arrays:
            items = arrays["items"]
        return MediaRun(
            folder=folder,
            labels=labels,
            prior=prior,
            input=InputSpec.model_validate(record["input"]),
            files={name: (folder / Path(name).name).read_bytes() for name in record["files"]},
            items=items,
            preprocessing=record["preprocessing"],
            architecture=ProbeConfig.model_validate(record["architecture"]),
            provenance=record["provenance"],
            evaluation=record["evaluation"],
        )
    except RunError:
        raise
    except (OSError, KeyError, TypeError, ValueError, ValidationError) as error:
        raise RunError(f"The run in {folder} is damaged: {error}") from error
