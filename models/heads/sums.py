"""What heads are fitted from, however it was come by: counts and sums of windows, and one second moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Sums:
    """What heads are fitted from: counts `(K, R)` and sums `(K, R, d)` of windows, and their second moment `(d, d)`."""

    __slots__ = ()
    count: Array
    total: Array

    def pooled(self) -> Array:
        """Sum of z zᵀ over all windows, `(d, d)`."""
        raise NotImplementedError

    @property
    def classes(self) -> int:
        """Number of classes K, seen or not."""
        return int(self.count.shape[0])

    @property
    def dim(self) -> int:
        """Number of features d."""
        return int(self.total.shape[2])

    @property
    def n(self) -> Array:
        """Windows per class, `(K,)`."""
        return np.asarray(self.count.sum(1))

    @property
    def repetitions_seen(self) -> Array:
        """Repetitions per class, `(K,)`."""
        return np.asarray((self.count > 0).sum(1), np.float64)

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Whether a class has any window, `(K,)`."""
        return self.n > 0

    @property
    def means(self) -> Array:
        """Mean features per class, `(K, d)`; zero for a class without windows."""
        return np.asarray(self.total.sum(1) / np.where(self.n > 0, self.n, 1.0)[:, None])

    def scatter(self) -> Array:
        """Pooled scatter Σ (z − m_cr)(z − m_cr)ᵀ around the means of each class and repetition, `(d, d)`."""
        total = self.total.reshape(-1, self.dim)
        count = self.count.reshape(-1)
        means = total / np.where(count > 0, count, 1.0)[:, None]
        return np.asarray(self.pooled() - total.T @ means)

    @property
    def degrees(self) -> float:
        """Degrees of freedom of `scatter`: windows less the means taken out."""
        return float(self.count.sum() - (self.count > 0).sum())


@dataclass(frozen=True, slots=True)
class Rest(Sums):
    """The sums of some windows, their second moment over all classes and repetitions only: enough for most fits."""

    count: Array
    total: Array
    moment: Array

    def pooled(self) -> Array:
        """Sum of z zᵀ over all windows, `(d, d)`."""
        return self.moment
