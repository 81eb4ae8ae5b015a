"""What goes wrong with a calibration's recordings: labels, placement, gain, channels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Windows = NDArray[np.float32]
Labels = NDArray[np.int64]

RAIL = 128
"""Armband counts are 8 bits: −128 to 127."""
BLOCK_SECONDS = 0.5


def gained(x: Windows, factor: float) -> Windows:
    """Windows of a sensor whose gain is another, whole counts within its rails."""
    return np.clip(np.round(x * factor), -RAIL, RAIL - 1).astype(np.float32)


def turned(x: Windows, electrodes: int) -> Windows:
    """Windows of a ring that is turned by whole electrodes."""
    return np.roll(x, electrodes, 1)


def flat(x: Windows, channel: int) -> Windows:
    """Windows with a dead channel."""
    x = x.copy()
    x[:, channel] = 0
    return x


def driven(x: Windows, channel: int, factor: float = 8.0) -> Windows:
    """Windows with one channel's gain too high, so that it is cut off at the rails."""
    x = x.copy()
    x[:, channel] = gained(x[:, channel], factor)
    return x


def mislabelled(
    y: Labels, recording: NDArray[np.int64], share: float, classes: int, block: int, rng: np.random.Generator
) -> Labels:
    """Labels of which a share of the blocks of `block` windows within a recording are another class's, at random."""
    y = y.copy()
    for r in np.unique(recording):
        where = np.flatnonzero(recording == r)
        for part in np.split(where, range(block, len(where), block)):
            if rng.random() < share:
                y[part] = (y[part] + rng.integers(1, classes)) % classes
    return y


def swapped(y: Labels, a: int, b: int) -> Labels:
    """Labels with two classes exchanged."""
    found = y.copy()
    found[y == a], found[y == b] = b, a
    return found
