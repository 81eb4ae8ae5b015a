"""Heads as rows of contiguous arrays, so that a batch of a thousand users costs one gather.

One process writes; others that serve the same model may read the same memory. A slot's *stamp* counts how often it was
given up: whoever reads takes note of it with the slot, gathers, and looks again.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.heads.confidence import LEVELS
from models.heads.head import NEVER, Head, softmax

SHARED = 0
"""Slot of the shared head."""

_STAMP_SHIFT = 32
_SLOT_MASK = (1 << _STAMP_SHIFT) - 1
_order = threading.Lock()


def fence() -> None:
    """Keep what comes before in memory before what comes after, as other processes see it."""
    # What is before a lock may sink into it and what is behind may rise into it: two leave no way past each other.
    with _order:
        pass
    with _order:
        pass


class HeadMoved(RuntimeError):
    """A head was given up, to make room or because it was erased, between its look-up and its use."""


class HeadTable:
    """The arrays: `weight (n, K, d)`, `bias (n, K)`, `floors (n, L)` float32, `stamps (n,)` int64, `used (n,)` uint8.

    `floors` are of the heads' sets of labels, by coverage (`models.heads.confidence`); NaN where a head has none.

    Without a `buffer` the memory is this process's own. Pages of zeros are not taken from the system before they are
    written: slots cost nothing until they are used.
    """

    def __init__(self, slots: int, k: int, d: int, buffer: Any = None) -> None:
        if buffer is None:
            buffer = np.zeros(self.nbytes(slots, k, d), np.uint8)
        self.slots = slots
        self.head_bytes = head_bytes(k, d)
        taken = 0

        def array(shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
            nonlocal taken
            made = np.ndarray(shape, dtype, buffer, taken)
            taken += made.nbytes
            return made

        self.stamps = array((slots,), np.int64)
        self.weight = array((slots, k, d), np.float32)
        self.bias = array((slots, k), np.float32)
        self.floors = array((slots, len(LEVELS)), np.float32)
        self.used = array((slots,), np.uint8)

    @staticmethod
    def nbytes(slots: int, k: int, d: int) -> int:
        """Bytes of a table."""
        return slots * (8 + head_bytes(k, d) + 1)

    def put(self, slot: int, head: Head) -> None:
        """Write a head into a slot that nobody uses."""
        rows = len(head.bias)  # fewer than there are where the user has not added all the labels that they may
        self.weight[slot, :rows], self.bias[slot, :rows] = head.weight, head.bias
        self.weight[slot, rows:], self.bias[slot, rows:] = 0.0, NEVER
        known = head.floors is not None and len(head.floors) == len(LEVELS)
        self.floors[slot] = head.floors if known else np.nan

    def give_up(self, slot: int) -> None:
        """Make every handle of a slot void."""
        self.stamps[slot] += 1
        fence()

    def clear(self, slot: int) -> None:
        """Overwrite a slot that was given up with zeros."""
        self.weight[slot] = 0.0
        self.bias[slot] = 0.0
        self.floors[slot] = 0.0
        self.used[slot] = 0

    def handle(self, slot: int) -> int:
        """Return a slot and its present stamp in one number, for `HeadReader`."""
        return int(self.stamps[slot]) << _STAMP_SHIFT | slot

    def valid(self, handle: int) -> bool:
        """Whether a handle's slot still holds the head that it was made for."""
        return bool(self.stamps[handle & _SLOT_MASK] == handle >> _STAMP_SHIFT)

    def logits(self, z: NDArray[np.float32], slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Apply to each row of `z (n, d)` the head in its slot; `(n, K)`."""
        weight, bias = self.weight, self.bias
        first = slots[0]
        if len(slots) == 1 or (slots == first).all():
            return np.asarray(z @ weight[first].T + bias[first])
        return np.asarray(np.matmul(weight[slots], z[:, :, None])[:, :, 0] + bias[slots])

    def scores(self, z: NDArray[np.float32], slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return logits and, behind them, probabilities, `(n, 2 K)`: once a batch, for what numpy costs is the call."""
        logits = self.logits(z, slots)
        return np.concatenate([logits, softmax(logits)], axis=1)

    def floors_at(self, slots: NDArray[np.int64], level: int) -> NDArray[np.float32]:
        """Return for the head in each slot the floor of its sets at a level of coverage, `(n,)`."""
        return np.asarray(self.floors[slots, level])


def head_bytes(k: int, d: int) -> int:
    """Bytes of a head `(K, d)` in a table."""
    return 4 * (k * (d + 1) + len(LEVELS))


class HeadReader:
    """A table that another process writes, by handles."""

    def __init__(self, table: HeadTable) -> None:
        self.table = table

    def scores(self, z: NDArray[np.float32], handles: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the same as `HeadTable.scores`, and mark the slots as used.

        Raises:
            HeadMoved: a handle is void.
        """
        slots = handles & _SLOT_MASK
        scores = self.table.scores(z, slots)
        self._still(handles, slots)
        self.table.used[slots] = 1
        return scores

    def floors_at(self, handles: NDArray[np.int64], level: int) -> NDArray[np.float32]:
        """Return the same as `HeadTable.floors_at`.

        Raises:
            HeadMoved: a handle is void.
        """
        slots = handles & _SLOT_MASK
        floors = self.table.floors_at(slots, level)
        self._still(handles, slots)
        return floors

    def _still(self, handles: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """Raise `HeadMoved` unless what was read before this was of the heads meant."""
        fence()
        if (self.table.stamps[slots] != handles >> _STAMP_SHIFT).any():
            raise HeadMoved("a head moved while its request waited")
