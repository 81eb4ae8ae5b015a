"""Streams of unlabelled windows as evaluations score them: as recorded, one class ten times the others, some classes.

What of a stream is drawn is drawn by a seed that the table names.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.windows import Windows

__all__ = ["BALANCED", "STREAMS", "StreamKind", "chosen"]

RARE = 10
"""How many times rarer the other classes are in an imbalanced stream."""
FEW = 3


@dataclass(frozen=True, slots=True)
class StreamKind:
    """A kind of stream, and how many draws of it are scored."""

    name: str
    draws: int


BALANCED = "balanced"
STREAMS = (StreamKind(BALANCED, 1), StreamKind("10:1", 7), StreamKind("3 classes", 5))
"""`10:1`: draw i leaves class i (mod K) whole and of each other recording a tenth, at one stretch; `3 classes`: only
windows of three classes."""


def chosen(kind: StreamKind, draw: int, w: Windows, classes: int, seed: int) -> NDArray[np.intp]:
    """Indices of the windows that one draw of a stream keeps, in order.

    Args:
        kind: of `STREAMS`.
        draw: number of the draw.
        w: windows of one test, in time order.
        classes: number of classes K.
        seed: of the evaluation; the same draw leaves the same classes in every test and for every user.
    """
    if kind.name == BALANCED:
        return np.arange(len(w))
    rng = np.random.default_rng([seed, draw])
    if kind.name == "3 classes":
        return np.flatnonzero(np.isin(w.y, rng.choice(classes, min(FEW, classes - 1), replace=False)))
    parts = []
    for recording in np.unique(w.recording):
        own = np.flatnonzero(w.recording == recording)
        if w.y[own[0]] != draw % classes:
            few = max(1, len(own) // RARE)
            at = int(rng.integers(0, len(own) - few + 1))
            own = own[at : at + few]
        parts.append(own)
    return np.sort(np.concatenate(parts))
