"""Baselines that train a network for each user: from scratch, and full fine-tuning of a run's backbone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.data.windows import Windows
from models.training.run import load_run

STEPS = 300
BATCH = 128
SEED = 0

Method = Callable[[Windows, NDArray[np.float32]], NDArray[np.floating]]


def methods(classes: int, run: Path | None) -> dict[str, Method]:
    """Training from scratch, and fine-tuning where the run with the torch backbone is given."""
    found: dict[str, Method] = {"trained from scratch": lambda w, x: _from_scratch(w, x, classes)}
    if run is not None:
        loaded = load_run(run)

        def fine_tune(w: Windows, x: NDArray[np.float32]) -> NDArray[np.floating]:
            """Train the run's backbone and its generic head on the windows `w`; gives logits of `x`."""
            backbone = copy.deepcopy(loaded.backbone())
            head = nn.Linear(loaded.prior.dim, classes)
            with torch.no_grad():
                head.weight.copy_(torch.from_numpy(loaded.prior.generic_weight))
                head.bias.copy_(torch.from_numpy(loaded.prior.generic_bias))
            for parameter in backbone.parameters():
                parameter.requires_grad_(True)
            return _fit(nn.Sequential(backbone, head), w, x, learning_rate=3e-4)

        found["full fine-tuning"] = fine_tune
    return found


class _ConvNet(nn.Module):
    """A ConvNet over standardised windows, of the size that is usual on this data."""

    level: Tensor
    scale: Tensor

    def __init__(self, channels: int, classes: int, level: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("level", level)
        self.register_buffer("scale", scale)
        self.body = nn.Sequential(
            *self._block(channels, 64),
            *self._block(64, 128),
            *self._block(128, 128),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(128, classes)

    @staticmethod
    def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        convolution = nn.Conv1d(inputs, outputs, 5, padding=2)
        return convolution, nn.BatchNorm1d(outputs), nn.PReLU(), nn.MaxPool1d(2), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, K)`."""
        logits: Tensor = self.head(self.body((x - self.level) / self.scale))
        return logits


def _from_scratch(w: Windows, x: NDArray[np.float32], classes: int) -> NDArray[np.floating]:
    torch.manual_seed(SEED)
    known = torch.from_numpy(w.x)
    level = known.mean((0, 2), keepdim=True)[0]
    scale = (known - level).square().mean((0, 2), keepdim=True)[0].sqrt().clamp_min(1e-12)
    return _fit(_ConvNet(w.x.shape[1], classes, level, scale), w, x, learning_rate=2e-3)


def _fit(model: nn.Module, w: Windows, x: NDArray[np.float32], *, learning_rate: float) -> NDArray[np.floating]:
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    known, labels = torch.from_numpy(w.x), torch.from_numpy(w.y)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=STEPS)
    model.train()
    for _ in range(STEPS):
        index = torch.from_numpy(rng.integers(0, len(labels), min(BATCH, len(labels))))
        loss = nn.functional.cross_entropy(model(known[index]), labels[index], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        parts = [model(part) for part in torch.split(torch.from_numpy(x), 1024)]
    result: NDArray[np.floating] = torch.cat(parts).double().numpy()
    return result
