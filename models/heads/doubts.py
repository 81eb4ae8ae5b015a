"""What the population tells of a calibration that held-out windows cannot: exchanged labels, another sensor, a turn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.heads.prior import Prior
from models.heads.statistics import Statistics

Array = NDArray[np.float64]

OFF_DISTRIBUTION = 3.0
"""Mean squared Mahalanobis distance per feature above which the input looks like another sensor or scale."""
SWAP_NATS = 3.0


def swapped_labels(stats: Statistics, prior: Prior) -> list[tuple[str, ...]]:
    """Find classes whose prototypes fit the population's better when exchanged: pairs, or cycles of more.

    Cross-validation cannot see a consistent exchange; the population can. The log-likelihood gained by it, under the
    spread of users' class means after removing the user's common offset, must pass `SWAP_NATS`. It is tempered by the
    degrees of freedom that the spread was estimated with: few people say little about strangers.

    Returns:
        Cycles of labels: windows labelled with one look like the population's next, those of the last like the first.
    """
    seen = np.flatnonzero(stats.seen[: prior.known])
    if len(seen) < 2:
        return []
    white = _whitener(prior.hyper.between * prior.between + prior.repetition + 1e-6 * prior.within)
    own, population = stats.means[seen] @ white.T, prior.means[seen] @ white.T
    own = own - (own - population).mean(0)
    cost = ((own[:, None] - population[None]) ** 2).sum(-1)
    nearest = cost.argmin(1)
    tempering = min(1.0, (prior.users - 1) / stats.dim)
    gained = 0.5 * tempering * (np.diag(cost) - cost.min(1))
    found = []
    for start in range(len(seen)):
        cycle = [start]
        while (following := int(nearest[cycle[-1]])) not in cycle:
            cycle.append(following)
        if following == start == min(cycle) and len(cycle) > 1 and gained[cycle].sum() > SWAP_NATS:
            found.append(tuple(prior.labels[seen[c]] for c in cycle))
    return found


def off_distribution(stats: Statistics, prior: Prior) -> float | None:
    """The distance to the population if it is beyond what a stranger may have: the more, the fewer people are known."""
    distance = population_distance(stats, prior)
    return distance if distance > OFF_DISTRIBUTION * (1 + 5 / (prior.users - 1)) else None


def population_distance(stats: Statistics, prior: Prior) -> float:
    """Squared Mahalanobis distance, per feature, of the user's common offset from the population (1 is usual)."""
    seen = stats.seen & (np.arange(prior.classes) < prior.known)
    if not seen.any():
        return 0.0
    white = _whitener(prior.between + prior.repetition + prior.within / max(float(stats.n.sum()), 1.0))
    offset = ((stats.means - prior.means)[seen] @ white.T).mean(0)
    return float((offset**2).mean() * seen.sum() ** 0.5)


def _whitener(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors / np.sqrt(np.maximum(values, 1e-9 * values.max()))).T)
