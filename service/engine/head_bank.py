"""Resident heads: rows of contiguous arrays, so that a batch of a thousand users costs one gather."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from models.heads.head import Head, softmax
from service.errors import TooManyRequests

SPARE_SLOTS = 16384 + 1
"""Rows beyond the capacity: the shared head's, and those of heads dropped or taken while requests hold every other."""
SHARED = 0
"""Slot of the shared head."""

Key = tuple[str, int]


class HeadBank:
    """Heads by (user, version) in slots, least recently used ones evicted; slot 0 is the shared head.

    A slot that a queued request refers to is pinned and keeps its head until that request is answered. All methods
    but `logits` and `scores` belong to the event loop's thread; those two may run on the engine's, for they only read
    pinned rows.
    """

    def __init__(self, shared: Head, capacity: int, *, max_bytes: int = 1 << 62) -> None:
        k, d = shared.weight.shape
        head_bytes: int = 4 * k * (d + 1)
        self._capacity: int = max(1, min(capacity, max_bytes // head_bytes))
        # Pages of zeros are not taken from the system before they are written: rows cost nothing until they are used.
        rows = self._capacity + SPARE_SLOTS
        self._weight = np.zeros((rows, k, d), np.float32)
        self._bias = np.zeros((rows, k), np.float32)
        self._weight[SHARED], self._bias[SHARED] = shared.weight, shared.bias
        self._head_bytes = head_bytes
        self._slots: dict[Key, int] = {}
        self._idle: OrderedDict[int, Key] = OrderedDict()  # resident and not held, the one let go first in front
        self._keys: dict[int, Key] = {}
        self._versions: dict[str, set[int]] = {}
        self._pins = [0] * rows
        self._orphans: set[int] = set()
        self._free = list(range(rows - 1, SHARED, -1))  # the end is taken first
        self.hits = self.misses = self.evictions = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def nbytes(self) -> int:
        """Bytes that resident heads take."""
        return (len(self._slots) + len(self._orphans)) * self._head_bytes

    @property
    def capacity(self) -> int:
        """Heads that may be resident."""
        return self._capacity

    def pin(self, key: Key) -> int | None:
        """Return the slot of a resident head and hold it, or None."""
        slot = self._slots.get(key)
        if slot is None:
            self.misses += 1
            return None
        self.hits += 1
        self._hold(slot)
        return slot

    def insert(self, key: Key, head: Head) -> int:
        """Make a head resident and hold its slot.

        Raises:
            TooManyRequests: every slot is held by requests that wait.
        """
        slot = self._slots.get(key)
        if slot is None:
            slot = self._take()
            self._weight[slot], self._bias[slot] = head.weight, head.bias
            self._slots[key], self._keys[slot] = slot, key
            self._versions.setdefault(key[0], set()).add(key[1])
        self._hold(slot)
        return slot

    def unpin(self, slots: Iterable[int]) -> None:
        """Let go of slots held by `pin` or `insert`, once each."""
        for slot in slots:
            if slot == SHARED:
                continue
            self._pins[slot] -= 1
            if self._pins[slot]:
                continue
            if slot in self._orphans:
                self._orphans.remove(slot)
                self._release(slot)
            else:
                self._idle[slot] = self._keys[slot]

    def forget(self, user: str) -> int:
        """Drop every head of a user; returns how many there were."""
        numbers = self._versions.get(user, set())
        gone = len(numbers)
        for number in list(numbers):
            self._drop((user, number))
        return gone

    def logits(self, z: NDArray[np.float32], slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Apply to each row of `z (n, d)` the head in its slot; `(n, K)`."""
        weight, bias = self._weight, self._bias
        first = slots[0]
        if len(slots) == 1 or (slots == first).all():
            return np.asarray(z @ weight[first].T + bias[first])
        return np.asarray(np.matmul(weight[slots], z[:, :, None])[:, :, 0] + bias[slots])

    def scores(self, z: NDArray[np.float32], slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return logits and, behind them, probabilities, `(n, 2 K)`: once a batch, for what numpy costs is the call."""
        logits = self.logits(z, slots)
        return np.concatenate([logits, softmax(logits)], axis=1)

    def _hold(self, slot: int) -> None:
        self._pins[slot] += 1
        self._idle.pop(slot, None)

    def _drop(self, key: Key) -> None:
        slot = self._slots.pop(key)
        del self._keys[slot]
        self._idle.pop(slot, None)
        numbers = self._versions[key[0]]
        numbers.discard(key[1])
        if not numbers:
            del self._versions[key[0]]
        if self._pins[slot]:
            self._orphans.add(slot)
        else:
            self._release(slot)

    def _release(self, slot: int) -> None:
        self._weight[slot] = 0.0
        self._bias[slot] = 0.0
        self._free.append(slot)

    def _take(self) -> int:
        # More than one goes where the bank grew past its capacity while requests held every head.
        while self._idle and len(self._slots) >= self._capacity:
            self.evictions += 1
            self._drop(next(iter(self._idle.values())))
        if not self._free:
            raise TooManyRequests(
                f"all {len(self._pins) - 1} places of resident heads are held by requests that wait", retry_after=1
            )
        return self._free.pop()
