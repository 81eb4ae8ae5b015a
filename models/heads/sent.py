"""Windows that were sent before: known again by their samples, under whatever repetition and label they come."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.heads.inputs import Raw, Sensor
from models.heads.shown import Digests, repeated
from models.heads.statistics import MERGED, SENT_BITS, Statistics, minus

Array = NDArray[np.float64]
AT_ONCE = 2**17
"""Words that are summed at once, so that they stay in the processor's cache."""
BY_LABEL = 0x9E3779B97F4A7C15
"""Digests under two labels differ by a multiple of this, so that those under all others need no samples."""


def window_digests(x: Raw, y: NDArray[np.integer]) -> list[tuple[int, ...]]:
    """Digest each raw window with its label: a number for each sensor that it has.

    By sensor, so that a window is known again when it comes without one of those that it came with.
    """
    sensors = [Sensor("", x, np.ones(len(x), bool))] if isinstance(x, np.ndarray) else x
    found: list[list[int]] = [[] for _ in y]
    for sensor in sensors:
        begin = int.from_bytes(hashlib.blake2b(f"{sensor.name}/".encode(), digest_size=8).digest(), "little")
        for i, digest in zip(np.flatnonzero(sensor.there), _digests(sensor.x[sensor.there]), strict=True):
            found[i].append(digest + begin)
    return [_under(tuple(own), int(label)) for own, label in zip(found, y, strict=True)]


def _under(digests: tuple[int, ...], more: int) -> tuple[int, ...]:
    """Digests of the same window under the label that is so many places on."""
    return tuple((digest + more * BY_LABEL) % (1 << SENT_BITS) for digest in digests)


def _digests(x: NDArray[Any]) -> list[int]:
    """Digest each row, in 48 bits: a part of two sums of its 32-bit words times random numbers, modulo 2⁶⁴.

    Any two rows have the same with a probability of 2⁻⁴⁸. A third of the time of a cryptographic digest of each row.
    Source: multiply-add-shift hashing, Dietzfelbinger 1996.
    """
    if not len(x):
        return []
    rows = np.ascontiguousarray(x).reshape(len(x), x[:1].size).view(np.uint8)
    if rows.shape[1] % 4:
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    words = rows.view("<u4")
    factors = np.random.PCG64(words.shape[1]).random_raw(2 * words.shape[1]).reshape(2, -1)
    sums = np.zeros((2, len(words)), np.uint64)
    size = max(1, AT_ONCE // max(1, words.shape[1]))
    for i in range(0, len(words), size):
        for own, by in zip(sums, factors, strict=True):
            own[i : i + size] = (words[i : i + size] * by).sum(1, dtype=np.uint64)
    found: list[int] = ((sums[0] >> np.uint64(32) << np.uint64(16)) + (sums[1] >> np.uint64(48))).tolist()
    return found


@dataclass(frozen=True, eq=False)
class Sorted:
    """A call's windows beside those of earlier calls.

    Attributes:
        base: statistics of earlier calls, without what the call replaces: repetitions that it holds whole count anew,
            and windows that it gives another label count under that alone.
        new: `(n,)` which of the call's windows count; the others do already, in a part that cannot be taken out.
        again: `(n,)` which were sent before.
    """

    base: Statistics
    new: NDArray[np.bool_]
    again: NDArray[np.bool_]


def sort_out(
    base: Statistics, z: Array, y: NDArray[np.integer], repetition: NDArray[np.integer], told: Digests, sensors: int = 1
) -> Sorted:
    """Tell windows that were sent before, and take out of `base` those with other labels and whole repetitions.

    A repetition is taken out where the features of its windows sum up to what it holds. Windows of which only some come
    again, or come with a sensor missing and so with other features, are in it already, and do not count once more.
    """
    base, corrected = _corrected(base, z, y, told, sensors)
    where = [None if done else _repetition_of(own, base.sent) for own, done in zip(told, corrected, strict=True)]
    rest = np.flatnonzero(~corrected)
    # Repetitions of more windows than are known again one by one.
    whole = repeated(base, Statistics.of(z[rest, : base.dim], y[rest], repetition[rest], base.classes))
    if whole:
        for i in rest.tolist():
            where[i] = whole.get(int(repetition[i]), where[i])
    again = np.array([r is not None for r in where], bool)
    new = ~again
    for r in {r for r in where if r is not None and r != MERGED}:
        own = np.array([found == r for found in where], bool)
        copy = Statistics.of(z[own, : base.dim], y[own], np.full(int(own.sum()), r), base.classes)
        if r in repeated(base, copy).values():
            weight = float(base.count[:, base.repetitions.index(r)].sum() / copy.count.sum())
            base, new = minus(base, copy.scaled(weight)), new | own
    return Sorted(base, new, again | corrected)


def _corrected(
    base: Statistics, z: Array, y: NDArray[np.integer], told: Digests, sensors: int
) -> tuple[Statistics, NDArray[np.bool_]]:
    """Take windows out of `base` that come with another label, and tell which of the call's `(n,)` these are.

    Only windows with all sensors: what others were sent with, and so what their features were, is not known. And not
    those that the call itself gives both labels.
    """
    found, label, column = np.zeros(len(y), bool), np.zeros(len(y), np.int64), np.zeros(len(y), np.int64)
    held = {d for own in told for d in own}
    known = np.fromiter(base.sent, np.uint64, len(base.sent))
    complete = np.flatnonzero([len(own) == sensors for own in told])
    own = np.array([told[i] for i in complete.tolist()], np.uint64).reshape(len(complete), 1, sensors)
    more = np.arange(base.classes) - y[complete][:, None]
    under = (own + more.astype(np.uint64)[:, :, None] * np.uint64(BY_LABEL)) & np.uint64((1 << SENT_BITS) - 1)
    for at, other in np.argwhere(np.isin(under, known).all(2) & (more != 0)).tolist():
        i, was = int(complete[at]), tuple(under[at, other].tolist())
        r = None if held.issuperset(was) else _repetition_of(was, base.sent)
        if r is not None and r != MERGED and base.count[other, base.repetitions.index(r)] > 0:
            found[i], label[i], column[i] = True, other, r
    if not found.any():
        return base, found
    # The same window may come twice.
    once = np.zeros(len(y), bool)
    once[list({told[i]: i for i in np.flatnonzero(found).tolist()}.values())] = True
    places = np.array(list(base.sent.values()))
    # A repetition's windows have aged alike.
    share = {
        r: min(1.0, sensors * float(base.count[:, base.repetitions.index(r)].sum()) / int((places == r).sum()))
        for r in np.unique(column[once]).tolist()
    }
    weight = np.array([share[r] for r in column[once].tolist()])
    part = Statistics.of(z[once, : base.dim], label[once], column[once], base.classes, weight)
    gone = {d for i in np.flatnonzero(once).tolist() for d in _under(told[i], int(label[i] - y[i]))} - held
    left = minus(base, part)
    return replace(left, sent={d: r for d, r in left.sent.items() if d not in gone}), found


def _repetition_of(digests: tuple[int, ...], sent: Mapping[int, int]) -> int | None:
    """The repetition that a window is in already; None where any of it is new."""
    found = {sent.get(digest) for digest in digests}
    if not digests or None in found:
        return None
    return found.pop() if len(found) == 1 else MERGED
