"""The signal encoder: raw windows of any armband or watch to features, with its whole preprocessing inside."""

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.backbones.handmade import LIMIT, HandMade
from models.backbones.registry import register

__all__ = ["SignalConfig", "SignalEncoder"]

EVIDENCE_FLOOR = -20.0


class SignalConfig(BaseModel):
    """Settings of a signal encoder; everything that is needed to rebuild it before its weights are loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: int = Field(ge=1, le=64, description="C")
    length: int = Field(ge=8, description="T, samples in a window")
    fs: float = Field(gt=0, description="Hz")
    classes: int = Field(ge=2, description="classes of the population, K")
    modality: Literal["emg", "imu"] = "emg"
    personal: int = Field(64, ge=2, le=200, description="features that personal heads are fitted in, p")
    components: int = Field(1, ge=1, le=64, description="placements of the sensor in the population mixture")
    learned: bool = Field(True, description="whether there is a learned branch")
    filters: int = Field(48, ge=1)
    hidden: int = Field(128, ge=1)
    embedding: int = Field(48, ge=1)
    dropout: float = Field(0.4, ge=0, lt=1)


class Placements(nn.Module):
    """Log posterior of the classes under a mixture over placements of the sensor (rotations of an armband, flips).

    Every component holds the population's class means and covariance as seen at one placement. With one component it is
    the population's linear discriminant. `tempering` makes up for features that are not independent given the class.
    """

    weight: Tensor
    linear: Tensor
    bias: Tensor

    def __init__(self, components: int, classes: int, features: int, tempering: float = 0.3) -> None:
        super().__init__()
        self.components, self.classes, self.tempering = components, classes, tempering
        self.register_buffer("weight", torch.zeros(features, components * features))
        self.register_buffer("linear", torch.zeros(features, components * classes))
        self.register_buffer("bias", torch.zeros(components, classes))

    def forward(self, z: Tensor) -> Tensor:
        """Log posterior `(n, K)` for features `(n, p)`."""
        features = z.shape[1]
        white = (z @ self.weight).reshape(-1, self.components, features)
        score = (z @ self.linear).reshape(-1, self.components, self.classes) + self.bias
        joint = self.tempering * (score - 0.5 * (white * white).sum(-1, keepdim=True))
        # The mixture weights are inside the bias, divided by the tempering.
        top = joint.amax(dim=(1, 2), keepdim=True)
        return torch.log(torch.exp(joint - top).sum(1) + 1e-30) + top.squeeze(1)


class LearnedBranch(nn.Module):
    """A small network trained episodically: learned filters' log power beside hand-made features, then an embedding.

    Classes are judged by the distance of the embedding to class prototypes (Snell 2017); the population's prototypes
    are weights, so that one metric serves the generic head and, in training, personal prototypes.
    """

    def __init__(self, cfg: SignalConfig, handmade: int) -> None:
        super().__init__()
        # At high rates a strided stem bounds the cost of a window: about 200 positions a second whatever the rate.
        stride = max(1, round(cfg.fs / 200))
        kernel = min(11 if stride == 1 else 4 * stride + 1, cfg.length)
        self.filters = nn.Conv1d(cfg.channels, cfg.filters, kernel, stride=stride, padding=kernel // 2)
        self.filter_norm = nn.LayerNorm(cfg.filters)
        self.trunk = nn.Sequential(
            nn.Linear(handmade + cfg.filters, cfg.hidden),
            nn.LayerNorm(cfg.hidden),
            nn.GELU(),
            nn.Dropout(cfg.dropout),
            nn.Linear(cfg.hidden, cfg.hidden),
            nn.LayerNorm(cfg.hidden),
            nn.GELU(),
            nn.Dropout(cfg.dropout),
            nn.Linear(cfg.hidden, cfg.embedding),
        )
        self.prototypes = nn.Parameter(torch.randn(cfg.classes, cfg.embedding))
        self.log_sharpness = nn.Parameter(torch.tensor(-0.5 * math.log(cfg.embedding)))
        self.log_pull = nn.Parameter(torch.zeros(()))

    def embed(self, x: Tensor, handmade: Tensor) -> Tensor:
        """Embedding `(n, e)` of scaled windows `(n, C, T)` and their standardised hand-made features."""
        y = self.filters(x - x.mean(-1, keepdim=True))
        power = torch.log((y * y).mean(-1) + 1e-2)
        embedding: Tensor = self.trunk(torch.cat([handmade, self.filter_norm(power)], 1))
        return embedding

    def logits(self, embedding: Tensor, prototypes: Tensor | None = None) -> Tensor:
        """Logits `(n, K)`: scaled negative squared distances, less what all classes share."""
        target = self.prototypes if prototypes is None else prototypes
        affine = 2 * embedding @ target.T - (target * target).sum(1)
        return affine * torch.exp(self.log_sharpness)


class SignalEncoder(nn.Module):
    """Raw windows `(n, C, T)` to features `(n, d)`: `[personal (p) | learned evidence (K) | placement evidence (K)]`.

    The first p features are hand-made ones, projected and whitened by the population: mean 0, covariance within a user
    near the identity; personal heads are fitted in them. The evidence features are log posteriors of the population's
    classes, by the learned branch and by the mixture over placements; the generic head weighs the two.
    """

    offset: Tensor
    scale: Tensor
    mean: Tensor
    deviation: Tensor
    projection: Tensor

    def __init__(self, cfg: SignalConfig) -> None:
        super().__init__()
        self.handmade = HandMade(cfg.channels, cfg.length, cfg.fs, cfg.modality)
        if cfg.personal > self.handmade.count:
            cfg = cfg.model_copy(update={"personal": self.handmade.count})
        self.default_cfg = cfg
        count = self.handmade.count
        self.register_buffer("offset", torch.zeros(cfg.channels, 1))
        self.register_buffer("scale", torch.ones(cfg.channels, 1))
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))
        self.register_buffer("projection", torch.zeros(count, cfg.personal))
        self.placements = Placements(cfg.components, cfg.classes, cfg.personal)
        self.learned = LearnedBranch(cfg, count) if cfg.learned else None

    @property
    def num_features(self) -> int:
        """Number of features d."""
        cfg = self.default_cfg
        return cfg.personal + cfg.classes * (2 if cfg.learned else 1)

    def scaled(self, x: Tensor) -> Tensor:
        """Windows in units of the population's scale, cut off far outside it."""
        return torch.clamp((x - self.offset) / self.scale, -LIMIT, LIMIT)

    def learned_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding and generic logits of the learned branch for raw windows; for training."""
        if self.learned is None:
            raise ValueError("This encoder was built without a learned branch.")
        x = self.scaled(x)
        embedding = self.learned.embed(x, (self.handmade(x) - self.mean) / self.deviation)
        return embedding, self.learned.logits(embedding)

    def forward_features(self, x: Tensor) -> Tensor:
        """Features `(n, d)` of raw windows `(n, C, T)`."""
        x = self.scaled(x)
        hand = self.handmade(x) - self.mean
        personal = hand @ self.projection
        parts = [personal]
        if self.learned is not None:
            parts.append(_evidence(self.learned.logits(self.learned.embed(x, hand / self.deviation))))
        parts.append(_evidence(self.placements(personal)))
        return torch.cat(parts, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features `(n, d)`; the same as `forward_features`."""
        return self.forward_features(x)


def _evidence(logits: Tensor) -> Tensor:
    return torch.clamp(torch.log_softmax(logits, 1), min=EVIDENCE_FLOOR)


@register("signal")
def _signal(**settings: object) -> SignalEncoder:
    return SignalEncoder(SignalConfig.model_validate(settings))
