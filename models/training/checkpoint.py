"""Checkpoints of a training loop: tensors and plain values in one safetensors file, replaced whole; no pickle."""

import json
import math
from pathlib import Path
from typing import Any

from lightning_fabric.plugins import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from models.files import write_atomically
from models.training.config import TrainingError

__all__ = ["SafetensorsIO", "write_atomically"]

TREE = "tree"


class SafetensorsIO(CheckpointIO):
    """Lightning's checkpoints as safetensors: nested dicts, lists, tensors, strings, numbers, None."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint so that it is there whole or not at all; raises `TypeError` for what it cannot hold."""
        tensors: dict[str, Tensor] = {}
        tree = _packed(checkpoint, tensors)
        write_atomically(Path(path), save(tensors, {TREE: json.dumps(tree)}))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; raises `TrainingError` for a damaged one."""
        try:
            with safe_open(path, "pt") as file:
                tree = json.loads(file.metadata()[TREE])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            found: dict[str, Any] = _unpacked(tree, tensors)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"The checkpoint {path} cannot be resumed from: {error}") from error
        return found

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, if it is there."""
        Path(path).unlink(missing_ok=True)


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON of a value; its tensors go to `tensors` and leave their names."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise TypeError("a checkpoint's keys are strings and whole numbers")
        return {"dict": [[key, _packed(v, tensors)] for key, v in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_packed(v, tensors) for v in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "dict":
        return {key: _unpacked(v, tensors) for key, v in held}
    if kind == "float":
        return float(held)
    items = [_unpacked(v, tensors) for v in held]
    return tuple(items) if kind == "tuple" else items
