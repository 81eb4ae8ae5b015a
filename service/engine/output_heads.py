"""Heads of several outputs behind one forward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.engine.scheduler import ApplyHeads


class OutputHeads:
    """Applies to each row a head of each output.

    Args:
        parts: for each output the columns of the features that its heads are over (None: all), and what applies them.
    """

    def __init__(self, parts: Sequence[tuple[NDArray[np.int64] | None, ApplyHeads]]) -> None:
        self._parts = tuple(parts)

    def __call__(self, z: NDArray[np.float32], slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the scores of all outputs side by side, for features `z (n, d)` and `slots (n, outputs)`."""
        return np.concatenate(
            [
                scores(z if columns is None else z[:, columns], slots[:, i])
                for i, (columns, scores) in enumerate(self._parts)
            ],
            axis=1,
        )
