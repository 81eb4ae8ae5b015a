"""Memory of one version that the processes serving it share: heads and counts."""

from __future__ import annotations

import mmap
import os
import weakref
from typing import NamedTuple

import numpy as np

from service.engine.head_table import HeadTable
from service.engine.statistics import cells


class Layout(NamedTuple):
    """What is in the memory: a table of heads `(slots, K, d)`, and a row of counts a process."""

    slots: int
    k: int
    d: int
    largest_batch: int
    processes: int

    @property
    def counts_nbytes(self) -> int:
        """Bytes of the counts, in whole pages."""
        return -(-self.processes * cells(self.largest_batch) * 8 // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return self.counts_nbytes + HeadTable.nbytes(self.slots, self.k, self.d)


class ModelMemory:
    """The arrays of one version.

    Attributes:
        table: the heads.
        counts: `(processes, cells)` int64.
        fd: to be sent to the other processes; None where the memory is this process's own.
    """

    def __init__(self, layout: Layout, fd: int | None = None) -> None:
        self.layout, self.fd = layout, fd
        size = layout.nbytes
        buffer = memoryview(np.zeros(size, np.uint8) if fd is None else mmap.mmap(fd, size))  # type: ignore[arg-type]
        self.counts = np.ndarray((layout.processes, cells(layout.largest_batch)), np.int64, buffer)
        self.table = HeadTable(layout.slots, layout.k, layout.d, buffer[layout.counts_nbytes :])
        if fd is not None:
            weakref.finalize(self, os.close, fd)

    def fileno(self) -> int:
        """Return the descriptor of shared memory."""
        assert self.fd is not None
        return self.fd

    @classmethod
    def shared(cls, layout: Layout) -> ModelMemory:
        """Make memory that can be sent to other processes."""
        fd = os.memfd_create("headway-model", os.MFD_CLOEXEC)
        os.ftruncate(fd, layout.nbytes)
        return cls(layout, fd)
