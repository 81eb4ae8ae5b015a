"""The way of a data-plane request: decode, heads, scheduler, encode. No task where nothing must be waited for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.bundle import InputSpec
from service import answers
from service.answers import JSON, Headers
from service.engine.jobs import Job, Result
from service.errors import DeadlineExceeded, HeadwayError, InvalidRequest, Unavailable, error_body
from service.loaded import LoadedModel
from service.personal.records import StoreError
from service.personal.resolve import ResolvedHead
from service.protocol import compression, inputs, oip, parameters
from service.protocol.parameters import Parameters
from service.state import Services

log = logging.getLogger("headway")
access = logging.getLogger("headway.access")

DECODED_HERE = 256 * 1024
"""Bodies up to so many bytes are decoded on the event loop; larger ones, unless binary, on a thread."""

Reply = Callable[[int, Headers, bytes], None]
Encode = Callable[[LoadedModel, Result, Sequence[ResolvedHead]], tuple[Headers, bytes]]


@dataclass(slots=True, eq=False)
class Call:
    """One request of the data plane, whoever reads it from the wire.

    Attributes:
        endpoint: `infer`, `predict` or `features`.
        model, version: as in the path.
        headers: by lower-case name.
        query: the query parameters.
        body: the whole body.
        reply: takes status, headers and body of the answer; called once, on the event loop, unless cancelled.
        request_id: for the answer and the log.
        begin: when it came, on the monotonic clock.
    """

    endpoint: str
    model: str
    version: str | None
    headers: Mapping[bytes, bytes]
    query: Mapping[str, str]
    body: bytes
    reply: Reply
    request_id: str
    begin: float
    over: bool = False
    job: Job | None = None
    task: asyncio.Task[None] | None = None
    loaded: LoadedModel | None = None
    heads: Sequence[ResolvedHead] = ()

    def header(self, name: bytes) -> str | None:
        """Return a header's value."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


@dataclass(slots=True)
class _Decoded:
    """What a body asks for, before the version that answers is chosen.

    Attributes:
        asked: the request's parameters.
        windows: reads the rows as a model takes them.
        users: returns each row's user; None where no head is wanted.
        encode: makes the answer.
    """

    asked: Parameters
    windows: Callable[[InputSpec], NDArray[Any]]
    users: Callable[[int], Sequence[str | None]] | None
    encode: Encode


class DataPlane:
    """Answers calls of the data plane; all methods belong to the event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._waiting: set[asyncio.Task[None]] = set()

    def begin(self, call: Call) -> None:
        """Take a call on its way. Its answer goes to `call.reply`, perhaps before this returns."""
        try:
            own = self._services
            if own.draining:
                raise Unavailable("the service is draining", retry_after=1)
            candidates = own.models.candidates(call.model, call.version)
            call.loaded = candidates[0]
            if b"content-encoding" in call.headers or (
                len(call.body) > DECODED_HERE and b"inference-header-content-length" not in call.headers
            ):
                self._later(call, self._decode_elsewhere(call, candidates), *candidates)
            else:
                self._choose(call, candidates, _decode(call, candidates[0].bundle.manifest.input))
        except Exception as e:
            self.fail(call, e)

    def cancel(self, call: Call) -> None:
        """The client went away: what has not run yet does not run."""
        if call.over:
            return
        call.over = True
        if call.task is not None:
            call.task.cancel()
        if call.job is not None:
            call.job.cancel()
        self._release(call)

    def fail(self, call: Call, error: Exception) -> None:
        """Answer with an error in the one shape."""
        self._release(call)
        if call.over:
            return
        if not isinstance(error, HeadwayError):
            log.error("request %s failed", call.request_id, exc_info=error)
        status, code, headers, body = error_body(error, call.request_id)
        self._services.metrics.refused(code)
        if call.loaded is not None:
            call.loaded.statistics.failed(time.monotonic() - call.begin)
        self._reply(call, status, [(b"content-type", JSON), *headers], body)

    async def _decode_elsewhere(self, call: Call, candidates: list[LoadedModel]) -> None:
        spec, limit = candidates[0].bundle.manifest.input, self._services.settings.max_body_bytes
        self._choose(call, candidates, await asyncio.to_thread(_inflate_and_decode, call, spec, limit))

    def _choose(self, call: Call, candidates: list[LoadedModel], decoded: _Decoded) -> None:
        """Choose the version: the one asked for, else the newest in which the user has a head, else the newest."""
        model: LoadedModel | None = candidates[0]
        user = decoded.asked.user_id
        if user is not None and len(candidates) > 1:
            model = self._services.resolver.preferred(candidates, user)
            if model is None:
                self._later(call, self._find_version(call, candidates, decoded, user), *candidates)
                return
        assert model is not None
        self._find_heads(call, model, decoded)

    async def _find_version(self, call: Call, candidates: list[LoadedModel], decoded: _Decoded, user: str) -> None:
        chosen = candidates[0]
        for model in candidates:
            if await self._services.resolver.has_head(model.scope, user):
                chosen = model
                break
        self._find_heads(call, chosen, decoded)

    def _find_heads(self, call: Call, model: LoadedModel, decoded: _Decoded) -> None:
        call.loaded = model
        asked, x = decoded.asked, decoded.windows(model.bundle.manifest.input)
        if decoded.users is None:
            self._queue(call, model, x, None, decoded)
            return
        users = decoded.users(len(x))
        heads = self._services.resolver.resident(model, users, asked.head_version, asked.fallback)
        if heads is None:
            self._later(call, self._fetch_heads(call, model, x, users, decoded), model)
        else:
            self._queue(call, model, x, heads, decoded)

    async def _fetch_heads(
        self, call: Call, model: LoadedModel, x: NDArray[Any], users: Sequence[str | None], decoded: _Decoded
    ) -> None:
        asked = decoded.asked
        left = None if asked.timeout is None else call.begin + asked.timeout - time.monotonic()
        try:
            async with asyncio.timeout(left):
                heads = await self._services.resolver.fetched(model, users, asked.head_version, asked.fallback)
        except TimeoutError as e:
            raise DeadlineExceeded("the timeout passed while the user's head was fetched") from e
        self._queue(call, model, x, heads, decoded)

    def _queue(
        self,
        call: Call,
        model: LoadedModel,
        x: NDArray[Any],
        heads: Sequence[ResolvedHead] | None,
        decoded: _Decoded,
    ) -> None:
        slots = None
        if heads is not None:
            call.heads = heads
            slots = np.array([h.slot for h in heads], np.int64)
        if call.over:
            self._release(call)
            return
        asked = decoded.asked
        call.job = model.scheduler.enqueue(
            x,
            slots,
            partial(self._done, call, model, decoded.encode),
            timeout=None if asked.timeout is None else call.begin + asked.timeout - time.monotonic(),
            priority=asked.priority,
            bulk=heads is None,
        )

    def _later(self, call: Call, coroutine: Coroutine[Any, Any, None], *models: LoadedModel) -> None:
        """Go on in a task, for something must be waited for; `models` stay loaded until it ends."""
        for model in models:
            model.uses += 1

        def ended(task: asyncio.Task[None]) -> None:
            coroutine.close()  # a task that was cancelled before its first step never touched it
            call.task = None
            self._waiting.discard(task)
            for model in models:
                model.uses -= 1

        call.task = asyncio.get_running_loop().create_task(self._guarded(call, coroutine))
        self._waiting.add(call.task)
        call.task.add_done_callback(ended)

    async def _guarded(self, call: Call, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except StoreError as e:
            self.fail(call, Unavailable(str(e), retry_after=2))
        except Exception as e:
            self.fail(call, e)

    def _done(self, call: Call, model: LoadedModel, encode: Encode, outcome: Result | Exception) -> None:
        heads = call.heads
        try:
            if isinstance(outcome, Exception):
                raise outcome
            headers, body = encode(model, outcome, heads)
        except Exception as e:
            self.fail(call, e)
            return
        self._release(call)
        total = time.monotonic() - call.begin
        timing = b"queue;dur=%.3f, infer;dur=%.3f, head;dur=%.3f, total;dur=%.3f" % (
            outcome.queue * 1e3,
            outcome.inference * 1e3,
            outcome.heads * 1e3,
            total * 1e3,
        )
        headers.append((b"server-timing", timing))
        self._services.metrics.answered(model, outcome, heads)
        model.statistics.answered(outcome, total)
        if len(body) > compression.WORTH_IT:
            headers.append((b"vary", b"Accept-Encoding"))
            coding = compression.wanted(call.header(b"accept-encoding"))
            if coding is not None:
                headers.append((b"content-encoding", coding.encode()))
                self._later(call, self._compress(call, headers, body, coding))
                return
        self._reply(call, 200, headers, body)

    async def _compress(self, call: Call, headers: Headers, body: bytes, coding: str) -> None:
        self._reply(call, 200, headers, await asyncio.to_thread(compression.compress, body, coding))

    def _reply(self, call: Call, status: int, headers: Headers, body: bytes) -> None:
        self._services.metrics.request(call.loaded, call.endpoint, status, time.monotonic() - call.begin)
        headers.append((b"x-request-id", call.request_id.encode("latin-1")))
        if access.isEnabledFor(logging.DEBUG):
            seconds = time.monotonic() - call.begin
            access.debug("POST %s %s %.1f ms %s", call.endpoint, status, seconds * 1e3, call.request_id)
        if not call.over:
            call.over = True
            call.reply(status, headers, body)

    def _release(self, call: Call) -> None:
        if call.heads and call.loaded is not None:
            self._services.resolver.release(call.loaded, call.heads)
            call.heads = ()


def _inflate_and_decode(call: Call, spec: InputSpec, limit: int) -> _Decoded:
    coding = compression.coding_of(call.header(b"content-encoding"))
    if coding is not None:
        call.body = compression.decompress(call.body, coding, limit)
    return _decode(call, spec)


def _decode(call: Call, spec: InputSpec) -> _Decoded:
    """Decode a body; a pure function, for it may run on a thread."""
    if call.endpoint == "infer":
        return _decode_infer(call, spec)
    data = inputs.friendly_data(call.body, call.header(b"content-type") or "")
    windows = partial(inputs.friendly_windows, data)
    if call.endpoint == "features":
        _only(call.query, ())
        npy = "application/x-npy" in (call.header(b"accept") or "")
        return _Decoded(Parameters(), windows, None, lambda m, r, _: answers.features(npy, m, r))
    _only(call.query, PREDICT_PARAMETERS)
    asked = parameters.of_query(call.query)
    return _Decoded(asked, windows, lambda rows: [asked.user_id] * rows, answers.predictions)


PREDICT_PARAMETERS = tuple(name for name in parameters.KNOWN if name != "binary_data_output")


def _only(query: Mapping[str, str], known: Sequence[str]) -> None:
    """Refuse misspelt query parameters, which would answer with another head than was meant."""
    for name in query:
        if name not in known:
            raise InvalidRequest(
                f"unknown query parameter {name[:64]!r}; known are: {', '.join(sorted(known)) or 'none'}"
            )


def _decode_infer(call: Call, spec: InputSpec) -> _Decoded:
    message = oip.decode(call.body, call.header(b"inference-header-content-length"), call.query, spec)
    asked = message.parameters
    user_tensor = message.inputs.pop("user_id", None)
    if user_tensor is not None and asked.user_id is not None:
        raise InvalidRequest("the user is named twice: by the parameter user_id and by the tensor user_id")
    if len(message.inputs) != 1:
        raise InvalidRequest(f"one input tensor was expected, not {len(message.inputs)}")
    (tensor,) = message.inputs.values()
    per_row = user_tensor is not None
    outputs = answers.wanted(message, per_row)
    users: Callable[[int], Sequence[str | None]] | None
    if len(outputs) == 1 and outputs[0].name == "features":
        users = None
    elif user_tensor is not None:
        users = partial(inputs.per_row_users, user_tensor)
    else:
        user = asked.user_id
        users = lambda rows: [user] * rows  # noqa: E731 - one of three ways to name the users
    return _Decoded(
        asked, partial(inputs.windows, tensor), users, partial(answers.inference, message.id, outputs, per_row)
    )
