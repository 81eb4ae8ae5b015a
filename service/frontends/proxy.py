"""What is not of the data plane goes on to the primary: a plain ASGI application in each front end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import httptools
from starlette.types import Message, Receive, Scope, Send

from service.errors import Unavailable, error_body
from service.observability import request_id_of

HOP_BY_HOP = frozenset(
    (b"connection", b"expect", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)


class _Answer:
    """Turns the primary's bytes into ASGI messages."""

    def __init__(self, headless: bool) -> None:
        self.messages: list[Message] = []
        self.complete = False
        self._headless = headless
        self._headers: list[tuple[bytes, bytes]] = []
        self._parser = httptools.HttpResponseParser(self)
        self.feed: Callable[[bytes], None] = self._parser.feed_data

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header."""
        if name.lower() not in HOP_BY_HOP:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Begin the answer."""
        status = self._parser.get_status_code()
        self.messages.append({"type": "http.response.start", "status": status, "headers": self._headers})
        if self._headless:  # to HEAD: the length is that of a body which does not come
            self.on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body."""
        self.messages.append({"type": "http.response.body", "body": body, "more_body": True})

    def on_message_complete(self) -> None:
        """End the answer."""
        self.complete = True
        self.messages.append({"type": "http.response.body", "body": b"", "more_body": False})


class Proxy:
    """Sends each request to the primary on a connection of its own; bodies go both ways as they come."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
        except OSError:
            await self._refuse(scope, send)
            return
        asking = asyncio.ensure_future(_ask(scope, receive, writer))
        answering = asyncio.ensure_future(_answer(reader, send, headless=scope["method"] == "HEAD"))
        try:
            await asyncio.wait((asking, answering), return_when=asyncio.FIRST_COMPLETED)
            if answering.done() and not answering.result():
                await self._refuse(scope, send)
        finally:
            asking.cancel()
            answering.cancel()
            await asyncio.gather(asking, answering, return_exceptions=True)
            writer.close()

    async def _refuse(self, scope: Scope, send: Send) -> None:
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        request_id = request_id_of(given)
        error = Unavailable("the process that keeps the store does not answer", retry_after=1)
        status, _, headers, body = error_body(error, request_id)
        headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers.append((b"x-request-id", request_id.encode("latin-1")))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _ask(scope: Scope, receive: Receive, writer: asyncio.StreamWriter) -> None:
    """Send the request; returns when the client has gone away."""
    headers = [(name, value) for name, value in scope["headers"] if name not in HOP_BY_HOP]
    chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    if chunked:
        headers.append((b"transfer-encoding", b"chunked"))
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    lines = [b"%s %s HTTP/1.1" % (scope["method"].encode(), target), b"connection: close"]
    lines += [name + b": " + value for name, value in headers]
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if chunked and body:
            body = b"%x\r\n%s\r\n" % (len(body), body)
        if chunked and not more:
            body += b"0\r\n\r\n"
        writer.write(body)
        with contextlib.suppress(ConnectionError):  # the primary has answered already: it wants no more of it
            await writer.drain()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(reader: asyncio.StreamReader, send: Send, *, headless: bool) -> bool:
    """Pass the answer on; returns whether there was one."""
    answer, begun = _Answer(headless), False
    while not answer.complete:
        try:
            data = await reader.read(64 * 1024)
        except ConnectionError:
            break
        if not data:
            break
        answer.feed(data)
        for message in answer.messages:
            begun = True
            await send(message)
        answer.messages.clear()
    return begun
