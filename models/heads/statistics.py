"""Sufficient statistics of labelled windows: all that a personal head is fitted from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, Self, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from models.heads.sums import Rest, Sums

Array = NDArray[np.float64]
MOST_COUNTED = 2**53
"""Windows in all that statistics are of, below this: floats count no further."""
LARGEST = 1e30
"""Sums and weights stay below this; beyond it they overflow with the next window."""

MAX_SEEN = 64
"""Repetitions that are known again after they were merged, the newest."""
MOST_SENT = 4096
"""Windows that are known again, the newest: at most so many digests are kept, of eight bytes each with its place."""
SENT_BITS = 48
"""Of a window's digest: two windows that are taken for one, though they are not, are rare among all of many users."""
MERGED = -(2**62)
"""Instead of a repetition's id: its windows are in a sum with others'."""
MOST_DIGESTED = 64
"""Windows of a repetition that its digest is of, evenly spread, beside all labels: more would take as long as a fit."""


class Scalable(Protocol):
    """Sums over windows that may count for less than one each."""

    def scaled(self, factor: float) -> Self:
        """Return the same windows, each counting `factor` of what it did."""


S = TypeVar("S", bound=Scalable)


@dataclass(frozen=True, slots=True)
class Statistics(Sums):
    """Counts, sums and second moments of features, per class and per repetition.

    They add: a streamed fit equals a batch fit, replicas merge in any order, a repetition is left out (or a class
    forgotten) by a subtraction, and memory does not grow with the number of windows.

    Attributes:
        repetitions: the R repetition ids, ascending.
        count: `(K, R)` number of windows.
        total: `(K, R, d)` sum of features.
        class_moment: `(K, d, d)` sum of z zᵀ over a class.
        repetition_moment: `(R, d, d)` sum of z zᵀ over a repetition.
        seen_before: digests of repetitions' windows, the newest last, and the id of each, or `MERGED`.
        sent: digests of single windows (`models.heads.sent`), the newest last, and the repetition they are summed in.
    """

    repetitions: tuple[int, ...]
    count: Array
    total: Array
    class_moment: Array
    repetition_moment: Array
    seen_before: Mapping[int, int] = field(default_factory=dict)
    sent: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def empty(cls, classes: int, dim: int) -> Statistics:
        """Return the statistics of no windows for `classes` classes and `dim` features."""
        return cls(
            (),
            np.zeros((classes, 0)),
            np.zeros((classes, 0, dim)),
            np.zeros((classes, dim, dim)),
            np.zeros((0, dim, dim)),
        )

    @classmethod
    def of(
        cls,
        z: NDArray[np.floating],
        y: NDArray[np.integer],
        repetition: NDArray[np.integer],
        classes: int,
        weight: Array | None = None,
    ) -> Statistics:
        """Summarise features `z (n, d)`, labels `y (n,)`, repetition ids `(n,)`; windows count `weight (n,)`, or 1."""
        z = np.asarray(z, np.float64)
        ids, column = np.unique(np.asarray(repetition), return_inverse=True)
        dim = z.shape[1]
        count = np.zeros((classes, len(ids)))
        total = np.zeros((classes, len(ids), dim))
        class_moment = np.zeros((classes, dim, dim))
        repetition_moment = np.zeros((len(ids), dim, dim))
        group = np.asarray(y) * len(ids) + column
        # Sorted by class and repetition, in their order within each: blocks are slices then.
        order = np.argsort(group, kind="stable")
        edges = np.flatnonzero(np.diff(group[order], prepend=-1, append=-1))
        z = z[order]
        for begin, end in pairwise(edges):
            c, r = divmod(int(group[order[begin]]), len(ids))
            block = z[begin:end]
            if weight is None:
                moment, count[c, r], total[c, r] = block.T @ block, end - begin, block.sum(0)
            else:
                w = weight[order[begin:end]]
                root = block * np.sqrt(w)[:, None]
                moment, count[c, r], total[c, r] = root.T @ root, w.sum(), w @ block
            class_moment[c] += moment
            repetition_moment[r] += moment
        return cls(tuple(int(i) for i in ids), count, total, class_moment, repetition_moment)

    def pooled(self) -> Array:
        """Sum of z zᵀ over all windows, `(d, d)`."""
        fewer = self.class_moment if self.classes <= len(self.repetitions) else self.repetition_moment
        return np.asarray(fewer.sum(0))

    def rest(self, out: Sequence[int], pooled: Array) -> Rest:
        """Leave repetitions out, by id, of windows whose `pooled` second moment is known."""
        gone = np.isin(self.repetitions, out)
        return Rest(self.count[:, ~gone], self.total[:, ~gone], pooled - self.repetition_moment[gone].sum(0))

    def _aligned(self, ids: tuple[int, ...]) -> tuple[Array, Array, Array]:
        where = [ids.index(r) for r in self.repetitions]
        count = np.zeros((self.classes, len(ids)))
        total = np.zeros((self.classes, len(ids), self.dim))
        moment = np.zeros((len(ids), self.dim, self.dim))
        count[:, where], total[:, where], moment[where] = self.count, self.total, self.repetition_moment
        return count, total, moment

    def __add__(self, other: Statistics) -> Statistics:
        """Merge two sets of windows; equal repetition ids are the same repetition."""
        if (self.classes, self.dim) != (other.classes, other.dim):
            raise ValueError(
                f"statistics of {self.classes} classes and {self.dim} features cannot be merged with "
                f"{other.classes} classes and {other.dim} features"
            )
        ids = tuple(sorted({*self.repetitions, *other.repetitions}))
        a, b = self._aligned(ids), other._aligned(ids)
        moment = self.class_moment + other.class_moment
        seen, sent = {**self.seen_before, **other.seen_before}, {**self.sent, **other.sent}
        return Statistics(ids, a[0] + b[0], a[1] + b[1], moment, a[2] + b[2], seen, sent)

    def scaled(self, factor: float) -> Statistics:
        """Return the same windows, each counting `factor` of what it did."""
        return Statistics(
            self.repetitions,
            self.count * factor,
            self.total * factor,
            self.class_moment * factor,
            self.repetition_moment * factor,
            self.seen_before,
            self.sent,
        )

    def padded(self, classes: int) -> Statistics:
        """Return the same windows among more classes: new ones follow, unseen; nothing of the old ones changes."""
        more = classes - self.classes
        if more < 0:
            raise ValueError(f"{self.classes} classes cannot be padded to {classes}; a class is forgotten by name")
        return Statistics(
            self.repetitions,
            np.pad(self.count, ((0, more), (0, 0))),
            np.pad(self.total, ((0, more), (0, 0), (0, 0))),
            np.pad(self.class_moment, ((0, more), (0, 0), (0, 0))),
            self.repetition_moment,
            self.seen_before,
            self.sent,
        )

    def first(self, classes: int) -> Sums:
        """Return the sums of the first classes alone."""
        if classes == self.classes:
            return self
        return Rest(self.count[:classes], self.total[:classes], self.class_moment[:classes].sum(0))

    def trimmed(self, classes: int) -> Statistics:
        """Return the same without the classes behind the first `classes`, which must be empty."""
        if self.n[classes:].any():
            raise ValueError(f"classes behind the first {classes} have windows")
        some = self.count[:classes], self.total[:classes], self.class_moment[:classes]
        return Statistics(self.repetitions, *some, self.repetition_moment, self.seen_before, self.sent)

    def without_class(self, index: int) -> Statistics:
        """Forget a class: its counts, sums and second moment become zero, its place stays.

        Second moments are kept by class and by repetition, not by both: of the class's part in each repetition the
        means are exact, and the scatter around them is shared out by the number of windows. With one repetition, and
        in the sum over repetitions, nothing of the class is left. No repetition is known again by its digest: sent once
        more, the class is to count.
        """
        n = self.count[index]
        means = self.total[index] / np.maximum(n, 1e-300)[:, None]
        around = self.class_moment[index] - self.total[index].T @ means
        share = n / max(float(n.sum()), 1e-300)
        part = n[:, None, None] * means[:, :, None] * means[:, None, :] + share[:, None, None] * around
        count, total, moment = self.count.copy(), self.total.copy(), self.class_moment.copy()
        count[index], total[index], moment[index] = 0.0, 0.0, 0.0
        keep = np.flatnonzero(count.sum(0) > 0)
        ids = tuple(self.repetitions[i] for i in keep)
        return Statistics(ids, count[:, keep], total[:, keep], moment, (self.repetition_moment - part)[keep])

    def renumbered(self, first: int) -> Statistics:
        """Return the same windows with repetition ids `first, first+1, …`, in the old order."""
        ids = tuple(range(first, first + len(self.repetitions)))
        new = dict(zip(self.repetitions, ids, strict=True))
        seen, sent = ({d: new.get(r, MERGED) for d, r in known.items()} for known in (self.seen_before, self.sent))
        return Statistics(ids, self.count, self.total, self.class_moment, self.repetition_moment, seen, sent)

    def merged_to(self, limit: int) -> Statistics:
        """Bound memory: merge the oldest repetitions (lowest ids) into one until at most `limit` remain."""
        surplus = len(self.repetitions) - limit
        if surplus <= 0:
            return self
        old, keep = slice(0, surplus + 1), slice(surplus + 1, None)
        gone = set(self.repetitions[old])
        seen = [(d, MERGED if r in gone else r) for d, r in self.seen_before.items()]
        return Statistics(
            self.repetitions[surplus:],
            np.concatenate([self.count[:, old].sum(1, keepdims=True), self.count[:, keep]], 1),
            np.concatenate([self.total[:, old].sum(1, keepdims=True), self.total[:, keep]], 1),
            self.class_moment,
            np.concatenate([self.repetition_moment[old].sum(0, keepdims=True), self.repetition_moment[keep]]),
            dict(seen[-MAX_SEEN:]),
            {d: MERGED if r in gone else r for d, r in self.sent.items()},
        )


def digests(x: NDArray[np.generic], y: NDArray[np.integer], repetition: NDArray[np.integer]) -> dict[int, int]:
    """Digest the windows `x (n, …)` and labels of each repetition: digest -> id.

    Of windows rather than features: these may differ in their last bits with what else was computed beside them.
    """
    found = {}
    for r in np.unique(repetition).tolist():
        own = np.flatnonzero(repetition == r)
        some = own[np.linspace(0, len(own) - 1, min(MOST_DIGESTED, len(own))).astype(int)]
        total = hashlib.blake2b(np.asarray(y[own], np.int64).tobytes(), digest_size=8)
        total.update(np.ascontiguousarray(x[some]).tobytes())
        found[int.from_bytes(total.digest(), "little", signed=True)] = r
    return found


def minus(whole: Statistics, part: Statistics) -> Statistics:
    """Leave windows out of a sum: the inverse of `whole = rest + part`, in closed form."""
    count, total, moment = part._aligned(whole.repetitions)
    left = whole.count - count
    left[left <= 2e-7 * whole.count] = 0.0  # nothing, but for the float32 of storage
    keep = np.flatnonzero(left.sum(0) > 0)
    there = {MERGED, *(whole.repetitions[i] for i in keep)}
    moments = whole.class_moment - part.class_moment
    moments[left.sum(1) == 0] = 0.0
    return Statistics(
        tuple(whole.repetitions[i] for i in keep),
        left[:, keep],
        ((whole.total - total) * (left > 0)[:, :, None])[:, keep],
        moments,
        (whole.repetition_moment - moment)[keep],
        {d: r for d, r in whole.seen_before.items() if r in there},
        {d: r for d, r in whole.sent.items() if r in there},
    )


def decayed(stats: S, seconds: float, half_life: float) -> S:
    """Let windows age: after `half_life` seconds each counts half of what it did, 2^(−seconds / half_life) in all.

    Ageing in steps is ageing at once, and ageing a sum is summing what has aged. Old windows lose weight against new
    ones and against the population; a repetition stays one, however old.

    Raises:
        ValueError: a negative time, or a half-life that is not positive.
    """
    if not half_life > 0 or not seconds >= 0:
        raise ValueError(f"seconds must be at least 0 and half_life above it, not {seconds:g} and {half_life:g}")
    return stats.scaled(float(2.0 ** (-seconds / half_life)))


def merge(parts: Iterable[Statistics]) -> Statistics:
    """Add any number (at least one) of statistics."""
    first, *rest = parts
    for part in rest:
        first = first + part
    return first


def to_bytes(stats: Statistics) -> bytes:
    """Encode as safetensors: float32, symmetric matrices as packed upper triangles, sums of shown classes only."""
    upper, seen = np.triu_indices(stats.dim), stats.seen
    told = np.array(list(stats.seen_before.items()), np.int64).reshape(-1, 2)
    return safetensors.numpy.save(
        {
            **({"seen": told} if len(told) else {}),
            **_sent_arrays(stats),
            "repetitions": np.asarray(stats.repetitions, np.int64),
            "count": np.ascontiguousarray(stats.count, np.float32),
            "total": np.ascontiguousarray(stats.total[seen], np.float32),
            "class_moment": np.ascontiguousarray(stats.class_moment[seen][:, *upper], np.float32),
            "repetition_moment": np.ascontiguousarray(stats.repetition_moment[:, *upper], np.float32),
        },
    )


def from_bytes(data: bytes) -> Statistics:
    """Decode what `to_bytes` wrote.

    Raises:
        ValueError: the bytes are not statistics.
    """
    try:
        t = safetensors.numpy.load(data)
        count, dim = t["count"].astype(np.float64), t["total"].shape[2]
        # Earlier releases wrote all classes.
        seen = np.flatnonzero(count.sum(1) > 0) if len(t["total"]) < len(count) else np.arange(len(count))
        total, moment = np.zeros((*count.shape, dim)), np.zeros((len(count), dim, dim))
        total[seen], moment[seen] = t["total"], _unpacked(t["class_moment"], dim)
        repetitions = tuple(int(i) for i in t["repetitions"])
        told = dict(t["seen"].tolist()) if "seen" in t else {}
        return Statistics(
            repetitions, count, total, moment, _unpacked(t["repetition_moment"], dim), told, _sent_of(t, repetitions)
        )
    except (safetensors.SafetensorError, KeyError, IndexError, ValueError) as e:
        raise ValueError(f"not a user's statistics: {e}") from e


def _sent_arrays(stats: Statistics) -> dict[str, NDArray[np.generic]]:
    """Digests of the newest windows, and the places of their repetitions; -1 for a sum with others."""
    newest = list(stats.sent.items())[-MOST_SENT:]
    place = {r: i for i, r in enumerate(stats.repetitions)}
    if not newest:
        return {}
    return {
        "sent": np.array([digest for digest, _ in newest], "<u8").view("<u2").reshape(-1, 4)[:, :3].copy(),
        "sent_in": np.array([place.get(r, -1) for _, r in newest], np.int16),
    }


def _sent_of(t: Mapping[str, NDArray[np.generic]], repetitions: Sequence[int]) -> dict[int, int]:
    digests, places = t.get("sent", np.zeros((0, 3), np.uint16)), t.get("sent_in", np.zeros(0, np.int16))
    fits = digests.dtype == np.uint16 and places.dtype == np.int16 and digests.shape == (*places.shape, 3)
    if not fits or places.ndim != 1 or len(digests) > MOST_SENT:
        raise ValueError(f"sent must be at most {MOST_SENT} digests, three uint16 each, with as many places, int16")
    numbers = digests.astype(np.int64) @ (1 << np.array([0, 16, 32]))
    found = places.tolist()
    if not all(-1 <= i < len(repetitions) for i in found):
        raise ValueError("sent_in must be places of repetitions, or -1")
    return {d: MERGED if i < 0 else repetitions[i] for d, i in zip(numbers.tolist(), found, strict=True)}


def _unpacked(packed: NDArray[np.float32], dim: int) -> Array:
    rows, cols = np.triu_indices(dim)
    full = np.zeros((len(packed), dim, dim))
    full[:, rows, cols] = packed
    full[:, cols, rows] = packed
    return full
