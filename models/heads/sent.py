"""Windows that were sent before: known again by their samples, under whatever repetition they come."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.inputs import Raw, Sensor
from models.heads.statistics import MERGED, Statistics, minus

Array = NDArray[np.float64]
Digests = Sequence[tuple[int, ...]]
BITS = 32


def window_digests(x: Raw, y: NDArray[np.integer]) -> list[tuple[int, ...]]:
    """Digest each raw window with its label: a number for each sensor that it has.

    By sensor, so that a window is known again when it comes without one of those that it came with.
    """
    sensors = [Sensor("", x, np.ones(len(x), bool))] if isinstance(x, np.ndarray) else x
    found: list[list[int]] = [[] for _ in y]
    for sensor in sensors:
        for i in np.flatnonzero(sensor.there):
            total = hashlib.blake2b(f"{sensor.name}/{int(y[i])}/".encode(), digest_size=BITS // 8)
            total.update(np.ascontiguousarray(sensor.x[i]).tobytes())
            found[i].append(int.from_bytes(total.digest(), "little"))
    return [tuple(own) for own in found]


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
