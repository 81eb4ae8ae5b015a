"""Heads for regression targets (joint angles, scores): the same affine form, from sums that add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.head import Head

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RegressionStatistics:
    """Sums over windows with features z `(d,)` and targets t `(T,)`; they add, and a part is taken out by a difference.

    Attributes:
        count: number of windows.
        moment: `(d + 1, d + 1)` sum of (z, 1)(z, 1)ᵀ.
        cross: `(d + 1, T)` sum of (z, 1) tᵀ.
    """

    count: float
    moment: Array
    cross: Array

    @classmethod
    def empty(cls, dim: int, targets: int) -> RegressionStatistics:
        """Return the sums over no windows of `dim` features and `targets` targets."""
        return cls(0.0, np.zeros((dim + 1, dim + 1)), np.zeros((dim + 1, targets)))

    @classmethod
    def of(cls, z: NDArray[np.floating], t: NDArray[np.floating]) -> RegressionStatistics:
        """Sum over features `z (n, d)` with targets `t (n, T)`.

        Raises:
            ValueError: as many targets as windows are needed, all finite.
        """
        z, t = np.asarray(z, np.float64), np.asarray(t, np.float64)
        if t.ndim != 2 or len(t) != len(z):
            raise ValueError(f"targets are one row a window: ({len(z)}, targets) was expected, not {t.shape}")
        if not (np.isfinite(z).all() and np.isfinite(t).all()):
            raise ValueError("features and targets must be finite; some are not")
        x = np.concatenate([z, np.ones((len(z), 1))], 1)
        return cls(float(len(z)), x.T @ x, x.T @ t)

    def __add__(self, other: RegressionStatistics) -> RegressionStatistics:
        """Merge two sets of windows."""
        if self.cross.shape != other.cross.shape:
            raise ValueError(
                f"sums of {self._words()} cannot be merged with sums of {other._words()}: the spaces must be the same"
            )
        return RegressionStatistics(self.count + other.count, self.moment + other.moment, self.cross + other.cross)

    def __sub__(self, other: RegressionStatistics) -> RegressionStatistics:
        """Leave windows out that are in the sum."""
        return self + RegressionStatistics(-other.count, -other.moment, -other.cross)

    def scaled(self, factor: float) -> RegressionStatistics:
        """Return the same windows, each counting `factor` of what it did."""
        return RegressionStatistics(self.count * factor, self.moment * factor, self.cross * factor)

    def _words(self) -> str:
        return f"{self.cross.shape[0] - 1} features and {self.cross.shape[1]} targets"


def fit_regression(stats: RegressionStatistics, generic: Head, second_moment: Array, *, windows: float = 30.0) -> Head:
    """Fit `min Σ‖W z + b − t‖² + windows · E‖(W − W₀) z + b − b₀‖²`: ridge pulled towards the population's solution.

    The pull is measured on the population's features, so it knows no scale: `windows` labelled windows weigh as much as
    the population does. Without windows the generic head comes back.

    Args:
        stats: of the user's windows.
        generic: the population's regression, weight `(T, d)` and bias `(T,)`.
        second_moment: `(d + 1, d + 1)`, mean of (z, 1)(z, 1)ᵀ over the population.
        windows: effective number of windows that the population's solution counts for; above 0.

    Returns:
        A head with one row a target, `W z + b` being the targets themselves.

    Source: L2-SP, Xuhong et al. 2018, in the metric of the features; multi-output ridge in closed form.

    Raises:
        ValueError: `windows` is not positive, or shapes do not fit.
    """
    d, targets = stats.cross.shape[0] - 1, stats.cross.shape[1]
    if generic.weight.shape != (targets, d) or second_moment.shape != (d + 1, d + 1):
        raise ValueError(
            f"the statistics have {d} features and {targets} targets; a generic head of ({targets}, {d}) and a second "
            f"moment of ({d + 1}, {d + 1}) were expected, not {generic.weight.shape} and {second_moment.shape}"
        )
    if not windows > 0:
        raise ValueError(f"windows must be above 0, not {windows:g}")
    start = np.concatenate([generic.weight, generic.bias[:, None]], 1).T
    # Unit diagonal first, so that features of very different scales lose no digits in the ridge.
    gram = stats.moment + windows * second_moment
    scale = 1 / np.sqrt(np.maximum(np.diag(gram), 1e-300))
    unit = gram * scale * scale[:, None]
    unit[np.diag_indices(d + 1)] += 1e-10
    residual = stats.cross - stats.moment @ start
    step = np.linalg.solve(unit, residual * scale[:, None]) * scale[:, None]
    theta = start + step
    return Head(theta[:d].T.copy(), theta[d].copy())
