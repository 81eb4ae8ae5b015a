"""What a population's features differ by, in closed form: by window, by repetition, by person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.heads.statistics import Statistics

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


class Spread(NamedTuple):
    """Class means over people `(K, d)`, and covariances `(d, d)` pooled over classes.

    `within` is of windows about the mean of their repetition, `between` of people's class means; `moves` is the sum of
    squares of repetitions about their person's class mean, of `repeats` degrees of freedom.
    """

    means: Array
    within: Array
    between: Array
    moves: Array
    repeats: int


def spread(people: Sequence[tuple[NDArray[np.floating], Labels, Labels]], classes: int) -> Spread:
    """Estimate it from each person's features `(n, d)`, classes `(n,)` and repetitions `(n,)`."""
    d = people[0][0].shape[1]
    own, seen = np.zeros((len(people), classes, d)), np.zeros((len(people), classes), bool)
    within, degrees, jitter = np.zeros((d, d)), 0.0, list[Array]()
    for number, (z, y, repetition) in enumerate(people):
        stats = Statistics.of(z, y, repetition, classes)
        within += stats.scatter()
        degrees += stats.degrees
        by_repetition = stats.total / np.maximum(stats.count, 1.0)[..., None]
        own[number] = by_repetition.sum(1) / np.maximum(stats.repetitions_seen, 1.0)[:, None]
        seen[number] = stats.seen
        jitter.append((by_repetition - own[number][:, None])[stats.count > 0])
    means = own.sum(0) / np.maximum(seen.sum(0), 1)[:, None]
    away, moves = (own - means)[seen], np.concatenate(jitter)
    within = within / max(degrees, 1.0)
    within += 1e-6 * float(np.trace(within)) / d * np.eye(d)
    between = away.T @ away / max(len(away) - classes, 1)
    return Spread(means, within, between, moves.T @ moves, len(moves) - int(seen.sum()))
