"""Drift: how far a stream lies from what a user's calibration leads to expect, without labels."""

from __future__ import annotations

import numpy as np

from models.heads.adaptation import Anchor, Passages

__all__ = ["ADVISED", "drift"]

ADVISED = 1.2
"""Drift from which a new calibration is advised. On the Myo population, left-out people's own later repetitions stay
below 1.15 (median 0.7), features half as large again lie above 1.3 (docs/adaptation.md)."""


def drift(anchor: Anchor, passages: Passages) -> float:
    """Distance of passages from the nearest calibrated class mean: the mean over windows of d² per feature.

    In units of what a passage varies by when nothing has changed: the uncertainty of the class mean, the covariance of
    repetitions, and that of windows. NaN without passages.
    """
    if not len(passages):
        return float("nan")
    prior = anchor.prior
    z = passages.mean[:, : prior.personal]
    nearest = np.full(len(z), np.inf)
    for kind in np.unique(anchor.kind):
        of_kind = anchor.kind == kind
        spread = anchor.own[of_kind][0] + prior.repetition + prior.within
        white = np.linalg.cholesky(np.linalg.inv(spread))
        apart = ((z @ white)[:, None] - anchor.means[of_kind] @ white) ** 2
        nearest = np.minimum(nearest, apart.sum(2).min(1))
    return float(np.average(nearest, weights=passages.count)) / prior.personal
