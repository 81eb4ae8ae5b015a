"""A frozen encoder with what a population taught about its features: `[personal | evidence]`, as heads want them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.backbones.module import EncoderModule, create_encoder
from models.backbones.registry import register

__all__ = ["EVIDENCE_FLOOR", "ProbeConfig", "ProbedEncoder", "Top", "recorded"]

EVIDENCE_FLOOR = -20.0


class ProbeConfig(BaseModel):
    """Settings of a probed encoder: which encoder, built how, and the sizes of what is learned on top."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str
    settings: dict[str, Any] = Field(default_factory=dict)
    width: int = Field(ge=1, description="features of the encoder, d")
    personal: int = Field(ge=2, le=512, description="features that personal heads are fitted in, p")
    classes: int = Field(ge=2, description="classes of the population, K")


class ProbedEncoder(EncoderModule):
    """Raw input to features `(n, p + K)`: the encoder's, brought to length 1, projected; and K log posteriors.

    The projection is linear and the posteriors are a linear probe's: both are in the graph, so that a head is small
    whatever the encoder's width.
    """

    default_cfg: ProbeConfig
    centre: Tensor
    projection: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, encoder: EncoderModule, cfg: ProbeConfig) -> None:
        super().__init__()
        self.encoder, self.default_cfg = encoder, cfg
        self.input, self.files = encoder.input, encoder.files
        d = cfg.width
        self.register_buffer("centre", torch.zeros(d))
        self.register_buffer("projection", torch.zeros(d, cfg.personal))
        self.register_buffer("weight", torch.zeros(d, cfg.classes))
        self.register_buffer("bias", torch.zeros(cfg.classes))

    @property
    def num_features(self) -> int:
        """Number of features, p + K."""
        return self.default_cfg.personal + self.default_cfg.classes

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the encoder's layers."""
        return self.encoder.taps

    def forward_taps(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of the encoder's layers, each pooled to `(n, channels)`."""
        return self.encoder.forward_taps(x, names)

    def top(self, z: Tensor) -> Tensor:
        """What comes behind the encoder: features `(n, p + K)` of its features `(n, d)`."""
        h = nn.functional.normalize(z, dim=1) - self.centre
        evidence = torch.log_softmax(h @ self.weight + self.bias, 1).clamp(min=EVIDENCE_FLOOR)
        return torch.cat([h @ self.projection, evidence], 1)

    def forward_features(self, x: Tensor) -> Tensor:
        """Features `(n, p + K)` of raw input."""
        return self.top(self.encoder(x))


class Probed(Protocol):
    """An encoder with something fitted behind it, which can be computed alone."""

    def top(self, z: Tensor) -> Tensor:
        """Features `(n, …)` of the encoder's features `(n, d)`."""


class Top(nn.Module):
    """The part of a probed encoder behind the encoder, alone: for encoders that are ONNX graphs."""

    def __init__(self, probed: "Probed") -> None:
        super().__init__()
        self.probed = probed

    def forward(self, z: Tensor) -> Tensor:
        """Features `(n, p + K)` of the encoder's features `(n, d)`."""
        return self.probed.top(z)


@register("probe")
def _probe(**settings: object) -> ProbedEncoder:
    cfg = ProbeConfig.model_validate(settings)
    return ProbedEncoder(create_encoder(cfg.encoder, cfg.settings), cfg)


def recorded(name: str, encoder: EncoderModule) -> Mapping[str, Any]:
    """Name and settings that rebuild an encoder's architecture without its weights."""
    settings = encoder.default_cfg.model_dump(mode="json", exclude_none=True)
    return {"encoder": name, "settings": {**settings, "weights": False}}
