"""The parity gate: the exported graph must give the features that torch gives, or there is no export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCHES = (1, 2, 7, 64)
TOLERANCE = 1e-4
"""Largest allowed error of a feature; features have unit variance within a user and class."""

Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class ParityError(ValueError):
    """The exported graph does not compute what the trained backbone does."""


def check_parity(
    reference: Forward,
    exported: Forward,
    windows: NDArray[np.float32],
    *,
    batches: Sequence[int] = BATCHES,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Compare two forwards on real windows `(n, C, T)` at several batch sizes.

    Returns:
        What was measured: largest error, lowest cosine, batch sizes, windows, tolerance.

    Raises:
        ParityError: the largest error is above `tolerance`, or an answer is misshapen or not finite.
    """
    if len(windows) < max(batches):
        raise ParityError(f"the parity gate needs {max(batches)} real windows; the run holds {len(windows)}")
    worst, cosine = 0.0, 1.0
    for size in batches:
        for start in range(0, len(windows) - size + 1, max(size, len(windows) // 4)):
            x = np.ascontiguousarray(windows[start : start + size])
            a, b = reference(x), exported(x)
            if a.shape != b.shape:
                raise ParityError(f"batch {size}: the graph gives features of shape {b.shape}, torch {a.shape}")
            if not np.isfinite(b).all():
                raise ParityError(f"batch {size}: the graph gives features that are not finite")
            worst = max(worst, float(np.abs(a - b).max()))
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            cosine = min(cosine, float(((a * b).sum(1) / np.maximum(norms, 1e-12)).min()))
    if worst > tolerance:
        raise ParityError(f"the graph's features differ from torch's by up to {worst:.2e}; {tolerance:.0e} is allowed")
    return {
        "max_error": worst,
        "min_cosine": cosine,
        "tolerance": tolerance,
        "batches": list(batches),
        "windows": len(windows),
    }
