"""Resident heads: which user's head is in which slot, and which one makes room."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from models.heads.head import Head
from service.engine.head_table import SHARED, HeadTable, head_bytes
from service.errors import TooManyRequests

SPARE_SLOTS = 16384 + 1
"""Rows beyond the capacity: the shared head's, and those of heads dropped or taken while requests hold every other."""
SECOND_CHANCES = 64
"""Heads passed over at one eviction, because another process has used them since they were last looked at."""

Key = tuple[str, int]


class _Idle(NamedTuple):
    key: Key
    since: float


def capacity_of(k: int, d: int, heads: int, max_bytes: int) -> int:
    """Heads `(K, d)` that may be resident: so many, as far as they fit into `max_bytes`, and at least one."""
    return max(1, min(heads, max_bytes // head_bytes(k, d)))


class HeadBank:
    """Heads by (user, version) in slots, least recently used ones evicted; slot 0 is the shared head.

    A slot that a queued request refers to is pinned and keeps its head until that request is answered. Where other
    processes read the table too, a head also stays for `lease` seconds after it was last held here, and what they have
    used is passed over (they mark it in the table). All methods belong to the event loop's thread.
    """

    def __init__(self, shared: Head, capacity: int, *, table: HeadTable | None = None, lease: float = 0.0) -> None:
        self._capacity, self._lease = capacity, lease
        self.table = HeadTable(capacity + SPARE_SLOTS, *shared.weight.shape) if table is None else table
        self.table.put(SHARED, shared)
        self._slots: dict[Key, int] = {}
        self._idle: OrderedDict[int, _Idle] = OrderedDict()  # resident and not held, the one let go first in front
        self._keys: dict[int, Key] = {}
        self._versions: dict[str, set[int]] = {}
        self._own: dict[int, tuple[str, ...]] = {}
        self._pins: dict[int, int] = {}
        self._orphans: set[int] = set()
        self._free: list[int] = []  # of those used before
        self._unused = SHARED + 1
        self.hits = self.misses = self.evictions = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def nbytes(self) -> int:
        """Bytes that resident heads take."""
        return (len(self._slots) + len(self._orphans)) * self.table.head_bytes

    @property
    def capacity(self) -> int:
        """Heads that may be resident."""
        return self._capacity

    def pin(self, key: Key) -> int | None:
        """Return the slot of a resident head and hold it, or None."""
        slot = self._slots.get(key)
        if slot is None:
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
            self.table.put(slot, head)
            self._slots[key], self._keys[slot] = slot, key
            if head.own:
                self._own[slot] = head.own
            self._versions.setdefault(key[0], set()).add(key[1])
        self._hold(slot)
        return slot

    def own(self, slot: int) -> tuple[str, ...]:
        """Return the labels of a user's own that the head in a slot knows."""
        return self._own.get(slot, ())

    def unpin(self, slots: Iterable[int]) -> None:
        """Let go of slots held by `pin` or `insert`, once each."""
        for slot in slots:
            if slot == SHARED:
                continue
            self._pins[slot] -= 1
            if self._pins[slot]:
                continue
            del self._pins[slot]
            if slot in self._orphans:
                self._orphans.remove(slot)
                self._release(slot)
            else:
                self._rest(slot)

    def forget(self, user: str) -> int:
        """Drop every head of a user; returns how many there were."""
        numbers = self._versions.get(user, set())
        gone = len(numbers)
        for number in list(numbers):
            self._drop((user, number))
        return gone

    def _hold(self, slot: int) -> None:
        self._pins[slot] = self._pins.get(slot, 0) + 1
        self._idle.pop(slot, None)

    def _rest(self, slot: int) -> None:
        self._idle[slot] = _Idle(self._keys[slot], time.monotonic() if self._lease else 0.0)

    def _drop(self, key: Key) -> None:
        slot = self._slots.pop(key)
        self.table.give_up(slot)
        del self._keys[slot]
        self._idle.pop(slot, None)
        numbers = self._versions[key[0]]
        numbers.discard(key[1])
        if not numbers:
            del self._versions[key[0]]
        if slot in self._pins:
            self._orphans.add(slot)
        else:
            self._release(slot)

    def _release(self, slot: int) -> None:
        self.table.clear(slot)
        self._own.pop(slot, None)
        self._free.append(slot)

    def _take(self) -> int:
        # More than one goes where the bank grew past its capacity while requests held every head.
        while len(self._slots) >= self._capacity:
            oldest = self._oldest()
            if oldest is None:
                break
            self.evictions += 1
            self._drop(oldest)
        if self._free:
            return self._free.pop()
        if self._unused == self.table.slots:
            raise TooManyRequests(
                f"all {self.table.slots - 1} places of resident heads are held by requests that wait", retry_after=1
            )
        self._unused += 1
        return self._unused - 1

    def _oldest(self) -> Key | None:
        """Return the head to let go next, or None where each is held or leased."""
        for _ in range(min(SECOND_CHANCES, len(self._idle))):
            slot, idle = next(iter(self._idle.items()))
            if self._lease and idle.since + self._lease > time.monotonic():
                return None
            if not self.table.used[slot]:
                return idle.key
            self.table.used[slot] = 0
            self._idle.move_to_end(slot)
            self._rest(slot)
        return next(iter(self._idle.values())).key if self._idle else None
