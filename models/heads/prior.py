"""The population prior: what training knows about users it has never seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Array = NDArray[np.float64]
TENSORS = ("generic_weight", "generic_bias", "means", "within", "between", "repetition", "whitening")


class Evidence(BaseModel):
    """How personal heads fared on left-out population users after a given number of labelled windows.

    The gain is personal minus generic accuracy, in [−1, 1]; `lower` is the lower end of its one-sided 95 % interval
    over users; `floor` is the lowest accuracy any left-out user had.
    """

    model_config = ConfigDict(frozen=True)

    windows: int = Field(ge=1, description="labelled windows a class")
    repetitions: int = Field(ge=1, description="repetitions they come from")
    users: int = Field(ge=1)
    gain: float
    lower: float
    floor: float


class HyperParameters(BaseModel):
    """Settings of the default head, chosen by leave-one-user-out on the population (never on a served user).

    `between`, `repetition` and `window` scale the prior's covariances; `shrinkage` is the number of effective windows
    at which the user's own covariance weighs as much as the population's; `offset` is the share of the user's common
    offset given to a class they have not shown; `temperature` divides the logits of personal heads.
    """

    model_config = ConfigDict(frozen=True)

    between: float = Field(1.0, gt=0)
    repetition: float = Field(1.0, ge=0)
    window: float = Field(10.0, gt=0)
    shrinkage: float = Field(100.0, ge=0)
    offset: float = Field(0.0, ge=0, le=1)
    temperature: float = Field(1.0, gt=0)
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Prior:
    """Generic head, class means and covariances of the population, in one feature space.

    Attributes:
        labels: the K class names, in the order of every array.
        generic_weight: `(K, d)`, and generic_bias: `(K,)`: the shared head, its temperature folded in.
        means: `(K, d)` class means over users.
        within: `(d, d)` covariance of windows within (user, class).
        between: `(d, d)` covariance of users' class means around `means`.
        repetition: `(d, d)` covariance of repetition means within (user, class).
        whitening: `(d, d)` matrix A with A within Aᵀ = I.
        hyper: settings of the default head.
    """

    labels: tuple[str, ...]
    generic_weight: Array
    generic_bias: Array
    means: Array
    within: Array
    between: Array
    repetition: Array
    whitening: Array
    hyper: HyperParameters = HyperParameters()  # noqa: RUF009 - frozen

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return len(self.labels)

    @property
    def dim(self) -> int:
        """Number of features d."""
        return int(self.means.shape[1])

    def evidence_for(self, windows: float, repetitions: float) -> Evidence | None:
        """Return the population's record at the largest shot count not above the one given, if there is one."""
        fitting = [e for e in self.hyper.evidence if e.windows <= windows and e.repetitions <= repetitions]
        return max(fitting, key=lambda e: (e.repetitions, e.windows), default=None)


def to_bytes(prior: Prior) -> bytes:
    """Encode the arrays as safetensors (labels and hyper-parameters travel in the manifest)."""
    return safetensors.numpy.save({name: np.ascontiguousarray(getattr(prior, name), np.float64) for name in TENSORS})


def from_bytes(data: bytes, labels: tuple[str, ...], hyper: HyperParameters) -> Prior:
    """Decode what `to_bytes` wrote.

    Raises:
        ValueError: a tensor is missing, of the wrong shape or not finite.
    """
    try:
        tensors = safetensors.numpy.load(data)
    except safetensors.SafetensorError as e:
        raise ValueError(f"not a prior: {e}") from e
    missing = [name for name in TENSORS if name not in tensors]
    if missing:
        raise ValueError(f"the prior lacks {', '.join(missing)}")
    k, d = len(labels), tensors["means"].shape[-1]
    shapes = {"generic_weight": (k, d), "generic_bias": (k,), "means": (k, d)}
    for name in TENSORS:
        want = shapes.get(name, (d, d))
        if tensors[name].shape != want:
            raise ValueError(f"the prior's {name} has shape {tensors[name].shape}; {want} was expected")
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"the prior's {name} holds values that are not finite")
    return Prior(labels=labels, hyper=hyper, **{name: tensors[name].astype(np.float64) for name in TENSORS})
