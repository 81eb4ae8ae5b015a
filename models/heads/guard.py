"""The guard against negative transfer: held-out scores, and what may be served because of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.head import log_loss
from models.heads.prior import Prior
from models.heads.statistics import Statistics

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

MAX_FOLDS = 5
BLOCKS = 3
BLEND_WEIGHTS = (0.25, 0.5, 0.75)
FLOOR_SLACK = 0.10
"""A calibration is trusted down to this far below the worst left-out population user."""
OFF_DISTRIBUTION = 3.0
"""Mean squared Mahalanobis distance per feature above which the input looks like another sensor or scale."""
SWAP_NATS = 3.0


@dataclass(frozen=True, slots=True)
class Fold:
    """Windows `removed` from the fit and, among them, those `scored`; both masks `(n,)`."""

    removed: Mask
    scored: Mask


@dataclass(frozen=True, slots=True)
class Score:
    """How a head did on held-out windows."""

    accuracy: float
    log_loss: float
    n: int
    folds: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the guard decided, with the numbers and the words.

    `outcome` is `promoted`, `blended`, `kept` or `insufficient`; `weight` is the share of the personal head in what may
    be served (0 for `kept` and `insufficient`); `evidence` is `held_out` or `population`. `remember`: whether later
    updates may add to these windows; not to ones that contradict each other, or the active head.
    """

    outcome: str
    evidence: str
    weight: float
    reason: str
    remember: bool = True
    shared: Score | None = None
    previous: Score | None = None
    candidate: Score | None = None


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Logits `(n, K)` of the heads on the held-out windows, their labels, and the block each window belongs to."""

    y: NDArray[np.integer]
    block: NDArray[np.integer]
    folds: int
    shared: Array
    candidate: Array
    previous: Array | None = None


def plan_folds(y: NDArray[np.integer], repetition: NDArray[np.integer], overlap: int = 0) -> list[Fold]:
    """Choose what to leave out: whole repetitions, or contiguous blocks where there is only one.

    Args:
        y: labels `(n,)`, windows in time order within a repetition and class.
        repetition: repetition ids `(n,)`.
        overlap: how many following windows share samples with a window; that many are dropped at a block's edges.

    Returns:
        No folds when there is too little to hold anything out.
    """
    ids = np.unique(repetition)
    if len(ids) > 1:
        groups = np.array_split(ids, min(len(ids), MAX_FOLDS))
        masks = [np.isin(repetition, g) for g in groups]
        return [Fold(m, m & np.isin(y, np.unique(y[~m]))) for m in masks if np.isin(y[m], y[~m]).any()]
    needed = 2 * BLOCKS * (overlap + 1)
    if len(y) == 0 or min(int((y == c).sum()) for c in np.unique(y)) < needed:
        return []
    folds = [(np.zeros(len(y), bool), np.zeros(len(y), bool)) for _ in range(BLOCKS)]
    for c in np.unique(y):
        where = np.flatnonzero(y == c)
        for (removed, scored), part in zip(folds, np.array_split(np.arange(len(where)), BLOCKS), strict=True):
            scored[where[part]] = True
            removed[where[max(part[0] - overlap, 0) : part[-1] + 1 + overlap]] = True
    return [Fold(removed, scored) for removed, scored in folds]


def score(logits: Array, held: HeldOut) -> Score:
    """Score one head's logits on the held-out windows."""
    hit = logits.argmax(1) == held.y
    return Score(float(hit.mean()), float(log_loss(logits, held.y).mean()), len(held.y), held.folds)


def standard_error(better: Array, worse: Array, held: HeldOut) -> float:
    """Standard error of the accuracy difference of two heads, clustered by block (a block errs as one)."""
    difference = (better.argmax(1) == held.y).astype(float) - (worse.argmax(1) == held.y)
    _, block = np.unique(held.block, return_inverse=True)
    sums, sizes = np.bincount(block, difference), np.bincount(block)
    if len(sizes) < 2:
        return float("inf")
    residual = sums - sizes * difference.mean()
    return float(np.sqrt((residual**2).sum() * len(sizes) / (len(sizes) - 1)) / len(difference))


def judge_held_out(held: HeldOut, prior: Prior, windows: float, repetitions: float, margin: float) -> Verdict:
    """Decide on held-out scores: promote, blend or keep.

    A calibration whose own labels agree with each other less than any left-out population user's did is not trusted:
    it is promoted only on a gain of more than two standard errors, and never blended.
    """
    shared, candidate = score(held.shared, held), score(held.candidate, held)
    previous = None if held.previous is None else score(held.previous, held)
    gain = candidate.accuracy - shared.accuracy
    error = standard_error(held.candidate, held.shared, held)
    numbers = (
        f"{candidate.accuracy:.1%} against the shared head's {shared.accuracy:.1%} on {candidate.n} held-out windows"
    )

    def verdict(outcome: str, weight: float, reason: str, *, remember: bool = True) -> Verdict:
        return Verdict(outcome, "held_out", weight, reason, remember, shared, previous, candidate)

    if previous is not None and held.previous is not None:
        loss = previous.accuracy - candidate.accuracy
        if loss > max(2 * standard_error(held.previous, held.candidate, held), margin):
            text = f"the active head is better: {previous.accuracy:.1%} against the new one's {candidate.accuracy:.1%}"
            return verdict("kept", 0.0, text, remember=False)
    record = prior.evidence_for(windows, repetitions)
    floor = max(record.floor - FLOOR_SLACK if record else 0.0, 1.5 / prior.classes)
    if candidate.accuracy < floor:
        if gain > max(2 * error, margin):
            return verdict("promoted", 1.0, f"personal head clearly better, though labels disagree: {numbers}")
        text = f"labels and windows contradict each other: {numbers}; {floor:.0%} is the least to be expected"
        return verdict("kept", 0.0, text, remember=False)
    if gain > max(error, margin) or (gain >= margin and candidate.log_loss <= shared.log_loss):
        return verdict("promoted", 1.0, f"personal head better: {numbers}")
    best = _best_blend(held, up_to_one=gain >= margin)
    if best == 1.0:
        return verdict("promoted", 1.0, f"personal head better: {numbers}")
    if best == 0.0:
        return verdict("kept", 0.0, f"the personal head is not better: {numbers}")
    return verdict("blended", best, f"a blend of {best:.0%} personal is best on held-out windows; alone {numbers}")


def _best_blend(held: HeldOut, *, up_to_one: bool) -> float:
    """The share of the personal head with the least held-out log-loss; 0 if accuracy falls below the shared head's."""
    weights = (0.0, *BLEND_WEIGHTS, *((1.0,) if up_to_one else ()))
    scores = {w: score((1 - w) * held.shared + w * held.candidate, held) for w in weights}
    best = min(weights, key=lambda w: scores[w].log_loss)
    return best if scores[best].accuracy >= scores[0.0].accuracy else 0.0


def unseen_classes(stats: Statistics, prior: Prior) -> Verdict | None:
    """Refuse to promote while classes are missing: nothing tells what a head does to windows of a class never shown."""
    missing = [label for label, shown in zip(prior.labels, stats.seen, strict=True) if not shown]
    if not missing:
        return None
    text = f"no windows yet of {', '.join(missing)}: a head is promoted when it was shown every label"
    return Verdict("insufficient", "population", 0.0, text)


def judge_by_population(prior: Prior, windows: float, repetitions: float, warnings: Sequence[str]) -> Verdict:
    """Decide without anything held out: on what the same number of windows did for left-out population users."""
    record = prior.strongest_evidence_for(windows, repetitions)
    if record is None and prior.hyper.pooled:
        text = (
            "the model's population has no users, so only windows left out tell whether a head helps: send two or more "
            "repetitions (of images and texts: number each shot), and each is left out in turn"
        )
        return Verdict("insufficient", "population", 0.0, text)
    if record is None:
        return Verdict(
            "insufficient", "population", 0.0, "fewer labelled windows than the population's record begins with"
        )
    if warnings:
        return Verdict(
            "insufficient",
            "population",
            0.0,
            "a warning on the input needs held-out evidence: send two repetitions a class",
        )
    text = (
        f"{record.windows} windows a class gained {record.gain:+.1%} (at least {record.lower:+.1%}) "
        f"for {record.users} left-out users"
    )
    if record.lower > 0:
        return Verdict("promoted", "population", 1.0, text)
    return Verdict("insufficient", "population", 0.0, f"{text}: too little to promote unseen")


def swapped_labels(stats: Statistics, prior: Prior) -> list[tuple[str, ...]]:
    """Find classes whose prototypes fit the population's better when exchanged: pairs, or cycles of more.

    Cross-validation cannot see a consistent exchange; the population can. The log-likelihood gained by it, under the
    spread of users' class means after removing the user's common offset, must pass `SWAP_NATS`. It is tempered by the
    degrees of freedom that the spread was estimated with: few people say little about strangers.

    Returns:
        Cycles of labels: windows labelled with one look like the population's next, those of the last like the first.
    """
    seen = np.flatnonzero(stats.seen)
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
    seen = stats.seen
    if not seen.any():
        return 0.0
    white = _whitener(prior.between + prior.repetition + prior.within / max(float(stats.n.sum()), 1.0))
    offset = ((stats.means - prior.means)[seen] @ white.T).mean(0)
    return float((offset**2).mean() * seen.sum() ** 0.5)


def _whitener(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors / np.sqrt(np.maximum(values, 1e-9 * values.max()))).T)
