"""What the primary knows of one front end."""

from __future__ import annotations

import socket
import subprocess
import time
from collections import deque

from service.frontends.channel import Channel


class Frontend:
    """One front end: its process, the channel to it, and the connections that it was given.

    Attributes:
        number: its place; its successor has the same.
        begin: when it was started, on the monotonic clock.
        ready: whether it serves all models.
        given: connections that it was given.
        untaken: those of them that it has not said it has.
    """

    def __init__(self, number: int, process: subprocess.Popen[bytes]) -> None:
        self.number, self.process = number, process
        self.channel: Channel
        self.begin = time.monotonic()
        self.ready = False
        self.given = 0
        self.untaken: deque[socket.socket] = deque()

    def taken(self, content: dict[str, object], fds: list[int]) -> None:
        """It has the connection that it was given first of those left: close this process's copy."""
        self.untaken.popleft().close()
