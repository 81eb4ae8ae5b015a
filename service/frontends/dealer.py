"""Accepts connections, and gives each to the front end that has the fewest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Callable, Iterable
from typing import Any

from service.frontends.board import Board
from service.frontends.frontend import Frontend

log = logging.getLogger("headway")

ACCEPTED_AT_ONCE = 64
SPARE_FILES, MOST_FILES = 64, 1 << 20


def raise_limit_of_files() -> int:
    """Raise the limit of open files as far as this process may, for itself and its front ends; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return MOST_FILES if soft == resource.RLIM_INFINITY else min(soft, MOST_FILES)


class Dealer:
    """Deals connections; belongs to the event loop of the primary.

    Args:
        listener: where clients connect.
        board: counts connections that front ends have closed.
        frontends: those that there are.
        serve: takes a connection in this process, where no front end is ready.
    """

    def __init__(
        self,
        listener: socket.socket,
        board: Board,
        frontends: Callable[[], Iterable[Frontend]],
        serve: Callable[[socket.socket], Any],
    ) -> None:
        self._listener, self._board, self._frontends, self._serve = listener, board, frontends, serve
        self._loop = asyncio.get_running_loop()
        self._most = max(1, raise_limit_of_files() // 2 - SPARE_FILES)  # each may need one to the primary
        self._ending = False

    def start(self) -> None:
        """Begin to accept."""
        self._listener.setblocking(False)
        self._listen()

    def stop(self) -> None:
        """Accept no more."""
        self._ending = True
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    def ready(self) -> list[Frontend]:
        """Front ends that take connections."""
        return [f for f in self._frontends() if f.ready and not f.channel.closed]

    def give(self, connection: socket.socket) -> None:
        """Give a connection to the front end that has the fewest."""
        ready = self.ready()
        if not ready:  # the primary can do all that they can
            self._serve(connection)
            return
        chosen = min(ready, key=self._held)
        chosen.given += 1
        # Kept until the front end has it: if that ends before, another one gets it.
        chosen.untaken.append(connection)
        chosen.channel.post("connection", files=[connection])

    def _listen(self) -> None:
        if not self._ending:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            if self._full():
                self._pause(0.05)
                return
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as e:  # no descriptors left: those who wait may be taken when some are closed
                log.error("no connection can be accepted: %s", e)
                self._pause(1.0)
                return
            connection.setblocking(False)
            self.give(connection)

    def _pause(self, seconds: float) -> None:
        """Leave connections in the system's queue for a while."""
        self._loop.remove_reader(self._listener.fileno())
        self._loop.call_later(seconds, self._listen)

    def _full(self) -> bool:
        """Whether every front end has as many connections as it has descriptors for, with some to spare."""
        ready = self.ready()
        return bool(ready) and min(map(self._held, ready)) >= self._most

    def _held(self, frontend: Frontend) -> int:
        """Connections that a front end has."""
        return frontend.given - int(self._board.closed[frontend.number])
