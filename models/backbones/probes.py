"""A frozen encoder with what a population taught about its features for several tasks, side by side."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.backbones.module import EncoderModule, create_encoder
from models.backbones.probe import EVIDENCE_FLOOR
from models.backbones.registry import register

__all__ = ["ProbedTask", "ProbesConfig", "TasksEncoder"]


class ProbedTask(BaseModel):
    """A task of a probed encoder: `classes` of a classification, or `targets` of a regression, the other 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    classes: int = Field(0, ge=0)
    targets: int = Field(0, ge=0)

    @property
    def width(self) -> int:
        """Features that tell of it."""
        return self.classes or self.targets


class ProbesConfig(BaseModel):
    """Settings: which encoder, built how, and the sizes of what is learned on top."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str
    settings: dict[str, Any] = Field(default_factory=dict)
    width: int = Field(ge=1, description="features of the encoder, d")
    personal: int = Field(ge=2, le=512, description="features that personal heads of every task are fitted in, p")
    tasks: tuple[ProbedTask, ...] = Field(min_length=1)

    def columns(self, task: int) -> tuple[tuple[int, int], ...]:
        """Ranges of features that heads of a task are over: the personal ones, and those that tell of it."""
        begin = self.personal + sum(each.width for each in self.tasks[:task])
        own = (begin, begin + self.tasks[task].width)
        return ((0, own[1]),) if begin == self.personal else ((0, self.personal), own)


class TasksEncoder(EncoderModule):
    """Raw input to features `(n, p + Σ widths)`: `[personal | log posteriors, or values, task by task]`.

    As `ProbedEncoder`, of one task. What tells of a regression's targets are their values, in deviations from their
    means over the population.
    """

    default_cfg: ProbesConfig
    centre: Tensor
    projection: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, encoder: EncoderModule, cfg: ProbesConfig) -> None:
        super().__init__()
        self.encoder, self.default_cfg = encoder, cfg
        self.input, self.files = encoder.input, encoder.files
        total = sum(task.width for task in cfg.tasks)
        self.register_buffer("centre", torch.zeros(cfg.width))
        self.register_buffer("projection", torch.zeros(cfg.width, cfg.personal))
        self.register_buffer("weight", torch.zeros(cfg.width, total))
        self.register_buffer("bias", torch.zeros(total))

    @property
    def num_features(self) -> int:
        """Number of features, p + Σ widths."""
        return self.default_cfg.personal + len(self.bias)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the encoder's layers."""
        return self.encoder.taps

    def forward_taps(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of the encoder's layers, each pooled to `(n, channels)`."""
        return self.encoder.forward_taps(x, names)

    def top(self, z: Tensor) -> Tensor:
        """What comes behind the encoder: features `(n, p + Σ widths)` of its features `(n, d)`."""
        h = nn.functional.normalize(z, dim=1) - self.centre
        said, parts, at = h @ self.weight + self.bias, [h @ self.projection], 0
        for task in self.default_cfg.tasks:
            own = said[:, at : at + task.width]
            parts.append(torch.log_softmax(own, 1).clamp(min=EVIDENCE_FLOOR) if task.classes else own)
            at += task.width
        return torch.cat(parts, 1)

    def forward_features(self, x: Tensor) -> Tensor:
        """Features `(n, p + Σ widths)` of raw input."""
        return self.top(self.encoder(x))


@register("probes")
def _probes(**settings: object) -> TasksEncoder:
    cfg = ProbesConfig.model_validate(settings)
    return TasksEncoder(create_encoder(cfg.encoder, cfg.settings), cfg)
