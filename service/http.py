"""uvicorn's HTTP protocol with a short cut: posts of the data plane go from the parser to the data plane.

Every other request, and any of the data plane that is unusual (chunked, `Expect`, pipelined behind another, without a
key where one is needed), takes
uvicorn's own way to the application, whose routes hand it to the same data plane.
"""

from __future__ import annotations

import asyncio
import gc
import re
import time
from typing import Any
from urllib.parse import parse_qsl, unquote

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.call import Call
from service.config import Settings
from service.data_plane import DataPlane
from service.observability import request_id_of
from service.protocol.body import patience, stalled

_PATH = re.compile(
    rb"/v2/models/([^/?]+)(?:/versions/([^/?]+)(?=/infer))?/(infer|predict|features)(?:\?(.*))?", re.DOTALL
)
YOUNG_OBJECTS = 10_000
"""Container objects made between collections: requests leave no cycles, and sixty-four under way hold thousands."""
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_UNUSUAL = frozenset((b"transfer-encoding", b"expect", b"upgrade"))


class _NobodyWaits:
    """Stands where uvicorn's own cycle has an event."""

    def set(self) -> None:
        """Wake nobody."""


_NOBODY_WAITS = _NobodyWaits()


class _Exchange:
    """A request of the data plane on its connection: what uvicorn asks of its own cycle, and no more."""

    __slots__ = (
        "begin", "body", "call", "disconnected", "headers", "keep_alive", "message_event", "more_body",
        "path", "response_complete",
    )  # fmt: skip

    def __init__(self, path: re.Match[bytes], headers: dict[bytes, bytes], keep_alive: bool) -> None:
        self.path, self.headers, self.keep_alive = path, headers, keep_alive
        self.begin = time.monotonic()
        self.body: list[bytes] = []
        self.call: Call | None = None
        self.response_complete = self.disconnected = False
        self.more_body = True
        self.message_event = _NOBODY_WAITS


class Protocol(HttpToolsProtocol):
    """One connection."""

    plane: DataPlane
    """What answers; set on a subclass by `protocol_of`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._exchange: _Exchange | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; a client that asks nothing is not waited for longer than one that asks nothing more."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and watch over a body that is slow to come."""
        if (b"pgrade:" in data or b"PGRADE:" in data) and (self.cycle is None or self.cycle.response_complete):
            data = _without_upgrade(data)
        # uvicorn cancels and sets its keep-alive timer at each request; here one timer looks at when it rings.
        timer, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        super().data_received(data)
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = timer
        elif timer is not None:
            timer.cancel()
        exchange = self._exchange
        if exchange is not None and exchange.more_body:
            if self._stall is None:
                self._stall = self.loop.call_later(patience(0), self._stalled)
        elif self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def on_message_begin(self) -> None:
        """Begin a request."""
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide which way the request takes."""
        if self.cycle is None or self.cycle.response_complete:
            path = _PATH.fullmatch(self.url)
            if path is not None and self.parser.get_method() == b"POST":
                headers = dict(self.headers)
                length = headers.get(b"content-length", b"0")
                keys = self.plane.keys
                admitted = keys is None or keys.allows(headers.get(b"authorization"), "data")
                usual = _UNUSUAL.isdisjoint(headers) and len(length) < 12 and int(length) <= self.plane.max_body
                if admitted and usual:
                    keep_alive = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
                    self._exchange = _Exchange(path, headers, keep_alive)
                    self.cycle = self._exchange  # type: ignore[assignment]
                    return
        url, headers_seen = self.url, self.headers
        super().on_message_begin()
        self.url, self.headers, self.scope["headers"] = url, headers_seen, headers_seen
        self.expect_100_continue = any(n == b"expect" and v.lower() == b"100-continue" for n, v in headers_seen)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        exchange = self._exchange
        if exchange is None or not exchange.more_body:
            super().on_body(body)
        else:
            exchange.body.append(body)

    def on_message_complete(self) -> None:
        """Hand a complete request to the data plane."""
        exchange = self._exchange
        if exchange is None or not exchange.more_body:
            super().on_message_complete()
            return
        exchange.more_body = False
        body = exchange.body[0] if len(exchange.body) == 1 else b"".join(exchange.body)
        exchange.body = []
        self.plane.begin(self._call(exchange, body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up what the client no longer waits for."""
        exchange, self._exchange = self._exchange, None
        super().connection_lost(exc)
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        if exchange is not None and exchange.call is not None:
            call, exchange.call = exchange.call, None
            self.plane.cancel(call)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle for the whole time, else look again."""
        busy = self.cycle is not None and not self.cycle.response_complete
        left = self.timeout_keep_alive if busy else self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            super().timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)

    def on_response_complete(self) -> None:
        """Go on with what the connection has to do next."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def _reply(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None or self.transport.is_closing():
            return
        exchange.response_complete, exchange.call = True, None  # the call knows this connection: no cycle is left
        parts = [STATUS_LINE[status]]
        for name, value in self.server_state.default_headers:
            parts += (name, b": ", value, b"\r\n")
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        if not exchange.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"content-length: %d\r\n\r\n" % len(body), body)
        self.transport.write(b"".join(parts))
        if not exchange.keep_alive:
            self.transport.close()
        if self.pipeline or self.timeout_keep_alive_task is None:
            self.on_response_complete()
        else:
            self._idle_since = self.loop.time()
            self.server_state.total_requests += 1

    def _stalled(self) -> None:
        """Say that the body did not come in time, and close; or wait on, if it comes fast enough."""
        self._stall = None
        exchange = self._exchange
        if exchange is None or not exchange.more_body:
            return
        size = sum(map(len, exchange.body))
        left = exchange.begin + patience(size) - time.monotonic()
        if left > 0:
            self._stall = self.loop.call_later(left, self._stalled)
            return
        exchange.keep_alive = exchange.more_body = False
        self.plane.fail(self._call(exchange, b""), stalled(size))

    def _call(self, exchange: _Exchange, body: bytes) -> Call:
        name, version, endpoint, query = exchange.path.groups()
        exchange.call = Call(
            endpoint.decode(),
            _text(name),
            None if version is None else _text(version),
            exchange.headers,
            dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)) if query else {},
            body,
            self._reply,
            request_id_of(exchange.headers.get(b"x-request-id")),
            exchange.begin,
        )
        return exchange.call


def _without_upgrade(data: bytes) -> bytes:
    """Take the offer of another protocol out of a request's head: none is spoken here, and the parser stops at it."""
    end = data.find(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nx-not-upgraded:", data[:end], count=1) + data[end:] if end >= 0 else data


def _text(quoted: bytes) -> str:
    return unquote(quoted.decode("latin-1")) if b"%" in quoted else quoted.decode("latin-1")


def protocol_of(plane: DataPlane) -> type[Protocol]:
    """Return the protocol class of a running service."""
    return type("ServiceProtocol", (Protocol,), {"plane": plane})


def config_of(app: Any, protocol: type[Protocol], settings: Settings, **options: Any) -> uvicorn.Config:
    """Return uvicorn's configuration for connections of the service."""
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=settings.drain_seconds,
        timeout_keep_alive=75,
        **options,
    )


def keep_collections_short() -> None:
    """Let the garbage collector not look again at what start-up or loading made: it lives as long as the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
