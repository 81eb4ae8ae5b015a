"""The population prior of a regression: what training knows of targets and users it has never seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from models.heads.head import Head

Array = NDArray[np.float64]
TENSORS = ("weight", "bias", "second_moment", "residual_variance")
MOST_FEATURES = 256
"""Heads of targets are fitted in all features, and their statistics grow with the square of these."""


class RegressionEvidence(BaseModel):
    """How personal heads fared on left-out population users after a given number of labelled windows.

    The gain is the shared head's mean squared error less the personal one's, in units of the residual variance (of the
    shared head on people it does not know, so that its error is 1 on average); `lower` is the lower end of its
    one-sided 95 % interval over users.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    windows: int = Field(ge=1, description="labelled windows in all")
    repetitions: int = Field(ge=1, description="repetitions they come from")
    users: int = Field(ge=2)
    gain: float
    lower: float


class RegressionSettings(BaseModel):
    """How heads of targets are fitted, chosen by leave-one-user-out on the population (never on a served user).

    `windows`: labelled windows that the population's solution counts for (`fit_regression`). `farthest`: mean squared
    error of the shared head on the left-out user whom it suited least, in units of the residual variance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    windows: float = Field(gt=0, allow_inf_nan=False)
    farthest: float = Field(ge=0, allow_inf_nan=False)
    evidence: tuple[RegressionEvidence, ...] = ()


@dataclass(frozen=True, slots=True)
class RegressionPrior:
    """The population's solution for T targets in one feature space of d features.

    Attributes:
        targets: the T names, in the order of every array.
        generic: the shared head, weight `(T, d)` and bias `(T,)`, in the targets' own units.
        second_moment: `(d + 1, d + 1)`, mean of (z, 1)(z, 1)ᵀ, every user weighing the same.
        residual_variance: `(T,)`, mean squared error of the shared head on people it does not know.
        settings: how heads are fitted.
    """

    targets: tuple[str, ...]
    generic: Head
    second_moment: Array
    residual_variance: Array
    settings: RegressionSettings

    @property
    def dim(self) -> int:
        """Number of features d."""
        return int(self.generic.weight.shape[1])

    def errors(self, values: NDArray[np.floating], t: NDArray[np.floating]) -> Array:
        """Squared error of each row `(n, T)`, in units of the residual variance, its mean over targets `(n,)`."""
        return np.asarray(((values - t) ** 2 / self.residual_variance).mean(1))

    def evidence_for(self, windows: float, repetitions: float) -> RegressionEvidence | None:
        """Return the record with the highest lower bound up to the windows and repetitions given, if there is one."""
        fitting = [e for e in self.settings.evidence if e.windows <= windows and e.repetitions <= repetitions]
        return max(fitting, key=lambda e: e.lower, default=None)


def to_bytes(prior: RegressionPrior) -> bytes:
    """Encode the arrays as safetensors (names of targets and settings travel in the manifest)."""
    arrays = prior.generic.weight, prior.generic.bias, prior.second_moment, prior.residual_variance
    return safetensors.numpy.save(
        {name: np.ascontiguousarray(a, np.float64) for name, a in zip(TENSORS, arrays, strict=True)}
    )


def from_bytes(data: bytes, targets: tuple[str, ...], settings: RegressionSettings) -> RegressionPrior:
    """Decode what `to_bytes` wrote.

    Raises:
        ValueError: a tensor is missing, of the wrong shape, not finite, or no such thing as its name says.
    """
    try:
        tensors = safetensors.numpy.load(data)
    except safetensors.SafetensorError as e:
        raise ValueError(f"not a prior: {e}") from e
    missing = [name for name in TENSORS if name not in tensors]
    if missing:
        raise ValueError(f"the prior of a regression lacks {', '.join(missing)}")
    count, d = len(targets), tensors["weight"].shape[-1] if tensors["weight"].ndim else 0
    if not 1 <= d <= MOST_FEATURES:
        raise ValueError(
            f"the prior's weight is of {d} features; a regression has 1 to {MOST_FEATURES}: project them in the graph"
        )
    shapes = {
        "weight": (count, d),
        "bias": (count,),
        "second_moment": (d + 1, d + 1),
        "residual_variance": (count,),
    }
    for name, shape in shapes.items():
        if tensors[name].shape != shape or tensors[name].dtype.kind != "f":
            raise ValueError(f"the prior's {name} has shape {tensors[name].shape}; floats {shape} were expected")
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"the prior's {name} holds values that are not finite")
    weight, bias, moment, variance = (tensors[name].astype(np.float64) for name in TENSORS)
    if not (variance > 0).all():
        raise ValueError("the prior's residual_variance must be above 0 for every target")
    if not np.allclose(moment, moment.T, rtol=1e-6) or moment[d, d] <= 0 or (np.diag(moment) < 0).any():
        raise ValueError("the prior's second_moment is none: it must be symmetric, its diagonal not negative")
    return RegressionPrior(targets, Head(weight, bias), moment, variance, settings)
