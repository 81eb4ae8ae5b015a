"""What the population tells of a calibration that held-out windows cannot: exchanged labels, another sensor, a turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.prior import Prior
from models.heads.sums import Sums

Array = NDArray[np.float64]

OFF_DISTRIBUTION = 3.0
"""Mean squared Mahalanobis distance per feature above which the input looks like another sensor or scale."""
ANOTHER_WORLD = 20.0
"""Distance beyond which the population's record says nothing. People of the population with a dead channel, or four
times the gain, are at up to 16 and gained from a few windows all the same."""
SWAP_NATS, SWAP_NATS_OF_FEW = 2.2, 1.8
"""Nats that an exchange of labels must gain, and how many more where only one independent window a class is known."""
GENERIC_SHARE = 0.5
"""Weight of the generic head's log-odds in those nats: neighbouring windows say the same."""
UNLIKE_EARLIER = 2.5
"""Distance from the user's earlier windows, in units of what repetitions of a sitting differ by."""
GAIN = 0.7
"""Log gain beyond which the signal is said to be stronger or weaker than the population's: twice or half."""


@dataclass(frozen=True, slots=True)
class Doubts:
    """Sentences on what looks wrong with a calibration; none for one like the population's.

    `against`: of labels or windows that the population's record does not speak for. `beside`: worth knowing, but people
    with the same gained from calibrating.
    """

    against: tuple[str, ...]
    beside: tuple[str, ...]


def doubts(stats: Sums, prior: Prior, shared: Array | None = None, parts: tuple[Sums, Sums] | None = None) -> Doubts:
    """Compare a calibration with the population, and with the user's earlier windows.

    Args:
        stats: of the windows that are fitted.
        prior: at the placement of the sensor that was found.
        shared: `(K, K)` mean logits of the shared head over the windows of each label, NaN rows for labels not shown.
        parts: the windows of this call, and those of earlier ones.
    """
    against = [_swap_text(cycle) for cycle in swapped_labels(stats, prior, shared)]
    beside: list[str] = []
    distance = off_distribution(stats, prior)
    if distance is not None:
        (against if distance > ANOTHER_WORLD else beside).append(
            f"the windows lie {distance:.1f} times as far from the population as users usually do: "
            "is it the same sensor, unit, scale and electrode order as the model's?"
        )
    gain = log_gain(stats, prior)
    if gain is not None and abs(gain) > GAIN:
        beside.append(
            f"the signal is about {np.exp(gain):.2g} times as strong as the population's: "
            "is it the same gain and unit as the model's?"
        )
    if parts is not None:
        distance = unlike_earlier(*parts, prior)
        if distance is not None:
            beside.append(
                f"the windows are {distance:.1f} times as far from this user's earlier ones as repetitions usually "
                "are: is it the same person, and the sensor in the same place?"
            )
    return Doubts(tuple(against), tuple(beside))


def swapped_labels(stats: Sums, prior: Prior, shared: Array | None = None) -> list[tuple[str, ...]]:
    """Find classes that fit the population better when their labels are exchanged: pairs, or cycles of more.

    Cross-validation cannot see a consistent exchange; the population can. Two witnesses: the log-likelihood of the
    user's class means, their common offset removed, under the spread of people, repetitions and windows — tempered by
    the degrees of freedom that the spread was estimated with, for few people say little about strangers — and the
    shared head's log-odds on the windows (`shared`, as in `doubts`), which knows other features.

    Returns:
        Cycles of labels: windows labelled with one look like the population's next, those of the last like the first.
    """
    seen = np.flatnonzero(stats.seen[: prior.known])
    if len(seen) < 2:
        return []
    gained = _prototype_gain(stats, prior, seen)
    if shared is not None:
        odds = shared[np.ix_(seen, seen)]
        odds = odds - np.diag(odds)[:, None]
        gained = gained + GENERIC_SHARE * np.where(np.isfinite(odds), odds, 0.0)
    repetitions, window = stats.repetitions_seen[seen], prior.hyper.window
    effective = float(np.maximum(repetitions, stats.n[seen] / window).mean())
    needed = SWAP_NATS + SWAP_NATS_OF_FEW / max(effective, 1.0)
    return [tuple(prior.labels[seen[c]] for c in cycle) for cycle in _cycles(gained, needed)]


def _prototype_gain(stats: Sums, prior: Prior, seen: NDArray[np.integer]) -> Array:
    """Nats `(k, k)` that the mean of each class shown gains by being another's."""
    white: Array | None = prior.memo.get("swaps")
    if white is None:
        white = prior.memo["swaps"] = whitener(prior.hyper.between * prior.between + prior.repetition + prior.within)
    own, population = stats.means[seen] @ white.T, prior.means[seen] @ white.T
    own = own - (own - population).mean(0)
    cost = ((own[:, None] - population[None]) ** 2).sum(-1)
    tempering = min(1.0, (prior.users - 1) / stats.dim)
    return np.asarray(0.5 * tempering * (np.diag(cost)[:, None] - cost))


def _cycles(gained: Array, needed: float) -> list[tuple[int, ...]]:
    """Cycles of the best matches that gain enough, then pairs of the rest, best first."""
    nearest, found = gained.argmax(1), []
    for start in range(len(gained)):
        cycle = [start]
        while (following := int(nearest[cycle[-1]])) not in cycle:
            cycle.append(following)
        total = sum(gained[a, nearest[a]] for a in cycle)
        if following == start == min(cycle) and len(cycle) > 1 and total > needed:
            found.append(tuple(cycle))
    pairs = sorted(
        ((gained[a, b] + gained[b, a], a, b) for a in range(len(gained)) for b in range(a + 1, len(gained))),
        reverse=True,
    )
    for total, a, b in pairs:
        taken = {c for cycle in found for c in cycle}
        if total > needed and not taken & {a, b}:
            found.append((a, b))
    return found


def off_distribution(stats: Sums, prior: Prior) -> float | None:
    """The distance to the population if it is beyond what a stranger may have: the more, the fewer people are known."""
    distance = population_distance(stats, prior)
    return distance if distance > OFF_DISTRIBUTION * (1 + 5 / (prior.users - 1)) else None


def population_distance(stats: Sums, prior: Prior) -> float:
    """Squared Mahalanobis distance, per feature, of the user's common offset from the population (1 is usual)."""
    seen = stats.seen & (np.arange(prior.classes) < prior.known)
    if not seen.any():
        return 0.0
    # Windows are summed by the thousand; one in a class is the case that matters.
    few = round(float(np.log2(max(float(stats.n.sum()), 1.0))))
    white: Array | None = prior.memo.get(("offset", few))
    if white is None:
        white = whitener(prior.between + prior.repetition + prior.within / 2.0**few)
        prior.memo["offset", few] = white
    offset = ((stats.means - prior.means)[seen] @ white.T).mean(0)
    return float((offset**2).mean() * seen.sum() ** 0.5)


def unlike_earlier(stats: Sums, earlier: Sums, prior: Prior) -> float | None:
    """How far new windows are from the user's earlier ones, where that is beyond what repetitions differ by.

    Mean squared Mahalanobis distance per feature between the means of classes that both have, under the spread of
    repetitions and windows; 1 is usual within a sitting. Other people's windows, and a sensor that has moved, are far.
    """
    both = stats.seen & earlier.seen
    if not both.any():
        return None
    per, rest = 0.0, 0.0
    for s in (stats, earlier):
        repetitions = s.repetitions_seen[both]
        per += float((1 / repetitions).mean())
        rest += float((1 / np.maximum(repetitions, s.n[both] / prior.hyper.window)).mean())
    away = (stats.means - earlier.means)[both]
    covariance = per * prior.repetition + rest * prior.within
    distance = float((away.T * np.linalg.solve(covariance, away.T)).sum() / away.size)
    return distance if distance > UNLIKE_EARLIER else None


def log_gain(stats: Sums, prior: Prior) -> float | None:
    """Logarithm of the user's signal gain against the population's, by least squares along the gain's direction.

    None where the prior does not know what a gain does to the features, or no class was shown.
    """
    seen = stats.seen & (np.arange(prior.classes) < prior.known)
    if prior.gain is None or not seen.any():
        return None
    along: Array | None = prior.memo.get("gain")
    if along is None:
        direction = np.asarray(np.linalg.solve(prior.within, prior.gain), np.float64)
        along = prior.memo["gain"] = direction / float(direction @ prior.gain)
    return float(along @ (stats.means - prior.means)[seen].mean(0))


def turn_of(placement: int, placements: int) -> tuple[float, bool]:
    """Electrodes that a ring is turned by at one of a prior's placements, and whether it is worn the other way round.

    Placements are the ring's turns in ascending order (`models.training.population.ring_placements`), as worn and then
    flipped: of C channels, C + 4 each way, or 11 near the usual place for dense rings.
    """
    each = placements // 2
    channels = each - 4
    turns: Sequence[float] = sorted({0.0, 0.5, 1.5, channels - 1.5, channels - 0.5, *map(float, range(channels))})
    turn = turns[placement % each]
    return (turn if turn <= channels / 2 else turn - channels), placement >= each


def turn_text(placement: int, placements: int) -> str:
    """Say how the sensor is worn at a placement other than the usual one."""
    turn, flipped = turn_of(placement, placements)
    parts = [f"turned by {turn:+g} electrode{'' if abs(turn) == 1 else 's'}"] if turn else []
    parts += ["worn the other way round"] if flipped else []
    return (
        f"compared with the population, the sensor is {' and '.join(parts)}; the head allows for it, "
        "and needs it worn like this"
    )


def _swap_text(cycle: tuple[str, ...]) -> str:
    if len(cycle) == 2:
        a, b = cycle
        return (
            f"windows labelled {a!r} look like the population's {b!r} and the other way round: were the labels swapped?"
        )
    looks = ", ".join(f"{a!r} look like {b!r}" for a, b in zip(cycle, (*cycle[1:], cycle[0]), strict=True))
    return f"compared with the population, windows labelled {looks}: were the labels mixed up?"


def whitener(covariance: Array) -> Array:
    """Return A with A covariance Aᵀ = I."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors / np.sqrt(np.maximum(values, 1e-9 * values.max()))).T)
