"""The windows a calibration is made from: those of the call, and all of the user's by their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.heads.folds import Fold
from models.heads.inputs import Raw, rows_of
from models.heads.label_noise import Trust, trusted
from models.heads.prior import Prior
from models.heads.statistics import MERGED, Statistics, digests, minus
from models.heads.sums import Rest

Array = NDArray[np.float64]
Digests = Sequence[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Shown:
    """The windows of this call, and all of the user's by their statistics.

    Attributes:
        z: features `(n, d)` of this call.
        y: labels `(n,)`.
        repetition: repetition ids `(n,)`, which no earlier call had.
        earlier: statistics of earlier calls, without what this call sends again.
        whole: statistics of all windows.
        again: repetitions that were sent before, by their ids in this call.
        pooled: `(p, p)` second moment of all windows.
        told: digests of each window, where its samples are known.
    """

    z: Array
    y: NDArray[np.integer]
    repetition: NDArray[np.integer]
    earlier: Statistics
    whole: Statistics
    again: set[int]
    pooled: Array
    told: Digests = ()

    def rest(self, fold: Fold) -> Rest:
        """Sums of all windows but the fold's."""
        if fold.repetitions:
            return self.whole.rest(fold.repetitions, self.pooled)
        # Blocks are of one repetition.
        out, (column,) = fold.removed, np.flatnonzero(np.isin(self.whole.repetitions, self.repetition[:1]))
        z, one_of = self.z[out, : self.whole.dim], np.eye(self.whole.classes)[self.y[out]]
        count, total = self.whole.count.copy(), self.whole.total.copy()
        count[:, column] -= one_of.sum(0)
        total[:, column] -= one_of.T @ z
        return Rest(count, total, self.pooled - z.T @ z)

    def without(self, fold: Fold) -> Statistics:
        """Statistics of all windows but the fold's."""
        out, dim = fold.removed, self.whole.dim
        part = Statistics.of(self.z[out, :dim], self.y[out], self.repetition[out], self.whole.classes)
        return minus(self.whole, part)

    def only(self, kept: NDArray[np.bool_]) -> Statistics:
        """Statistics of the earlier windows and these of this call."""
        dim, classes = self.whole.dim, self.whole.classes
        own = Statistics.of(self.z[kept, :dim], self.y[kept], self.repetition[kept], classes)
        return self.earlier + replace(own, sent=_sent(self.told, self.repetition, kept))

    def trust(self, prior: Prior, among: NDArray[np.bool_] | None = None) -> Trust:
        """Tell which labels of this call, among some of its windows, agree with each other and with earlier ones."""
        if among is None:
            return trusted(self.z, self.y, self.repetition, prior, self.earlier, self.whole)
        found = trusted(self.z[among], self.y[among], self.repetition[among], prior, self.earlier)
        kept = np.zeros(len(self.y), bool)
        kept[among] = found.kept
        return Trust(kept, found.wrong, found.noticed)


def together(
    prior: Prior,
    z: Array,
    y: NDArray[np.integer],
    repetition: NDArray[np.integer],
    before: Statistics | None,
    told: Digests = (),
    x: Raw | None = None,
) -> Shown:
    """Add the windows to what earlier calls brought; repetitions that are sent again count once.

    `told`: digests of each window, by which it will be known again. `x`: the raw windows, by which whole repetitions
    are, when they are merged and of more windows than are known one by one.
    """
    classes, dim = prior.classes, prior.personal
    base = before if before is not None else Statistics.empty(classes, dim)
    ids, numbered = np.unique(repetition, return_inverse=True)
    repetition = numbered + max(base.repetitions, default=-1) + 1
    new = Statistics.of(z[:, :dim], y, repetition, classes)
    found = repeated(base, new)
    for later, earlier in found.items():
        # Left in, the earlier copy would be in the fit that judges the later one. It may have aged.
        mask = repetition == later
        copy = Statistics.of(z[mask, :dim], y[mask], repetition[mask], classes).renumbered(earlier)
        weight = float(base.count[:, base.repetitions.index(earlier)].sum() / copy.count.sum())
        base = minus(base, copy.scaled(weight))
    again = {int(ids[later - repetition.min()]) for later in found}
    new = replace(new, sent=_sent(told, repetition, np.ones(len(y), bool)))
    if x is not None:
        new = replace(new, seen_before=digests(rows_of(x), y, repetition))
    whole = base + new if base.repetitions else new
    return Shown(z, y, repetition, base, whole, again, whole.pooled(), told)


def _sent(told: Digests, repetition: NDArray[np.integer], kept: NDArray[np.bool_]) -> dict[int, int]:
    """What windows will be known again by, and the repetition of each."""
    return {d: int(r) for own, r, some in zip(told, repetition, kept, strict=False) if some for d in own}


def merged_before(before: Statistics, x: Raw, y: NDArray[np.integer], repetition: NDArray[np.integer]) -> list[int]:
    """Find repetitions that are merged into a sum already, known by the digest of the whole."""
    if MERGED not in before.seen_before.values():
        return []
    return [r for digest, r in digests(rows_of(x), y, repetition).items() if before.seen_before.get(digest) == MERGED]


def repeated(base: Statistics, new: Statistics) -> dict[int, int]:
    """Find repetitions of `new` that `base` holds already, aged or not: new id -> id in `base`.

    Equal up to the float32 of storage, and to a common weight not above 1.
    """
    found: dict[int, int] = {}
    for j, later in enumerate(new.repetitions):
        count = new.count[:, j]
        for i, earlier in enumerate(base.repetitions):
            weight = float(base.count[:, i].sum() / count.sum())
            if weight > 1 + 1e-6 or not np.allclose(base.count[:, i], weight * count, rtol=1e-5, atol=0):
                continue
            slack = 1e-4 * weight * (1 + float(count.max()))
            if np.allclose(base.total[:, i], weight * new.total[:, j], rtol=1e-4, atol=slack):
                found[later] = earlier
    return found
