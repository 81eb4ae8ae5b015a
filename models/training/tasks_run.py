"""A finished run of several tasks on images, sounds or texts: what an export of it needs."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError

from exporters.bundle_outputs import Target, prior_file
from exporters.input_spec import InputSpec
from models.backbones import BackboneError
from models.backbones.probes import ProbesConfig, TasksEncoder
from models.backbones.registry import create
from models.files import write_atomically
from models.heads import prior as priors
from models.heads import regression_prior
from models.heads.prior import HyperParameters, Prior
from models.heads.regression_prior import RegressionPrior, RegressionSettings
from models.training.run import PARITY, RECORD, WEIGHTS, RunError

__all__ = ["LearnedTask", "TasksRun", "is_tasks_run", "load_tasks_run", "read_task", "save_tasks_run"]

KIND = "media-tasks-1"


@dataclass(frozen=True, eq=False)
class LearnedTask:
    """A task as it was learned: `labels` or `targets`, its prior, and figures on what was left out."""

    name: str
    labels: tuple[str, ...]
    targets: tuple[Target, ...]
    prior: Prior | RegressionPrior
    evaluation: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """What `run.json` has of it; the prior's arrays are a file of their own."""
        settings = self.prior.hyper if isinstance(self.prior, Prior) else self.prior.settings
        return {
            "name": self.name,
            "labels": self.labels,
            "targets": [target.model_dump() for target in self.targets],
            "heads": settings.model_dump(mode="json"),
            "evaluation": self.evaluation,
        }

    @property
    def file(self) -> bytes:
        """The prior's arrays."""
        if isinstance(self.prior, Prior):
            return priors.to_bytes(self.prior)
        return regression_prior.to_bytes(self.prior)


@dataclass(frozen=True, eq=False)
class TasksRun:
    """What training for several tasks made.

    Attributes:
        folder: where it lies.
        tasks: each with its prior and figures, in the order of the graph's features.
        input: the tensor that the model takes, and the media that are read into it.
        files: what reading the media needs, by name.
        items: real inputs `(n, …)` in the input's datatype, for the parity gate.
        preprocessing: what happens to raw input, in words.
        architecture: of the backbone.
        provenance: data, settings, seed, commit, versions, times.
    """

    folder: Path
    tasks: tuple[LearnedTask, ...]
    input: InputSpec
    files: dict[str, bytes]
    items: NDArray[Any]
    preprocessing: str
    architecture: ProbesConfig
    provenance: dict[str, Any]

    def backbone(self) -> TasksEncoder:
        """Build the backbone with its weights, in inference mode.

        Raises:
            RunError: the weights are damaged or belong to another architecture.
        """
        file = self.folder / WEIGHTS
        try:
            module = create("probes", self.architecture.model_dump())
            assert isinstance(module, TasksEncoder)
            module.load_state_dict(safetensors.torch.load(file.read_bytes()))
        except (OSError, SafetensorError, BackboneError, RuntimeError) as error:
            raise RunError(f"The weights {file} cannot be loaded: {error}") from error
        module.files.update(self.files)
        return module.eval()


def save_tasks_run(
    folder: Path,
    module: TasksEncoder,
    tasks: Sequence[LearnedTask],
    items: NDArray[Any],
    record: Mapping[str, Any],
) -> None:
    """Write a run; `run.json` comes last, so that a folder with one is finished."""
    state = {name: value.detach().clone().contiguous() for name, value in module.state_dict().items()}
    write_atomically(folder / WEIGHTS, safetensors.torch.save(state))
    for task in tasks:
        write_atomically(folder / prior_file(task.name), task.file)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, items=items)
    write_atomically(folder / PARITY, buffer.getvalue())
    for name, data in module.files.items():
        write_atomically(folder / name, data)
    content = {
        "kind": KIND,
        "tasks": [task.record() for task in tasks],
        "input": module.input.model_dump(mode="json"),
        "files": sorted(module.files),
        "architecture": module.default_cfg.model_dump(mode="json"),
        **record,
    }
    write_atomically(folder / RECORD, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


def is_tasks_run(folder: Path) -> bool:
    """Whether a folder holds a run of this kind, finished and readable or not."""
    try:
        return bool(json.loads((folder / RECORD).read_text()).get("kind") == KIND)
    except (OSError, ValueError, AttributeError):
        return False


def load_tasks_run(folder: Path) -> TasksRun:
    """Read a finished run.

    Raises:
        RunError: the folder holds no finished run of this kind, or one that is damaged.
    """
    file = folder / RECORD
    if not is_tasks_run(folder):
        raise RunError(f"{folder} holds no finished training run of several tasks.")
    try:
        record = json.loads(file.read_text())
        with np.load(folder / PARITY, allow_pickle=False) as arrays:
            items = arrays["items"]
        return TasksRun(
            folder=folder,
            tasks=tuple(read_task(folder, told) for told in record["tasks"]),
            input=InputSpec.model_validate(record["input"]),
            files={name: (folder / Path(name).name).read_bytes() for name in record["files"]},
            items=items,
            preprocessing=record["preprocessing"],
            architecture=ProbesConfig.model_validate(record["architecture"]),
            provenance=record["provenance"],
        )
    except (OSError, KeyError, TypeError, ValueError, ValidationError) as error:
        raise RunError(f"The run in {folder} is damaged: {error}") from error


def read_task(folder: Path, told: Mapping[str, Any]) -> LearnedTask:
    """A task from its record in a run's folder, where its prior lies; raises `ValueError` or `KeyError` if damaged."""
    data = (folder / prior_file(Path(told["name"]).name)).read_bytes()
    labels, targets = tuple(told["labels"]), tuple(Target.model_validate(each) for each in told["targets"])
    prior: Prior | RegressionPrior
    if targets:
        names = tuple(target.name for target in targets)
        prior = regression_prior.from_bytes(data, names, RegressionSettings.model_validate(told["heads"]))
    else:
        prior = priors.from_bytes(data, labels, HyperParameters.model_validate(told["heads"]))
    return LearnedTask(told["name"], labels, targets, prior, told["evaluation"])
