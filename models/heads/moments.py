"""Per-user normalisation: a stream's features are given the moments that the calibrated head expects.

The comparison that adaptation of class means has to beat. It needs no decisions, and it takes the stream for
class-balanced: on any other it moves every window by what is only the mixture of classes.
Sources: AdaBN, Li et al. 2016 (first moments per domain); CORAL, Sun et al. 2016 (whitened with the stream's
covariance, coloured with the expected one).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.heads.adaptation import Anchor

__all__ = ["MomentAligner"]

Array = NDArray[np.float64]


class MomentAligner:
    """Aligns personal features with the calibrated class means, by the moments of the windows seen so far.

    Args:
        anchor: the calibrated head.
        second: whether the covariance is aligned too (CORAL), not only the mean.
    """

    def __init__(self, anchor: Anchor, *, second: bool = False) -> None:
        # The shared head may look at other features alone; without labels the population's discriminant decides.
        self.head = anchor.head if anchor.stats.n.any() else anchor.discriminant
        self._wanted = anchor.means.mean(0)
        self._window = anchor.prior.hyper.window
        p = anchor.prior.personal
        between = anchor.means - self._wanted
        self._covariance = anchor.covariance + between.T @ between / len(between)
        self._second = second
        self._count, self._total, self._square = 0.0, np.zeros(p), np.zeros((p, p))

    def observe(self, z: NDArray[np.floating]) -> None:
        """Take features `(n, d)` into the moments."""
        own = np.asarray(z[:, : len(self._total)], np.float64)
        self._count += len(own)
        self._total += own.sum(0)
        if self._second:
            self._square += own.T @ own

    def aligned(self, z: NDArray[np.floating]) -> Array:
        """Features `(n, d)` with the personal ones aligned: fully after many windows, not at all before the first."""
        out = np.array(z, np.float64)
        if not self._count:
            return out
        p, mean = len(self._total), self._total / self._count
        share = self._count / (self._count + 10 * self._window)
        centre = (1 - share) * self._wanted + share * mean
        out[:, :p] = self._wanted + (out[:, :p] - centre) @ self._map(mean)
        return out

    def _map(self, mean: Array) -> Array:
        """What deviations from the stream's mean are multiplied by, `(p, p)`.

        The expected covariance counts as many independent windows as there are features.
        """
        if not self._second:
            return np.eye(len(mean))
        n, p = self._count / self._window, len(mean)
        found = self._square / self._count - np.outer(mean, mean)
        found = (n * found + p * self._covariance) / (n + p)
        return _power(found, -0.5) @ _power(self._covariance, 0.5)


def _power(covariance: Array, exponent: float) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.maximum(values, 1e-9 * values[-1]) ** exponent) @ vectors.T)
