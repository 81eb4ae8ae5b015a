"""Checkpoints: weights, optimiser and random states in one safetensors file, replaced whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from models.files import write_atomically
from models.training.config import TrainingError

__all__ = ["restore", "store", "write_atomically"]


def store(
    path: Path,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    best: dict[str, Tensor],
    rng: np.random.Generator,
    state: dict[str, Any],
) -> None:
    """Save all that the next step depends on."""
    tensors = {f"model.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in best.items()}
    for index, parts in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": torch.as_tensor(v) for k, v in parts.items()}
    tensors["torch_random_state"] = torch.random.get_rng_state()
    tensors = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
    meta = {"state": json.dumps(state), "numpy_random_state": json.dumps(rng.bit_generator.state)}
    write_atomically(path, save(tensors, meta))


def restore(
    path: Path, module: nn.Module, optimiser: torch.optim.Optimizer, rng: np.random.Generator
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load a checkpoint into a module, its optimiser and the random generators; return the best weights and the state.

    Raises:
        TrainingError: the file is damaged or belongs to another network.
    """
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        module.load_state_dict(_under(tensors, "model."))
        state = optimiser.state_dict()
        state["state"] = {}
        for name, value in _under(tensors, "optimiser.").items():
            index, part = name.split(".", 1)
            state["state"].setdefault(int(index), {})[part] = value
        optimiser.load_state_dict(state)
        rng.bit_generator.state = json.loads(meta["numpy_random_state"])
        torch.random.set_rng_state(tensors["torch_random_state"])
        return _under(tensors, "best."), json.loads(meta["state"])
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise TrainingError(f"The checkpoint {path} cannot be resumed from: {error}") from error


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
