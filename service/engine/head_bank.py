"""Resident heads: rows of contiguous arrays, so that a batch of a thousand users costs one gather."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from models.heads.head import Head

SHARED = 0
"""Slot of the shared head."""

Key = tuple[str, int]


class HeadBank:
    """Heads by (user, version) in slots, least recently used ones evicted; slot 0 is the shared head.

    A slot that a queued request refers to is pinned and keeps its head until that request is answered. All methods
    but `logits` belong to the event loop's thread; `logits` may run on the engine's, for it only reads pinned rows.
    """

    def __init__(self, shared: Head, capacity: int) -> None:
        k, d = shared.weight.shape
        rows = min(64, capacity + 1)
        self._weight = np.zeros((rows, k, d), np.float32)
        self._bias = np.zeros((rows, k), np.float32)
        self._weight[SHARED], self._bias[SHARED] = shared.weight, shared.bias
        self._capacity = capacity
        self._slots: OrderedDict[Key, int] = OrderedDict()
        self._pins = np.zeros(rows, np.int64)
        self._orphans: set[int] = set()
        self._free = list(range(rows - 1, SHARED, -1))
        self.hits = self.misses = self.evictions = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return self._weight.nbytes + self._bias.nbytes

    def pin(self, key: Key) -> int | None:
        """Return the slot of a resident head and hold it, or None."""
        slot = self._slots.get(key)
        if slot is None:
            self.misses += 1
            return None
        self.hits += 1
        self._slots.move_to_end(key)
        self._pins[slot] += 1
        return slot

    def insert(self, key: Key, head: Head) -> int:
        """Make a head resident and hold its slot."""
        slot = self._slots.get(key)
        if slot is None:
            slot = self._take()
            self._weight[slot], self._bias[slot] = head.weight, head.bias
            self._slots[key] = slot
        self._slots.move_to_end(key)
        self._pins[slot] += 1
        return slot

    def unpin(self, slots: Iterable[int]) -> None:
        """Let go of slots held by `pin` or `insert`, once each."""
        for slot in slots:
            if slot == SHARED:
                continue
            self._pins[slot] -= 1
            if not self._pins[slot] and slot in self._orphans:
                self._orphans.remove(slot)
                self._release(slot)

    def forget(self, user: str) -> int:
        """Drop every head of a user; returns how many there were."""
        keys = [key for key in self._slots if key[0] == user]
        for key in keys:
            slot = self._slots.pop(key)
            if self._pins[slot]:
                self._orphans.add(slot)
            else:
                self._release(slot)
        return len(keys)

    def logits(self, z: NDArray[np.float32], slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Apply to each row of `z (n, d)` the head in its slot; `(n, K)`."""
        weight, bias = self._weight, self._bias
        first = slots[0]
        if (slots == first).all():
            return np.asarray(z @ weight[first].T + bias[first])
        return np.asarray(np.matmul(weight[slots], z[:, :, None])[:, :, 0] + bias[slots])

    def _release(self, slot: int) -> None:
        self._weight[slot] = 0.0
        self._bias[slot] = 0.0
        self._free.append(slot)

    def _take(self) -> int:
        if len(self._slots) >= self._capacity:
            victim = next((key for key, slot in self._slots.items() if not self._pins[slot]), None)
            if victim is not None:
                self.evictions += 1
                self._release(self._slots.pop(victim))
        if not self._free:
            self._grow()
        return self._free.pop()

    def _grow(self) -> None:
        """Double the rows, in new arrays: a gather under way keeps reading the old ones, the same in pinned rows."""
        rows = len(self._bias)
        weight = np.zeros((2 * rows, *self._weight.shape[1:]), np.float32)
        bias = np.zeros((2 * rows, self._bias.shape[1]), np.float32)
        weight[:rows], bias[:rows] = self._weight, self._bias
        self._pins = np.concatenate([self._pins, np.zeros(rows, np.int64)])
        # The bias goes first: `logits` reads weight then bias, and either generation holds a pinned row whole.
        self._bias, self._weight = bias, weight
        self._free.extend(range(2 * rows - 1, rows - 1, -1))
