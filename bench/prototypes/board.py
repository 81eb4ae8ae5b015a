"""Memory that front ends and the engine share: rows on their way, scores on their way back, heads."""

from __future__ import annotations

import copy
import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.head_table import HeadTable

ENTRIES = 2048
"""Rows of one front end that may be under way."""
LINE = 8
"""Counters a cache line, of which one is used: two writers do not share a line."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the memory is made for."""

    front_ends: int
    window: tuple[int, ...]
    dtype: np.dtype[Any]
    classes: int
    dim: int
    slots: int
    """Heads that one front end may keep."""


class Board:
    """Anonymous shared memory, inherited by processes that are forked.

    A row is an entry; entries of a front end are numbered from `front end x ENTRIES`. Two rings a front end carry entry
    numbers: `sent` to the engine and `done` back. Each has one writer, which moves its tail; the reader keeps its own
    head. No more entries are under way than a ring holds.

    Attributes:
        x, slot, scores: by entry: the window, the slot of the head in `table`, logits and probabilities.
        tails: `sent` of each front end, `done` of each, and whether the engine sleeps.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        n, entries = shape.front_ends, shape.front_ends * ENTRIES
        sizes = ((2 * n + 1) * LINE * 8, 2 * entries * 8, entries * 8, entries * 8 * shape.classes)
        row = int(np.prod(shape.window)) * shape.dtype.itemsize
        table = HeadTable.nbytes(n * shape.slots, shape.classes, shape.dim)
        memory = memoryview(mmap.mmap(-1, sum(sizes) + entries * row + table + 64))
        parts, at = [], 0
        for size in (*sizes, entries * row, table):
            parts.append(memory[at : at + size])
            at += -(-size // 8) * 8
        self.tails, self._rings = parts[0].cast("q"), parts[1].cast("q")
        self.slot: NDArray[np.int64] = np.frombuffer(parts[2], np.int64)
        self.scores = np.frombuffer(parts[3], np.float32).reshape(entries, 2 * shape.classes)
        self.x: NDArray[Any] = np.frombuffer(parts[4], shape.dtype).reshape(entries, *shape.window)
        self.table = HeadTable(n * shape.slots, shape.classes, shape.dim, parts[5])

    def sent(self, front_end: int) -> memoryview:
        """Return the ring of entries that the engine is to run."""
        return self._rings[2 * front_end * ENTRIES : (2 * front_end + 1) * ENTRIES]

    def done(self, front_end: int) -> memoryview:
        """Return the ring of entries whose scores are there."""
        return self._rings[(2 * front_end + 1) * ENTRIES : (2 * front_end + 2) * ENTRIES]

    def heads_of(self, front_end: int) -> HeadTable:
        """Return one front end's part of the table."""
        part, first, slots = copy.copy(self.table), front_end * self.shape.slots, self.shape.slots
        part.slots = slots
        for name in ("stamps", "weight", "bias", "used"):
            setattr(part, name, getattr(self.table, name)[first : first + slots])
        return part
