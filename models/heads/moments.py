"""Per-user normalisation: a stream's features are moved to the mean that the calibrated head expects.

The comparison that adaptation of class means has to beat. It needs no decisions, and it takes the stream for
class-balanced: on any other it moves every window by what is only the mixture of classes.
Sources: AdaBN, Li et al. 2016 (first moments per domain); CORAL, Sun et al. 2016 (second moments, which on hand-made
features of one person are too few to estimate and are left as they are).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.heads.adaptation import Anchor

__all__ = ["MomentAligner"]


class MomentAligner:
    """Aligns personal features with the calibrated class means, by the mean of the windows seen so far."""

    def __init__(self, anchor: Anchor) -> None:
        # The shared head may look at other features alone; without labels the population's discriminant decides.
        self.head = anchor.head if anchor.stats.n.any() else anchor.discriminant
        self._wanted = anchor.means.mean(0)
        self._pull = anchor.prior.hyper.window * 10
        self._count, self._total = 0.0, np.zeros(anchor.prior.personal)

    def observe(self, z: NDArray[np.floating]) -> None:
        """Take features `(n, d)` into the mean."""
        self._count += len(z)
        self._total += z[:, : len(self._total)].sum(0)

    def aligned(self, z: NDArray[np.floating]) -> NDArray[np.float64]:
        """Features `(n, d)` with the personal ones moved: fully after many windows, not at all before the first."""
        out = np.array(z, np.float64)
        if self._count:
            share = self._count / (self._count + self._pull)
            out[:, : len(self._total)] += share * (self._wanted - self._total / self._count)
        return out
