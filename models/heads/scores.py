"""Scores of a head's probabilities on labelled windows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 10
"""Bins of the expected calibration error."""

Labels = NDArray[np.integer]


def macro_f1(said: Labels, y: Labels) -> float:
    """Mean over the classes in `y (n,)` of the F1 score of the decisions `said (n,)`."""
    found = []
    for c in np.unique(y):
        right = float(((said == c) & (y == c)).sum())
        found.append(2 * right / float((said == c).sum() + (y == c).sum()))
    return float(np.mean(found))


def calibration_error(probabilities: NDArray[np.floating], y: Labels) -> float:
    """Expected calibration error of `probabilities (n, K)` over ten equal bins. Source: Guo et al. 2017."""
    top, hit = probabilities.max(1), probabilities.argmax(1) == y
    bins = np.minimum((top * BINS).astype(int), BINS - 1)
    gaps = [abs(hit[bins == b].mean() - top[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(np.sum(gaps))


def confusion(said: Labels, y: Labels, classes: int) -> NDArray[np.int64]:
    """Windows by true class (row) and decided class (column), `(K, K)`."""
    return np.bincount(y * classes + said, minlength=classes * classes).reshape(classes, classes)
