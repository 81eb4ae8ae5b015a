"""From one feature space to another: an affine map, and what it does to a user's statistics.

A backbone upgrade computes other features of the same windows: z' instead of z. Where z' = A z + c + e, with an error e
that is uncorrelated with z, counts stay, a sum s of n windows becomes A s + n c, and a second moment M becomes
A M Aᵀ + A s cᵀ + c sᵀ Aᵀ + n c cᵀ + n R with R = E[e eᵀ]. With e = 0 that is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from models.heads.statistics import Statistics

Array = NDArray[np.float64]
TENSORS = ("weight", "offset", "residual")

LARGEST_MEAN_LOSS = 0.01
"""Accuracy that users may lose on average by the bridge, against heads refitted from their windows."""
LARGEST_LOSS = 0.05
"""Accuracy that one user may lose by it."""


class BridgeParity(BaseModel):
    """What heads are worth that came over a bridge, for population users who were left out of fitting it.

    Accuracies are means over users, in the new feature space, on windows that no head was fitted on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: int = Field(ge=1)
    bridged: float = Field(ge=0, le=1, description="heads refitted from statistics that came over the bridge")
    inputs: float = Field(ge=0, le=1, description="heads refitted from the windows themselves")
    generic: float = Field(ge=0, le=1, description="the shared head")
    mean_loss: float = Field(description="inputs less bridged")
    worst_loss: float = Field(description="the same of the user who loses most")
    harmed: int = Field(ge=0, description="users below the shared head by the bridge, and not by their windows")

    @property
    def passes(self) -> bool:
        """Whether heads may be moved over the bridge."""
        return self.mean_loss <= LARGEST_MEAN_LOSS and self.worst_loss <= LARGEST_LOSS and not self.harmed


@dataclass(frozen=True, slots=True)
class Bridge:
    """`z' ≈ weight z + offset`: weight `(q, p)`, offset `(q,)`; residual `(q, q)` is the covariance of what is left.

    p and q are the features that personal heads are fitted in, the first of each space.
    """

    weight: Array
    offset: Array
    residual: Array

    def features(self, z: NDArray[np.floating]) -> Array:
        """Map features `(n, p)` to `(n, q)`."""
        return np.asarray(z @ self.weight.T + self.offset, np.float64)

    def statistics(self, stats: Statistics) -> Statistics:
        """Map the statistics of a user's windows.

        Raises:
            ValueError: they are of another number of features.
        """
        if stats.dim != self.weight.shape[1]:
            raise ValueError(f"the bridge takes {self.weight.shape[1]} features; the statistics have {stats.dim}")
        return Statistics(
            stats.repetitions,
            stats.count,
            stats.total @ self.weight.T + stats.count[..., None] * self.offset,
            self._moments(stats.class_moment, stats.total.sum(1), stats.count.sum(1)),
            self._moments(stats.repetition_moment, stats.total.sum(0), stats.count.sum(0)),
            stats.seen_before,
            stats.sent,
        )

    def _moments(self, moment: Array, total: Array, count: Array) -> Array:
        """Map second moments `(m, p, p)` of windows with these sums `(m, p)` and counts `(m,)`."""
        mapped = self.weight @ moment @ self.weight.T
        cross = (total @ self.weight.T)[:, :, None] * self.offset
        constant = np.outer(self.offset, self.offset) + self.residual
        return np.asarray(mapped + cross + cross.transpose(0, 2, 1) + count[:, None, None] * constant)


@dataclass(frozen=True, slots=True)
class Pairs:
    """One person's windows in both spaces, as least squares sees them; each is a mean over groups or windows.

    Attributes:
        means: second moments of the groups' (class, repetition) means in the older space and 1, `(p + 1, p + 1)`.
        means_both: the same of these and the newer space, `(p + 1, q)`.
        spread, spread_both, spread_new: second moments around the groups' means `(p, p)`, `(p, q)`, `(q, q)`.
    """

    means: Array
    means_both: Array
    spread: Array
    spread_both: Array
    spread_new: Array

    @classmethod
    def of(cls, old: NDArray[np.floating], new: NDArray[np.floating], group: NDArray[np.integer]) -> Pairs:
        """Summarise the same windows in both spaces, `old (n, p)` and `new (n, q)`, and the group of each `(n,)`."""
        groups, at = np.unique(group, return_inverse=True)
        means = []
        for z in (old, new):
            total = np.zeros((len(groups), z.shape[1]))
            np.add.at(total, at, z)
            means.append(total / np.bincount(at)[:, None])
        x, y = np.pad(means[0], ((0, 0), (0, 1)), constant_values=1.0), means[1]
        u, v = old - means[0][at], new - means[1][at]
        g, n = len(groups), len(at)
        return cls(x.T @ x / g, x.T @ y / g, u.T @ u / n, u.T @ v / n, v.T @ v / n)


def fit_bridge(people: Sequence[Pairs], ridge: float = 1e-3, between: float = 0.5) -> Bridge:
    """Fit the map by least squares on people who count the same.

    Two things must come over well: the means of (class, repetition), which make the prototypes, and the spread around
    them. `between` is the weight of the means in the sum of squares; the rest is the spread's. `ridge` is relative to
    the mean square of the old features; the offset is free of it, and is that of the means (`between` > 0).
    """
    p = len(people[0].spread)
    gram = between * np.mean([m.means for m in people], 0)
    target = between * np.mean([m.means_both for m in people], 0)
    spread, both = np.mean([m.spread for m in people], 0), np.mean([m.spread_both for m in people], 0)
    gram[:p, :p] += (1 - between) * spread
    target[:p] += (1 - between) * both
    # The offset is eliminated, so that the ridge is about the means of the features and not about zero.
    centre, mean = gram[:p, p] / gram[p, p], target[p] / gram[p, p]
    square = gram[:p, :p] - gram[p, p] * np.outer(centre, centre)
    square[np.diag_indices(p)] += ridge * np.trace(square) / p
    weight = np.linalg.solve(square, target[:p] - gram[p, p] * np.outer(centre, mean)).T
    left = np.mean([m.spread_new for m in people], 0) - weight @ both - both.T @ weight.T + weight @ spread @ weight.T
    return Bridge(weight, mean - weight @ centre, np.asarray((left + left.T) / 2))


def to_bytes(bridge: Bridge) -> bytes:
    """Encode as safetensors."""
    return safetensors.numpy.save({name: np.ascontiguousarray(getattr(bridge, name), np.float64) for name in TENSORS})


def from_bytes(data: bytes) -> Bridge:
    """Decode what `to_bytes` wrote.

    Raises:
        ValueError: a tensor is missing, of the wrong shape or not finite.
    """
    try:
        tensors = safetensors.numpy.load(data)
        weight, offset, residual = (tensors[name].astype(np.float64) for name in TENSORS)
    except (safetensors.SafetensorError, KeyError) as e:
        raise ValueError(f"not a bridge: {e}") from e
    q = len(offset)
    if weight.ndim != 2 or len(weight) != q or offset.ndim != 1 or residual.shape != (q, q):
        raise ValueError(f"a bridge's weight {weight.shape}, offset {offset.shape}, residual {residual.shape} disagree")
    if not all(np.isfinite(t).all() for t in (weight, offset, residual)):
        raise ValueError("the bridge holds values that are not finite")
    return Bridge(weight, offset, residual)
