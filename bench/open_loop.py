"""An open load: requests leave at their times, whether or not earlier ones were answered."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.load import Body

TIMEOUT_SECONDS = 120.0
"""Longer than a full queue takes to be served."""
TURN_SECONDS = 0.002
IDLE_SECONDS = 30.0
"""After which a connection is not used again: the server may be closing it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """When a request left, in seconds since the start, how long its answer took, and the status (0: none came)."""

    at: float
    seconds: float
    status: int


class Connections:
    """Keep-alive connections to one server, opened as they are needed."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = []

    async def post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """Send one request and return the status and the body; `(0, b"")` where none came."""
        return await self.send(self.message(path, body, headers))

    def message(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        """Return a request as it goes over the wire."""
        lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
        return head.encode() + body

    async def send(self, message: bytes) -> tuple[int, bytes]:
        """Do the same with a request that was made before."""
        writer = None
        try:
            reader, writer = await self._connection()
            writer.write(message)
            status, content = await asyncio.wait_for(_answer(reader), TIMEOUT_SECONDS)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            if writer is not None:
                writer.close()
            return 0, b""
        self._free.append((reader, writer, time.monotonic()))
        return status, content

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            reader, writer, last = self._free.pop()
            if time.monotonic() - last < IDLE_SECONDS:
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)

    async def abandon(self, path: str, body: bytes, headers: dict[str, str], share: float) -> None:
        """Send a part of a request, or all of it, and hang up without reading."""
        message = self.message(path, body, headers)
        _, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(message[: len(message) - int((1 - share) * len(body))])
        await writer.drain()
        writer.close()

    def close(self) -> None:
        """Hang up."""
        for _, writer, _ in self._free:
            writer.close()
        self._free.clear()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
    return int(lines[0].split(b" ", 2)[1]), await reader.readexactly(length)


async def offer(
    url: str, path: str, bodies: Sequence[Body], rate: float, seconds: float
) -> tuple[list[Answer], list[float]]:
    """Send `rate` requests a second for a while, going round the bodies; wait for all answers.

    Returns them, and by how many seconds this client came late to its turns: no latency is known better than that.

    Garbage is not collected meanwhile: with thousands of requests under way that would be pauses of this client.
    """
    gc.collect()
    gc.disable()
    try:
        return await _offer(url, path, bodies, rate, seconds)
    finally:
        gc.enable()


async def _offer(
    url: str, path: str, bodies: Sequence[Body], rate: float, seconds: float
) -> tuple[list[Answer], list[float]]:
    connections, answers, tasks, late = Connections(url), [], set(), []
    messages = [connections.message(path, body.filled(0), body.headers) for body in bodies]
    start = time.perf_counter()

    async def one(number: int) -> None:
        left = time.perf_counter()
        status, _ = await connections.send(messages[number % len(messages)])
        answers.append(Answer(left - start, time.perf_counter() - left, status))

    number = 0
    while (now := time.perf_counter() - start) < seconds:
        while number < rate * now:
            task = asyncio.create_task(one(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        asleep = time.perf_counter()
        await asyncio.sleep(TURN_SECONDS)
        late.append(time.perf_counter() - asleep - TURN_SECONDS)
    await asyncio.gather(*tasks)
    connections.close()
    return answers, late
