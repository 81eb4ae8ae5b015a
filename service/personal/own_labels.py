"""Labels of users' own, beyond the bundle's: which class each is of, for good."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.errors import Unprocessable


def placed(
    y: NDArray[np.int64], names: Sequence[str], held: tuple[str, ...], known: int, room: int
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Give classes to labels that the bundle does not know: those they have, or the next ones.

    Args:
        y: class indices `(n,)`; from `known` on they count `names`.
        names: labels that the bundle does not know.
        held: the user's own labels so far, of the classes `known`, `known + 1`, ….
        known: number of the bundle's labels.
        room: labels of their own that a user may have.

    Returns:
        Class indices `(n,)`, and the user's own labels then.

    Raises:
        Unprocessable: there would be too many.
    """
    if not names:
        return y, held
    after = (*held, *(name for name in names if name not in held))
    if len(after) > room:
        raise Unprocessable(
            f"{', '.join(after[len(held) :])} would be {len(after)} labels of the user's own beside the model's, which "
            f"has room for {room}; there are {', '.join(held) or 'none'} so far"
        )
    index = np.array([known + after.index(name) for name in names], np.int64)
    return np.where(y < known, y, index[np.maximum(y - known, 0)]), after
