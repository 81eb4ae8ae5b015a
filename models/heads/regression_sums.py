"""A user's statistics for targets: sums of windows by the repetition they are of."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from models.heads.regression import RegressionStatistics
from models.heads.statistics import LARGEST, MOST_COUNTED

MAX_REPETITIONS = 8
"""Repetitions kept apart at most; older ones are merged."""
BYTES_AT_REST = 128 * 1024
"""Bytes that a user's statistics take at most, unless one sum takes more: fewer repetitions are then kept apart."""
LEAST = 1e-6
"""Windows that count for less in all are forgotten: they have aged away."""
SAME = 1e-5
"""Difference of sums, in units of their diagonals, up to which two repetitions are one; float32 makes less."""
MAX_SEEN = 64
"""Repetitions that are known again after they were merged, the newest."""
IDS = 2**62
"""Repetition ids are below this, and not below its negative."""


@dataclass(frozen=True, slots=True)
class RepetitionSums:
    """Sums of windows by repetition id, ascending; at least one. They add, and any repetition can be left out.

    `seen`: digests of the windows of repetitions, the newest last, and the id that each was summed or merged into.
    """

    parts: Mapping[int, RegressionStatistics]
    seen: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        z: NDArray[np.floating],
        t: NDArray[np.floating],
        repetition: NDArray[np.integer],
        x: NDArray[np.generic] | None = None,
    ) -> RepetitionSums:
        """Sum features `z (n, d)` and targets `t (n, T)` by repetition ids `(n,)`; the same windows again are left out.

        Windows are known again by `x (n, …)`, or by their features without it.

        Raises:
            ValueError: as `RegressionStatistics.of`.
        """
        parts: dict[int, RegressionStatistics] = {}
        seen: dict[int, int] = {}
        for r in np.unique(repetition).tolist():
            of_it = repetition == r
            part = RegressionStatistics.of(z[of_it], t[of_it])
            digest = _digest((z if x is None else x)[of_it], t[of_it])
            if digest not in seen:
                parts[r], seen[digest] = part, r
        return cls(parts, seen)

    def __len__(self) -> int:
        """Number of repetitions."""
        return len(self.parts)

    def __add__(self, other: RepetitionSums) -> RepetitionSums:
        """Merge two sets of windows; equal ids are the same repetition."""
        merged = dict(self.parts)
        for r, part in other.parts.items():
            merged[r] = merged[r] + part if r in merged else part
        return RepetitionSums(dict(sorted(merged.items())), {**self.seen, **other.seen})

    @property
    def windows(self) -> float:
        """Number of windows; aged ones count less."""
        return sum(part.count for part in self.parts.values())

    @property
    def total(self) -> RegressionStatistics:
        """Sum over all windows."""
        first, *rest = self.parts.values()
        for part in rest:
            first = first + part
        return first

    def without(self, repetitions: Collection[int]) -> RepetitionSums | None:
        """Return the others; None where no windows are left."""
        left = {r: part for r, part in self.parts.items() if r not in repetitions}
        return RepetitionSums(left, {digest: r for digest, r in self.seen.items() if r in left}) if left else None

    def remembered(self) -> RepetitionSums | None:
        """Return those that have not aged away; None where all have."""
        return self.without([r for r, part in self.parts.items() if part.count < LEAST])

    def scaled(self, factor: float) -> RepetitionSums:
        """Return the same windows, each counting `factor` of what it did."""
        return RepetitionSums({r: part.scaled(factor) for r, part in self.parts.items()}, self.seen)

    def within_budget(self) -> RepetitionSums:
        """Bound memory: merge the oldest repetitions (lowest ids) as `MAX_REPETITIONS` and `BYTES_AT_REST` ask."""
        ids = list(self.parts)
        rows, targets = self.parts[ids[0]].cross.shape
        size = 8 * (rows * (rows + 1) // 2 + rows * targets)
        limit = max(1, min(MAX_REPETITIONS, BYTES_AT_REST // size))
        surplus = max(0, len(ids) - limit)
        oldest = ids[surplus]
        seen = {digest: max(r, oldest) for digest, r in self.seen.items()}
        merged = RepetitionSums({r: self.parts[r] for r in ids[: surplus + 1]}).total
        parts = {oldest: merged, **{r: self.parts[r] for r in ids[surplus + 1 :]}}
        return RepetitionSums(parts, dict(list(seen.items())[-MAX_SEEN:]))

    def check_storable(self) -> None:
        """Refuse sums that are too large to be added to.

        Raises:
            ValueError: one is.
        """
        for part in self.parts.values():
            for what, values in (("features squared", part.moment), ("features and targets", part.cross)):
                most = float(np.abs(values).max())
                if not most < LARGEST:
                    raise ValueError(
                        f"the sums of products of {what} over a repetition's windows reach {most:.3g}; "
                        f"at most {LARGEST:g} can be kept"
                    )

    def sent_before(self, new: RepetitionSums) -> dict[int, int]:
        """Find repetitions of `new` that are kept apart here already, aged or not: new id -> id here."""
        found: dict[int, int] = {}
        digests = {r: digest for digest, r in new.seen.items()}
        told = set(self.seen.values())
        for later, part in new.parts.items():
            for earlier, held in self.parts.items():
                if earlier in told and self.seen.get(digests[later]) != earlier:
                    continue
                weight = held.count / part.count
                if weight <= 1 + 1e-6 and _same(held, part.scaled(weight)):
                    found[later] = earlier
        return found

    def merged_before(self, new: RepetitionSums) -> set[int]:
        """Find repetitions of `new` whose windows are in a sum here, by their digests: their ids in `new`."""
        return {r for digest, r in new.seen.items() if digest in self.seen}


def _digest(x: NDArray[np.generic], t: NDArray[np.floating]) -> int:
    """Digest windows and their targets in float32, in whatever order they are."""
    rows = (hashlib.sha256(w.tobytes() + v.tobytes()) for w, v in zip(_single(x), _single(t), strict=True))
    total = sum(int.from_bytes(row.digest()[:8], "little") for row in rows)
    return total % 2**64 - 2**63


def _single(values: NDArray[np.generic]) -> NDArray[np.float32]:
    return np.asarray(values).astype(np.float32)


def _same(one: RegressionStatistics, two: RegressionStatistics) -> bool:
    unit = 1 / np.sqrt(np.maximum(np.diag(two.moment), 1e-300))
    moment = (one.moment - two.moment) * unit * unit[:, None]
    size = np.maximum(np.abs(two.cross * unit[:, None]).max(0), 1e-300)
    cross = (one.cross - two.cross) * unit[:, None] / size
    return bool(np.abs(moment).max() <= SAME and np.abs(cross).max() <= SAME)


def to_bytes(sums: RepetitionSums) -> bytes:
    """Encode as safetensors: float64, for sums of squares lose digits; symmetric matrices as packed upper triangles."""
    parts = list(sums.parts.values())
    upper = np.triu_indices(len(parts[0].moment))
    return safetensors.numpy.save(
        {
            "repetitions": np.array(list(sums.parts), np.int64),
            "seen": np.array(list(sums.seen.items()), np.int64).reshape(-1, 2),
            "count": np.array([p.count for p in parts]),
            "moment": np.array([p.moment[upper] for p in parts]),
            "cross": np.array([p.cross for p in parts]),
        }
    )


def from_bytes(data: bytes, dim: int, targets: int) -> RepetitionSums:
    """Decode what `to_bytes` wrote of `dim` features and `targets` targets.

    Earlier releases wrote float32, and no `seen`.

    Raises:
        ValueError: the bytes are no such sums.
    """
    try:
        tensors = safetensors.numpy.load(data)
        ids, count, packed, cross = (tensors[name] for name in ("repetitions", "count", "moment", "cross"))
    except (safetensors.SafetensorError, KeyError) as e:
        raise ValueError(f"not a user's statistics of targets: {e}") from e
    seen = tensors.get("seen", np.zeros((0, 2), np.int64))
    rows, r = dim + 1, ids.size
    found = ids.shape, count.shape, packed.shape, cross.shape, seen.shape[1:]
    if not r or found != ((r,), (r,), (r, rows * (rows + 1) // 2), (r, rows, targets), (2,)):
        raise ValueError(f"not a user's statistics: sums of {dim} features and {targets} targets were expected")
    _check_ids(ids, seen)
    _check_values(count, packed, cross)
    upper = np.triu_indices(rows)
    parts = {}
    for identifier, n, m, c in zip(ids.tolist(), *(v.astype(np.float64) for v in (count, packed, cross)), strict=True):
        moment = np.zeros((rows, rows))
        moment[upper] = m
        moment.T[upper] = m
        if not (np.diag(moment) >= 0).all() or not np.isclose(moment[dim, dim], n, rtol=1e-3, atol=0):
            raise ValueError("not sums over windows: a sum of squares is negative, or not that of as many windows")
        parts[identifier] = RegressionStatistics(float(n), moment, c)
    return RepetitionSums(parts, dict(seen.tolist()))


def _check_ids(ids: NDArray[np.generic], seen: NDArray[np.generic]) -> None:
    if ids.dtype != np.int64 or seen.dtype != np.int64:
        raise ValueError(f"repetitions and seen must be int64, not {ids.dtype} and {seen.dtype}")
    found = ids.tolist()
    if not all(-IDS <= i < IDS for i in found) or not all(a < b for a, b in pairwise(found)):
        raise ValueError("repetitions must be ascending, each once, and between -2^62 and 2^62")
    if len(seen) > MAX_SEEN or not set(seen[:, 1].tolist()) <= set(found):
        raise ValueError(f"seen must be at most {MAX_SEEN} digests, each of one of the repetitions")


def _check_values(count: NDArray[np.floating], *others: NDArray[np.floating]) -> None:
    if any(v.dtype.kind != "f" for v in (count, *others)):
        raise ValueError("sums over windows must be floats")
    if not ((count > 0) & (count < MOST_COUNTED)).all() or not count.sum(dtype=np.float64) < MOST_COUNTED:
        raise ValueError("not sums over windows: empty or huge counts")
    if not all((np.abs(v) < LARGEST).all() for v in others):  # NaN is not smaller than anything
        raise ValueError(f"not sums over windows: values that are not finite, or beyond {LARGEST:g}")
