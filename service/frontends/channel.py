"""Messages, and open files with them, between two processes on one machine."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson

log = logging.getLogger("headway")

Content = dict[str, Any]
Handler = Callable[[Content, list[int]], Any | Awaitable[Any]]
"""Takes a message's content and the descriptors that came with it, which it owns from then on."""


class File(Protocol):
    """Something open."""

    def fileno(self) -> int:
        """Return its descriptor."""


_LENGTH = struct.Struct("!I")
_READ, _MOST_FDS = 256 * 1024, 64


class ChannelClosed(ConnectionError):
    """The other process has ended, or closed the channel."""


class Channel:
    """One end of a pair of stream sockets, on the running event loop.

    A message names what to do; `post` waits for nothing, `call` for the answer. Messages arrive in the order sent, and
    a handler that is not a coroutine has ended before the next one begins. One that fails is told to the caller.
    """

    def __init__(self, end: socket.socket, handlers: Mapping[str, Handler], on_close: Callable[[], None]) -> None:
        end.setblocking(False)
        self._socket, self._handlers, self._on_close = end, handlers, on_close
        self._loop = asyncio.get_running_loop()
        self._out: deque[tuple[memoryview, Sequence[File]]] = deque()
        self._in, self._fds = bytearray(), deque[int]()
        self._ids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = False
        self._loop.add_reader(end.fileno(), self._readable)

    def post(self, do: str, content: Content | None = None, files: Sequence[File] = ()) -> None:
        """Send a message, with open files, which are held until they are sent.

        Raises:
            ChannelClosed: there is nobody to send to.
        """
        self._send({"do": do, "with": content or {}, "fds": len(files)}, files)

    def call(self, do: str, content: Content | None = None, files: Sequence[File] = ()) -> asyncio.Future[Any]:
        """Send a message at once, and return what its answer will be.

        The future fails with `ChannelClosed` if the other process ends before it answers, and with a `RuntimeError`
        that says why if it could not do it.

        Raises:
            ChannelClosed: there is nobody to send to.
        """
        number = next(self._ids)
        self._send({"do": do, "with": content or {}, "fds": len(files), "id": number}, files)
        future = self._calls[number] = self._loop.create_future()
        future.add_done_callback(lambda _: self._calls.pop(number, None))
        return future

    def close(self) -> None:
        """Close this end; calls that wait fail."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        for fd in self._fds:
            os.close(fd)
        self._out.clear()
        for future in list(self._calls.values()):
            if not future.done():
                future.set_exception(ChannelClosed("the other process has ended"))
        self._on_close()

    def _send(self, message: Content, files: Sequence[File] = ()) -> None:
        if self.closed:
            raise ChannelClosed("the other process has ended")
        data = orjson.dumps(message)
        self._out.append((memoryview(_LENGTH.pack(len(data)) + data), files))
        if len(self._out) == 1:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                data, files = self._out[0]
                if files:
                    sent = socket.send_fds(self._socket, [data], [file.fileno() for file in files])
                else:
                    sent = self._socket.send(data)
                if sent == len(data):
                    self._out.popleft()
                else:
                    self._out[0] = data[sent:], ()
        except BlockingIOError:
            self._loop.add_writer(self._socket.fileno(), self._flush)
            return
        except OSError:
            self._loop.call_soon(self.close)  # not at once: whoever sends goes through the others' channels
            return
        self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(self._socket, _READ, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds, flags = b"", [], 0
        self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC:  # which message the missing ones were of cannot be told any more
            log.error("no descriptors are left for files that another process sent: raise the limit (ulimit -n)")
            data = b""
        if not data:
            self.close()
            return
        self._in += data
        while len(self._in) >= _LENGTH.size and not self.closed:
            end = _LENGTH.size + _LENGTH.unpack_from(self._in)[0]
            if len(self._in) < end:
                break
            message = orjson.loads(memoryview(self._in)[_LENGTH.size : end])
            del self._in[:end]
            self._take(message)

    def _take(self, message: Content) -> None:
        if "do" not in message:
            future = self._calls.get(message["id"])
            if future is not None and not future.done():
                if "error" in message:
                    future.set_exception(RuntimeError(message["error"]))
                else:
                    future.set_result(message["answer"])
            return
        fds = [self._fds.popleft() for _ in range(message["fds"])]
        try:
            answer = self._handlers[message["do"]](message["with"], fds)
        except Exception as e:
            self._answer(message, error=e)
            return
        if inspect.isawaitable(answer):
            task = self._loop.create_task(self._await(message, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._answer(message, answer)

    async def _await(self, message: Content, answer: Awaitable[Any]) -> None:
        try:
            self._answer(message, await answer)
        except Exception as e:
            self._answer(message, error=e)

    def _answer(self, message: Content, answer: Any = None, error: Exception | None = None) -> None:
        if error is not None:
            log.error("the message %s failed", message["do"], exc_info=error)
        if "id" in message:
            said = {"answer": answer} if error is None else {"error": str(error) or type(error).__name__}
            with contextlib.suppress(ChannelClosed):
                self._send({"id": message["id"], **said})
