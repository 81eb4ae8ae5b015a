"""A user's statistics for targets: sums of windows by the repetition they are of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from models.heads.regression import RegressionStatistics

MAX_REPETITIONS = 8
"""Repetitions kept apart at most; older ones are merged."""
BYTES_AT_REST = 128 * 1024
"""Bytes that a user's statistics take at most, unless one sum takes more: fewer repetitions are then kept apart."""
LEAST = 1e-6
"""Windows that count for less in all are forgotten: they have aged away."""
SAME = 1e-5
"""Difference of sums, in units of their diagonals, up to which two repetitions are one; float32 makes less."""


@dataclass(frozen=True, slots=True)
class RepetitionSums:
    """Sums of windows by repetition id, ascending; at least one. They add, and any repetition can be left out."""

    parts: Mapping[int, RegressionStatistics]

    @classmethod
    def of(cls, z: NDArray[np.floating], t: NDArray[np.floating], repetition: NDArray[np.integer]) -> RepetitionSums:
        """Sum features `z (n, d)` and targets `t (n, T)` by repetition ids `(n,)`.

        Raises:
            ValueError: as `RegressionStatistics.of`.
        """
        ids = np.unique(repetition)
        return cls({int(r): RegressionStatistics.of(z[repetition == r], t[repetition == r]) for r in ids})

    def __len__(self) -> int:
        """Number of repetitions."""
        return len(self.parts)

    def __add__(self, other: RepetitionSums) -> RepetitionSums:
        """Merge two sets of windows; equal ids are the same repetition."""
        merged = dict(self.parts)
        for r, part in other.parts.items():
            merged[r] = merged[r] + part if r in merged else part
        return RepetitionSums(dict(sorted(merged.items())))

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
        return RepetitionSums(left) if left else None

    def scaled(self, factor: float) -> RepetitionSums:
        """Return the same windows, each counting `factor` of what it did."""
        return RepetitionSums({r: part.scaled(factor) for r, part in self.parts.items()})

    def within_budget(self) -> RepetitionSums:
        """Bound memory: merge the oldest repetitions (lowest ids) as `MAX_REPETITIONS` and `BYTES_AT_REST` ask."""
        held = {r: part for r, part in self.parts.items() if part.count >= LEAST}
        ids = list(held)
        rows, targets = held[ids[0]].cross.shape
        size = 4 * (rows * (rows + 1) // 2 + rows * targets)
        limit = max(1, min(MAX_REPETITIONS, BYTES_AT_REST // size))
        surplus = len(ids) - limit
        if surplus <= 0:
            return RepetitionSums(held)
        merged = RepetitionSums({r: held[r] for r in ids[: surplus + 1]}).total
        return RepetitionSums({ids[surplus]: merged, **{r: held[r] for r in ids[surplus + 1 :]}})

    def sent_before(self, new: RepetitionSums) -> dict[int, int]:
        """Find repetitions of `new` that are here already, aged or not: new id -> id here."""
        found: dict[int, int] = {}
        for later, part in new.parts.items():
            for earlier, held in self.parts.items():
                weight = held.count / part.count
                if weight <= 1 + 1e-6 and _same(held, part.scaled(weight)):
                    found[later] = earlier
        return found


def _same(one: RegressionStatistics, two: RegressionStatistics) -> bool:
    unit = 1 / np.sqrt(np.maximum(np.diag(two.moment), 1e-300))
    moment = (one.moment - two.moment) * unit * unit[:, None]
    size = np.maximum(np.abs(two.cross * unit[:, None]).max(0), 1e-300)
    cross = (one.cross - two.cross) * unit[:, None] / size
    return bool(np.abs(moment).max() <= SAME and np.abs(cross).max() <= SAME)


def to_bytes(sums: RepetitionSums) -> bytes:
    """Encode as safetensors: float32, symmetric matrices as packed upper triangles."""
    parts = list(sums.parts.values())
    upper = np.triu_indices(len(parts[0].moment))
    return safetensors.numpy.save(
        {
            "repetitions": np.array(list(sums.parts), np.int64),
            "count": np.array([p.count for p in parts], np.float32),
            "moment": np.array([p.moment[upper] for p in parts], np.float32),
            "cross": np.array([p.cross for p in parts], np.float32),
        }
    )


def from_bytes(data: bytes, dim: int, targets: int) -> RepetitionSums:
    """Decode what `to_bytes` wrote of `dim` features and `targets` targets.

    Raises:
        ValueError: the bytes are no such sums.
    """
    try:
        tensors = safetensors.numpy.load(data)
        ids, count, packed, cross = (tensors[name] for name in ("repetitions", "count", "moment", "cross"))
    except (safetensors.SafetensorError, KeyError) as e:
        raise ValueError(f"not a user's statistics of targets: {e}") from e
    rows, r = dim + 1, ids.size
    found = ids.shape, count.shape, packed.shape, cross.shape
    if not r or found != ((r,), (r,), (r, rows * (rows + 1) // 2), (r, rows, targets)):
        raise ValueError(f"not a user's statistics: sums of {dim} features and {targets} targets were expected")
    values = (count, packed, cross)
    if not all(np.isfinite(v).all() for v in values) or not (count > 0).all() or not (np.diff(ids) > 0).all():
        raise ValueError("not sums over windows: empty, not finite, or repetitions out of order")
    upper = np.triu_indices(rows)
    parts = {}
    for identifier, n, m, c in zip(ids.tolist(), *(v.astype(np.float64) for v in values), strict=True):
        moment = np.zeros((rows, rows))
        moment[upper] = m
        moment.T[upper] = m
        parts[int(identifier)] = RegressionStatistics(float(n), moment, c)
    return RepetitionSums(parts)
