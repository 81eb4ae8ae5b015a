"""Windows that were sent before: known again by their samples, under whatever repetition they come."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.heads.inputs import Raw, Sensor
from models.heads.statistics import MERGED, Statistics, minus

Array = NDArray[np.float64]
Digests = Sequence[tuple[int, ...]]
BITS = 32
AT_ONCE = 2**17
"""Words that are summed at once, so that they stay in the processor's cache."""


def window_digests(x: Raw, y: NDArray[np.integer]) -> list[tuple[int, ...]]:
    """Digest each raw window with its label: a number for each sensor that it has.

    By sensor, so that a window is known again when it comes without one of those that it came with. The numbers are
    kept, so what they are made of must stay as it is.
    """
    sensors = [Sensor("", x, np.ones(len(x), bool))] if isinstance(x, np.ndarray) else x
    found: list[list[int]] = [[] for _ in y]
    for sensor in sensors:
        there = np.flatnonzero(sensor.there)
        labels, which = np.unique(y[there], return_inverse=True)
        begin = np.array([_first(f"{sensor.name}/{int(label)}/") for label in labels], np.uint64)
        total = begin[which] + _summed(sensor.x[sensor.there])
        for i, digest in zip(there, (total >> np.uint64(64 - BITS)).tolist(), strict=True):
            found[i].append(digest)
    return [tuple(own) for own in found]


def _first(told: str) -> int:
    return int.from_bytes(hashlib.blake2b(told.encode(), digest_size=8).digest(), "little")


def _summed(x: NDArray[Any]) -> NDArray[np.uint64]:
    """Sum of each row's 32-bit words, times a random number each, modulo 2⁶⁴: its upper half is a universal hash.

    Two rows have the same with a probability of 2⁻³². A third of the time of a cryptographic digest of each row.
    Source: Dietzfelbinger 1996, multiply-add-shift hashing.
    """
    rows = np.ascontiguousarray(x).reshape(len(x), x[:1].size).view(np.uint8) if len(x) else np.zeros((0, 4), np.uint8)
    if rows.shape[1] % 4:
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    rows = rows.view("<u4")
    factors = np.random.PCG64(rows.shape[1]).random_raw(rows.shape[1])
    found = np.zeros(len(rows), np.uint64)
    size = max(1, AT_ONCE // max(1, rows.shape[1]))
    for i in range(0, len(rows), size):
        found[i : i + size] = (rows[i : i + size] * factors).sum(1, dtype=np.uint64)
    return found


@dataclass(frozen=True, eq=False)
class Sorted:
    """A call's windows beside those of earlier calls.

    Attributes:
        base: statistics of earlier calls, without repetitions that the call holds whole: these count anew.
        new: `(n,)` which of the call's windows count; the others do already, in a part that cannot be taken out.
        again: `(n,)` which were sent before.
    """

    base: Statistics
    new: NDArray[np.bool_]
    again: NDArray[np.bool_]


def sort_out(base: Statistics, z: Array, y: NDArray[np.integer], told: Digests) -> Sorted:
    """Tell windows that were sent before, and take out of `base` the repetitions that they make up.

    A repetition is taken out where the features of its windows sum up to what it holds. Windows of which only some come
    again, or come with a sensor missing and so with other features, are in it already, and do not count once more.
    """
    where = [_repetition_of(own, base.sent) for own in told]
    again = np.array([r is not None for r in where], bool)
    new = ~again
    for r in {r for r in where if r is not None and r != MERGED}:
        own = np.array([found == r for found in where], bool)
        column = base.repetitions.index(r)
        copy = Statistics.of(z[own, : base.dim], y[own], np.full(int(own.sum()), r), base.classes)
        weight = float(base.count[:, column].sum() / copy.count.sum())
        slack = 1e-4 * weight * (1 + float(copy.count.max()))
        if (
            weight <= 1 + 1e-6
            and np.allclose(base.count[:, column], weight * copy.count[:, 0], rtol=1e-5, atol=0)
            and np.allclose(base.total[:, column], weight * copy.total[:, 0], rtol=1e-4, atol=slack)
        ):
            base, new = minus(base, copy.scaled(weight)), new | own
    return Sorted(base, new, again)


def _repetition_of(digests: tuple[int, ...], sent: Mapping[int, int]) -> int | None:
    """The repetition that a window is in already; None where any of it is new."""
    found = {sent.get(digest) for digest in digests}
    if not digests or None in found:
        return None
    return found.pop() if len(found) == 1 else MERGED
