"""How sure a head may be: its calibration error on held-out windows, and floors for sets of labels with a coverage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.folds import HeldOut
from models.heads.head import softmax
from models.heads.scores import calibration_error

Array = NDArray[np.float64]

LEVELS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.875, 0.9, 0.925, 0.95, 0.975, 0.99)
"""Coverages for which floors are kept; one in between takes the next higher one's."""
ENOUGH_REPETITIONS = 3
"""Held-out repetitions from which a user's own windows alone set the floors."""


@dataclass(frozen=True, eq=False)
class Confidence:
    """What held-out windows tell of the probabilities of a head.

    Attributes:
        windows: how many there are.
        before: expected calibration error with the bundle's temperature.
        after: the same with the temperature fitted here.
        temperature: that temperature, on top of the bundle's.
        floors: `(L,)` least probability of a label in a set, by coverage of `LEVELS`; None where one repetition is all
            there is to tell it.
    """

    windows: int
    before: float
    after: float
    temperature: float
    floors: Array | None


def measure(held: HeldOut, temperature: float, weight: float, population: Sequence[float] = ()) -> Confidence:
    """Measure the blend with a share `weight` of the personal head, whose held-out logits carry `temperature`.

    The floors of few repetitions are never above those of the `population`, where the bundle has some: what one sitting
    has in common passes for certainty (docs/heads.md has the figures that this was chosen by).
    """

    def probabilities(t: float) -> Array:
        logits = (1 - weight) * held.shared + weight * held.candidate * (temperature / t)
        return np.asarray(softmax(logits), np.float64)

    after = probabilities(temperature)
    floors: Array | None = set_floors(after, held.y)
    if held.repetitions < ENOUGH_REPETITIONS:
        if len(population) == len(LEVELS):
            floors = np.minimum(set_floors(after, held.y), population)
        elif held.repetitions < 2:
            floors = None
    before = calibration_error(probabilities(1.0), held.y)
    return Confidence(len(held.y), before, calibration_error(after, held.y), temperature, floors)


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


def population_floors(people: Sequence[tuple[NDArray[np.floating], NDArray[np.integer]]]) -> Array:
    """Return floors `(L,)` for the windows of a stranger; every person weighs the same.

    Args:
        people: probabilities `(n, K)` by a head that knows nothing of the person, and true classes `(n,)`.
    """
    true = np.concatenate([p[np.arange(len(y)), y] for p, y in people])
    weight = np.concatenate([np.full(len(y), 1 / len(y)) for _, y in people])
    order = np.argsort(-true)
    reached = np.cumsum(weight[order]) / len(people)
    where = np.searchsorted(reached, np.array(LEVELS) - 1e-9)
    return np.asarray(true[order][np.minimum(where, len(true) - 1)])


def level_of(coverage: float) -> int:
    """Return which of `LEVELS` serves a coverage: the least that is not below it.

    Raises:
        ValueError: it is not above 0, or is beyond the last level.
    """
    if not 0 < coverage <= LEVELS[-1]:
        raise ValueError(f"a coverage is above 0 and at most {LEVELS[-1]}, not {coverage!r}")
    return int(np.searchsorted(LEVELS, coverage - 1e-9))
