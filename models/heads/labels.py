"""Label sets that grow: a user's own labels beside the population's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Recall:
    """Share of a class's windows that are decided rightly, before and after a change; None where it has no windows."""

    label: str
    windows: int
    before: float | None
    after: float | None


def recalls(
    before: NDArray[np.floating], after: NDArray[np.floating], y: NDArray[np.integer], labels: Sequence[str]
) -> list[Recall]:
    """Report each class's recall on held-out windows under two heads' logits `(n, K)`; the first may know fewer."""
    found = []
    for c, label in enumerate(labels):
        own = y == c
        if not own.any():
            found.append(Recall(label, 0, None, None))
            continue
        shares = [float((logits[own].argmax(1) == c).mean()) for logits in (before, after)]
        found.append(Recall(label, int(own.sum()), *shares))
    return found
