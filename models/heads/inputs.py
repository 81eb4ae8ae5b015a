"""Verdicts on single windows before anything is fitted: flat, clipped, not finite, or unlike the population."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.heads.prior import Prior

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Sensor:
    """Windows `x (n, …)` of one of several sensors, called `name`; `there (n,)`: which windows have it."""

    name: str
    x: NDArray[Any]
    there: Mask

    def some(self, mask: Mask) -> Sensor:
        """Some of the windows, by `mask (n,)`."""
        return Sensor(self.name, self.x[mask], self.there[mask])


Raw = NDArray[np.generic] | Sequence[Sensor]
"""Windows of one sensor `(n, C, T)`, or those of several, whether they are there or not."""

ACCEPTED, NON_FINITE, FLAT, CLIPPED, OFF_DISTRIBUTION = "accepted", "non_finite", "flat", "clipped", "off_distribution"
KINDS = (ACCEPTED, NON_FINITE, FLAT, CLIPPED, OFF_DISTRIBUTION)

SAMPLES_TO_TELL = 8
"""Shorter windows say nothing about a channel that does not move."""
CLIPPED_SHARE = 0.15
"""Share of a window's samples at the rails from which a channel counts as clipped."""
LEVELS = 16
"""A signal with fewer levels between its rails is coarse, not clipped."""
LOOKED_AT = 64
"""Windows among which levels are counted."""
FAR = 2.5
"""Squared Mahalanobis distance per feature to the nearest class beyond which a window is unlike the population's."""
WORTH_SAYING = 0.05
"""Share of a call's windows above which a kind of trouble is worth a sentence, of two windows or more."""
FEW = 2


@dataclass(frozen=True, slots=True)
class WindowVerdict:
    """What is to be said of one window: a word of `KINDS`, the channels it is about (from 0), and the distance.

    `distance`: squared Mahalanobis distance per feature to the population's nearest class, 1 being usual; infinite for
    features that are not finite.
    """

    verdict: str
    channels: tuple[int, ...]
    distance: float

    @property
    def accepted(self) -> bool:
        """Whether nothing speaks against the window."""
        return self.verdict == ACCEPTED


@dataclass(frozen=True, eq=False)
class Inspection:
    """The verdicts on n windows, as arrays.

    Attributes:
        kind: `(n,)` index into `KINDS`; where several hold, the first of non-finite, flat, clipped, off-distribution.
        non_finite, flat, clipped: `(n, C)` by channel.
        distance: `(n,)` as in `WindowVerdict`.
        there: `(n, C)` which channels a window has.
        names: of the C channels.
    """

    kind: NDArray[np.int8]
    non_finite: Mask
    flat: Mask
    clipped: Mask
    distance: Array
    there: Mask
    names: tuple[str, ...]

    @property
    def accepted(self) -> Mask:
        """Which windows nothing speaks against, `(n,)`."""
        return np.asarray(self.kind == 0)

    @property
    def verdicts(self) -> list[WindowVerdict]:
        """One verdict a window, in their order."""
        about = (None, self.non_finite, self.flat, self.clipped, None)
        found = []
        for i, (kind, distance) in enumerate(zip(self.kind.tolist(), self.distance.tolist(), strict=True)):
            channels = about[kind]
            named = () if channels is None else tuple(int(c) for c in np.flatnonzero(channels[i]))
            found.append(WindowVerdict(KINDS[kind], named, distance))
        return found

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what many of the windows have, with the channels' numbers (from 0)."""
        found, count = [], np.maximum(self.there.sum(0), 1)
        for trouble, what in (
            (self.non_finite, "not finite"),
            (self.flat, "flat: is the electrode or sensor connected?"),
            (self.clipped, "clipped: is the gain too high?"),
        ):
            share = trouble.sum(0) / count
            least = 0.0 if trouble is self.non_finite else np.maximum(WORTH_SAYING, (FEW - 1) / count)
            channels = np.flatnonzero(share > least)
            if len(channels):
                some = f"in {float(share[channels].max()):.0%} of the windows " if share[channels].max() < 1 else ""
                found.append(f"{_named([self.names[c] for c in channels])} {some}{what}")
        strange = self.kind == KINDS.index(OFF_DISTRIBUTION)
        far = float(strange.mean()) if len(strange) else 0.0
        if far > WORTH_SAYING and strange.sum() >= FEW:
            found.append(
                f"{far:.0%} of the windows are unlike any class of the population: is it the same sensor, unit, scale "
                "and electrode order as the model's?"
            )
        return tuple(found)


def rows_of(x: Raw) -> NDArray[np.generic]:
    """Windows as one array, `(n, …)`; of several sensors all of a window in one row."""
    return x if isinstance(x, np.ndarray) else np.concatenate([s.x.reshape(len(s.x), -1) for s in x], 1)


def those_of(x: Raw, mask: NDArray[np.bool_]) -> Raw:
    """Some of the windows, by `mask (n,)`, of every sensor."""
    return x[mask] if isinstance(x, np.ndarray) else [sensor.some(mask) for sensor in x]


def inspect(x: Raw | None, z: NDArray[np.floating], prior: Prior | None) -> Inspection:
    """Look at raw windows `x (n, C, T)` and their features `z (n, d)`, one by one.

    Channels of several sensors are numbered through all of them, whichever are there, and named in warnings. What a
    window lacks has no flaws.

    Rails, where a signal is cut off, are the extremes of all windows given; so more windows tell more. Without `x`, or
    for inputs that are not windows of channels, only the features are judged; without `prior` no distance is.
    """
    n = len(z)
    sensors = () if x is None else (Sensor("", x, np.ones(n, bool)),) if isinstance(x, np.ndarray) else x
    sensors = [sensor for sensor in sensors if sensor.x.ndim == 3]
    none = np.zeros((n, 0), bool)
    looked = [(none, none, none, none), *(_looked(sensor) for sensor in sensors)]
    finite, flat, clipped, there = (np.concatenate(masks, 1) for masks in zip(*looked, strict=True))
    distance, kind = np.zeros(n), np.zeros(n, np.int8)
    # The weakest first: what is said later stands.
    if prior is not None:
        distance = distances(np.asarray(z, np.float64), prior)
        kind[distance > far(prior)] = KINDS.index(OFF_DISTRIBUTION)
    kind[clipped.any(1)] = KINDS.index(CLIPPED)
    kind[flat.any(1)] = KINDS.index(FLAT)
    kind[~finite.all(1) | ~np.isfinite(z).all(1)] = KINDS.index(NON_FINITE)
    return Inspection(kind, ~finite, flat, clipped, distance, there, _names(sensors))


def _names(sensors: Sequence[Sensor]) -> tuple[str, ...]:
    """Numbers of all channels, with those within a sensor that has a name."""
    channels = [(sensor.name, c) for sensor in sensors for c in range(sensor.x.shape[1])]
    return tuple(f"{i} ({c} of {name})" if name else str(i) for i, (name, c) in enumerate(channels))


def _looked(sensor: Sensor) -> tuple[Mask, Mask, Mask, Mask]:
    """Which channels of a sensor's windows are finite, flat, clipped, and there, each `(n, C)`."""
    shape, there = sensor.x.shape[:2], sensor.there
    masks = np.ones(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool), np.repeat(there[:, None], shape[1], 1)
    if there.any():
        for mask, found in zip(masks, _flaws(sensor.x[there]), strict=False):
            mask[there] = found
    return masks


def _flaws(x: NDArray[np.generic]) -> tuple[Mask, Mask, Mask]:
    """Which channels of windows `(n, C, T)` are finite, flat and clipped, each `(n, C)`."""
    finite = np.isfinite(x).all(2) if np.issubdtype(x.dtype, np.floating) else np.ones(x.shape[:2], bool)
    low, high = x.min(2), x.max(2)
    flat = finite & (low == high) if x.shape[2] >= SAMPLES_TO_TELL else np.zeros(x.shape[:2], bool)
    return finite, flat, _clipped(x, finite) & ~flat


def far(prior: Prior) -> float:
    """The distance from which a window is off-distribution: the more, the fewer people the population is known from."""
    return FAR * (1 + 5 / (prior.users - 1))


def distances(z: Array, prior: Prior) -> Array:
    """Squared Mahalanobis distance per feature of features `z (n, d)` to the population's nearest class, `(n,)`.

    Under the spread of people, repetitions and windows together, at the placement of the sensor where it is least.
    """
    finite = np.isfinite(z).all(1)
    found = np.full(len(z), np.inf)
    rows = np.flatnonzero(finite)
    count = 1 if prior.placements is None else len(prior.placements)
    for placement in range(count):
        found[rows] = np.minimum(found[rows], _nearest(z[rows, : prior.personal], prior.at(placement)))
        # Most windows are near at the usual placement; the others are looked up for those that are not.
        rows = rows[found[rows] > far(prior)]
        if not len(rows):
            break
    return found


def _named(numbers: Sequence[str]) -> str:
    if len(numbers) == 1:
        return f"channel {numbers[0]} is"
    return f"channels {', '.join(numbers[:-1])} and {numbers[-1]} are"


def _nearest(z: Array, prior: Prior) -> Array:
    held = prior.memo.get("inputs")
    if held is None:
        spread = prior.within + prior.repetition + prior.between
        values, vectors = np.linalg.eigh(spread)
        white = vectors / np.sqrt(np.maximum(values, 1e-9 * max(float(values.max()), 1e-300)))
        held = prior.memo["inputs"] = (white, prior.means @ white)
    white, means = held
    with np.errstate(over="ignore", invalid="ignore"):  # far beyond any threshold, whatever the number
        own = z @ white
        squares = (own**2).sum(1)[:, None] - 2 * own @ means.T + (means**2).sum(1)
        nearest = np.where(np.isfinite(squares), squares, np.inf).min(1)
    return np.asarray(np.maximum(nearest, 0.0) / z.shape[1])


def _clipped(x: NDArray[np.generic], finite: Mask) -> Mask:
    """Channels `(n, C)` whose samples pile up at the rails: the extremes of the channel over all windows.

    One sample at an extreme is any signal's; a share of a window that is, among levels fine enough to differ, is not.
    """
    length = x.shape[2]
    if length < SAMPLES_TO_TELL or not finite.any():
        return np.zeros(x.shape[:2], bool)
    if not finite.all():
        x = np.where(finite[:, :, None], x, 0)
    top, bottom = x.max((0, 2)), x.min((0, 2))
    share = ((x == top[:, None]) | (x == bottom[:, None])).mean(2)
    some = x[np.unique(np.linspace(0, len(x) - 1, LOOKED_AT).astype(int))]
    fine = np.array([len(np.unique(some[:, c])) >= LEVELS for c in range(x.shape[1])])
    return np.asarray((share >= CLIPPED_SHARE) & fine & finite)
