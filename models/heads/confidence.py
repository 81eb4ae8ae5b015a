"""How sure a head may be: its calibration error on held-out windows, and floors for sets of labels with a coverage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.folds import HeldOut
from models.heads.head import softmax
from models.heads.scores import calibration_error

Array = NDArray[np.float64]

LEVELS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.875, 0.9, 0.925, 0.95, 0.975, 0.99)
"""Coverages for which floors are kept; one in between takes the next higher one's."""


@dataclass(frozen=True, eq=False)
class Confidence:
    """What held-out windows tell of the probabilities of a head.

    Attributes:
        windows: how many there are.
        before: expected calibration error with the bundle's temperature.
        after: the same with the temperature fitted here.
        temperature: that temperature, on top of the bundle's.
        floors: `(L,)` least probability of a label in a set, by coverage of `LEVELS`.
    """

    windows: int
    before: float
    after: float
    temperature: float
    floors: Array


def measure(held: HeldOut, temperature: float, weight: float) -> Confidence:
    """Measure the blend with a share `weight` of the personal head, whose held-out logits carry `temperature`."""

    def probabilities(t: float) -> Array:
        logits = (1 - weight) * held.shared + weight * held.candidate * (temperature / t)
        return np.asarray(softmax(logits), np.float64)

    after = probabilities(temperature)
    return Confidence(
        len(held.y),
        calibration_error(probabilities(1.0), held.y),
        calibration_error(after, held.y),
        temperature,
        set_floors(after, held.y),
    )


def set_floors(probabilities: NDArray[np.floating], y: NDArray[np.integer]) -> Array:
    """Return for each of `LEVELS` the floor of split-conformal sets {c: p_c ≥ floor}, `(L,)`; 0 takes every label.

    Args:
        probabilities: `(n, K)` by heads that were not fitted on these windows.
        y: true classes `(n,)`.

    The floor is the k-th largest probability of a true class, k = ⌈(n + 1) coverage⌉; beyond n windows it is 0.
    Source: Sadinle, Lei and Wasserman 2019 (least ambiguous sets); Vovk et al. 2005.
    """
    true = np.sort(probabilities[np.arange(len(y)), y])[::-1]
    ranks = np.ceil((len(true) + 1) * np.array(LEVELS) - 1e-9).astype(int)
    return np.array([true[k - 1] if k <= len(true) else 0.0 for k in ranks])


def level_of(coverage: float) -> int:
    """Return which of `LEVELS` serves a coverage: the least that is not below it.

    Raises:
        ValueError: it is not above 0, or is beyond the last level.
    """
    if not 0 < coverage <= LEVELS[-1]:
        raise ValueError(f"a coverage is above 0 and at most {LEVELS[-1]}, not {coverage!r}")
    return int(np.searchsorted(LEVELS, coverage - 1e-9))
