"""What is held out of a fit, and how heads do on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.head import log_loss

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

MAX_FOLDS = 5
BLOCKS = 3


@dataclass(frozen=True, slots=True)
class Fold:
    """Windows `removed` from the fit and, among them, those `scored`; both masks `(n,)`.

    `repetitions` that are left out whole; none where blocks of one repetition are.
    """

    removed: Mask
    scored: Mask
    repetitions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """How a head did on held-out windows."""

    accuracy: float
    log_loss: float
    n: int
    folds: int


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Logits `(n, K)` of the heads on the held-out windows, their labels, and the block each window belongs to.

    `repetitions`: how many repetitions the windows are of. `compared`: those that the previous head was not fitted on,
    on which alone it can be compared with; None for all.
    """

    y: NDArray[np.integer]
    block: NDArray[np.integer]
    folds: int
    shared: Array
    candidate: Array
    previous: Array | None = None
    repetitions: int = 1
    compared: Mask | None = None

    def only(self, which: Mask) -> HeldOut:
        """Return some of the windows `(n,)`."""
        previous = None if self.previous is None else self.previous[which]
        heads = self.shared[which], self.candidate[which], previous
        compared = None if self.compared is None else self.compared[which]
        return HeldOut(self.y[which], self.block[which], self.folds, *heads, self.repetitions, compared)

    def beside_previous(self) -> HeldOut | None:
        """Return the windows that the previous head can be compared on; None where there is no such head, or none."""
        if self.previous is None or self.compared is None:
            return None if self.previous is None else self
        return self.only(self.compared) if self.compared.any() else None


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
        found = []
        for group in groups:
            out = np.isin(repetition, group)
            scored = out & np.isin(y, np.unique(y[~out]))
            if scored.any():
                found.append(Fold(out, scored, tuple(int(r) for r in group)))
        return found
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
    return clustered_error(difference, held.block)


def clustered_error(difference: Array, block: NDArray[np.integer]) -> float:
    """Standard error of the mean of differences `(n,)` that are alike within a block `(n,)`; infinite for one block."""
    _, index = np.unique(block, return_inverse=True)
    sums, sizes = np.bincount(index, difference), np.bincount(index)
    if len(sizes) < 2:
        return float("inf")
    residual = sums - sizes * difference.mean()
    return float(np.sqrt((residual**2).sum() * len(sizes) / (len(sizes) - 1)) / len(difference))
