"""Small numbers that the primary and its front ends share: how often users' heads changed, connections closed."""

from __future__ import annotations

import mmap
import os
import zlib
from functools import cached_property

from service.personal.records import Scope

_BUCKETS = 1 << 16


class Board:
    """Shared memory of 64-bit numbers, each written by one process only.

    A user's *epoch* changes, before the call that changed it is answered, whenever their heads do. What a front end
    knows of a user is true as long as the epoch is the one that it read before it asked. Users share epochs by hash:
    another's change costs a question, never a wrong answer.
    """

    def __init__(self, frontends: int, fd: int | None = None) -> None:
        self._size = 8 * (_BUCKETS + frontends)
        if fd is None:
            fd = os.memfd_create("headway-board", os.MFD_CLOEXEC)
            os.ftruncate(fd, self._size)
        self.fd = fd

    def fileno(self) -> int:
        """Return the descriptor, for the other processes."""
        return self.fd

    @cached_property
    def _numbers(self) -> memoryview:
        return memoryview(mmap.mmap(self.fd, self._size)).cast("q")

    @cached_property
    def epochs(self) -> memoryview:
        """Changes by bucket; the primary writes."""
        return self._numbers[:_BUCKETS]

    @cached_property
    def closed(self) -> memoryview:
        """Connections that each front end has closed since the primary started; each writes its own."""
        return self._numbers[_BUCKETS:]

    @staticmethod
    def bucket(scope: Scope, user: str) -> int:
        """Return where a user's epoch is."""
        return zlib.crc32(f"{scope.tenant}/{scope.model}/{scope.feature_space}/{user}".encode()) % _BUCKETS

    def changed(self, scope: Scope, user: str) -> None:
        """Make what front ends know of a user void."""
        self.epochs[self.bucket(scope, user)] += 1
