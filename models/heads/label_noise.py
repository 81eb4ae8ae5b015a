"""Labels that contradict the others: found by expectation–maximisation, and left out of the fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.fit import fit_map
from models.heads.head import Head, softmax
from models.heads.prior import Prior
from models.heads.statistics import Statistics
from models.heads.sums import Sums

Array = NDArray[np.float64]

NOTICED = 0.08
"""Share of wrong labels from which windows are left out. Below it, what a few wrong labels cost is less than doubt."""
ITERATIONS, FIRST_LOOK = 6, 1024
SHARE_BEFORE, SHARE_LEAST, SHARE_MOST = 0.3, 0.02, 0.85


@dataclass(frozen=True, eq=False)
class Trust:
    """Which windows' labels agree with the rest: `kept (n,)`, and the share of labels estimated to be `wrong`.

    `noticed`: so many are that they are left out; else all are kept. `head`: the default one, of all windows.
    """

    kept: NDArray[np.bool_]
    wrong: float
    noticed: bool
    head: Head | None = None


def trusted(
    z: Array,
    y: NDArray[np.integer],
    repetition: NDArray[np.integer],
    prior: Prior,
    earlier: Statistics | None = None,
    whole: Sums | None = None,
) -> Trust:
    """Tell labels that agree with the others from those that do not.

    A label is right with probability 1 − q and else any other class; the classes are the default head's Gaussians,
    fitted from all windows, each weighing the probability that its label is right. `earlier` windows count as right.
    With fewer than `NOTICED` wrong labels at the first look, all are kept, and nothing is iterated.
    Source: a Gaussian model of labels at random, Lawrence & Schölkopf 2001; Bouveyron & Girard 2009.

    Args:
        z: features `(n, d)`.
        y: labels `(n,)`.
        repetition: repetition ids `(n,)`, which `earlier` does not have.
        prior: at the placement of the sensor.
        earlier: statistics of windows before these.
        whole: sums of all windows, where they are known already.
    """
    everything = np.ones(len(y), bool)
    fitted_in = z[:, : prior.personal]

    def fitted(weight: Array | None) -> Head:
        own = Statistics.of(fitted_in, y, repetition, prior.classes, weight)
        return fit_map(own if earlier is None else earlier + own, prior)

    head = fitted(None) if whole is None else fit_map(whole, prior)
    # Neighbours share samples: some of them are enough for a first look.
    some = np.unique(np.linspace(0, len(y) - 1, min(len(y), FIRST_LOOK)).astype(int)) if len(y) else np.arange(0)
    weight, wrong = _right(head, z[some], y[some], prior, SHARE_BEFORE)
    if wrong < NOTICED:
        return Trust(everything, wrong, False, head)
    weight, wrong = _right(head, z, y, prior, SHARE_BEFORE)
    for _ in range(ITERATIONS - 1):
        weight, wrong = _right(fitted(weight), z, y, prior, wrong)
    kept = weight >= 0.5
    if wrong < NOTICED or not kept.any():
        return Trust(everything, wrong, False, head)
    return Trust(kept, wrong, True)


def _right(head: Head, z: Array, y: NDArray[np.integer], prior: Prior, wrong: float) -> tuple[Array, float]:
    """Probability that each label is right if a share `wrong` is not, and the share that follows from it."""
    # Without the temperature, which is made for answers: here only the order of magnitude matters.
    likely = np.asarray(softmax(head.logits(z) * prior.hyper.temperature))[np.arange(len(y)), y]
    right = (1 - wrong) * likely
    weight = right / (right + wrong / (prior.classes - 1) * (1 - likely) + 1e-300)
    return weight, float(np.clip(1 - weight.mean(), SHARE_LEAST, SHARE_MOST))
