"""The way of a data-plane request: decode, heads, scheduler, encode. No task where nothing must be waited for."""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from models.heads.head import softmax
from service.engine.scheduler import Job, Result
from service.errors import DeadlineExceeded, HeadwayError, InvalidRequest, RequestTimeout, Unavailable, error_body
from service.personal.records import StoreError
from service.personal.resolve import ResolvedHead
from service.protocol import inputs, oip
from service.protocol.tensors import Tensor
from service.registry import LoadedModel
from service.state import Services

log = logging.getLogger("headway")

DEFAULT_OUTPUTS = ("probabilities", "label")
OUTPUTS = ("features", "logits", "probabilities", "label", "labels", "head", "head_version")
FALLBACKS = ("shared", "error")
PARAMETERS = {"user_id", "head_version", "fallback", "timeout", "priority", "binary_data_output"}
ENDPOINTS = ("infer", "predict", "features")
DECODED_HERE = 256 * 1024
"""Bodies up to so many bytes are decoded on the event loop; larger ones, unless binary, on a thread."""
JSON, BINARY, NPY = b"application/json", b"application/octet-stream", b"application/x-npy"

Reply = Callable[[int, list[tuple[bytes, bytes]], bytes], None]
Encode = Callable[[Result, Sequence[ResolvedHead]], tuple[list[tuple[bytes, bytes]], bytes]]


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
    cancelled: bool = False
    job: Job | None = None
    task: asyncio.Task[None] | None = None
    loaded: LoadedModel | None = None
    heads: Sequence[ResolvedHead] = ()

    def header(self, name: bytes) -> str | None:
        """Return a header's value."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


@dataclass(slots=True)
class _Plan:
    """What a decoded request asks for."""

    model: LoadedModel
    x: NDArray[Any]
    users: Sequence[str | None] | None
    head_version: int | None
    fallback: str
    deadline: float | None
    priority: int
    encode: Encode


@dataclass(slots=True)
class _Decoded:
    """A request's body, before the version that answers is chosen."""

    user: str | None
    plan: Callable[[LoadedModel], _Plan]


class DataPlane:
    """Answers calls of the data plane; all methods belong to the event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._waiting: set[asyncio.Task[None]] = set()
        self._labels: dict[LoadedModel, NDArray[Any]] = {}

    def begin(self, call: Call) -> None:
        """Take a call on its way. Its answer goes to `call.reply`, perhaps before this returns."""
        try:
            own = self._services
            if own.draining:
                raise Unavailable("the service is draining", retry_after=1)
            candidates = own.models.candidates(call.model, call.version)
            call.loaded = candidates[0]
            if len(call.body) > DECODED_HERE and not _is_binary(call):
                return self._later(call, self._decode_elsewhere(call, candidates))
            self._decoded(call, candidates, self._decode(call))
        except Exception as e:
            self.fail(call, e)

    def cancel(self, call: Call) -> None:
        """The client went away: what has not run yet does not run."""
        if call.cancelled:
            return
        call.cancelled = True
        if call.task is not None:
            call.task.cancel()
        if call.job is not None:
            call.job.cancel()
        self._release(call)

    def fail(self, call: Call, error: Exception) -> None:
        """Answer with an error in the one shape."""
        self._release(call)
        if call.cancelled:
            return
        if not isinstance(error, HeadwayError):
            log.error("request %s failed", call.request_id, exc_info=error)
        status, code, headers, body = error_body(error, call.request_id)
        self._services.metrics.refused(code)
        self._reply(call, status, [(b"content-type", JSON), *headers], body)

    def stalled(self, endpoint: str, reply: Reply, request_id: str) -> None:
        """Answer a request whose body did not come in time."""
        seconds = self._services.settings.body_timeout
        error = RequestTimeout(f"the body was not complete {seconds:g} s after its last part; send it in one go")
        status, code, headers, body = error_body(error, request_id)
        self._services.metrics.refused(code)
        self._services.metrics.request(None, endpoint, status, seconds)
        reply(status, [(b"content-type", JSON), *headers, (b"x-request-id", request_id.encode())], body)

    # Decoding

    def _decode(self, call: Call) -> _Decoded:
        if call.endpoint == "infer":
            return self._decode_infer(call)
        return self._decode_friendly(call)

    def _decode_infer(self, call: Call) -> _Decoded:
        message = oip.decode(call.body, call.header(b"inference-header-content-length"))
        parameters = message.parameters
        if not parameters.keys() <= PARAMETERS:
            unknown = sorted(set(parameters) - PARAMETERS)
            raise InvalidRequest(f"unknown parameter {unknown[0]!r}; known are {', '.join(sorted(PARAMETERS))}")
        names = [o.name for o in message.outputs] if message.outputs else list(DEFAULT_OUTPUTS)
        for name in names:
            if name not in OUTPUTS:
                raise InvalidRequest(f"there is no output {name!r}; the outputs are {', '.join(OUTPUTS)}")
        row_tensor = message.inputs.pop("user_id", None)
        user = parameters.get("user_id")
        if user is not None:
            user = inputs.user_id(user)
            if row_tensor is not None:
                raise InvalidRequest("the user is named twice: by the parameter user_id and by the tensor user_id")
        if len(message.inputs) != 1:
            raise InvalidRequest(f"one input tensor was expected, not {len(message.inputs)}")
        heads_wanted = names != ["features"]

        def plan(model: LoadedModel) -> _Plan:
            (tensor,) = message.inputs.values()
            x = inputs.windows(tensor, model.bundle.manifest.input)
            users: Sequence[str | None] | None = None
            if heads_wanted:
                users = [user] * len(x) if row_tensor is None else inputs.per_row_users(row_tensor, len(x))
            if row_tensor is not None and heads_wanted and message.outputs is None:
                names.extend(("head", "head_version"))

            def encode(result: Result, heads: Sequence[ResolvedHead]) -> tuple[list[tuple[bytes, bytes]], bytes]:
                answer: dict[str, Any] = {"model_name": model.name, "model_version": str(model.version)}
                if message.id:
                    answer["id"] = message.id
                if heads_wanted and row_tensor is None:
                    answer["parameters"] = {"head": heads[0].kind, "head_version": heads[0].version}
                tensors = self._outputs(names, model, result, heads)
                binary = {o.name: o.binary for o in message.outputs or ()}
                encoded = oip.encode(answer, [(t, binary.get(t.name, message.binary_output)) for t in tensors])
                if encoded.header_length is None:
                    return [(b"content-type", JSON)], encoded.body
                length = str(encoded.header_length).encode()
                return [(b"content-type", BINARY), (b"inference-header-content-length", length)], encoded.body

            return self._plan(call, model, x, users, parameters, encode)

        return _Decoded(user, plan)

    def _decode_friendly(self, call: Call) -> _Decoded:
        predicting = call.endpoint == "predict"
        query = _typed_query(call.query, PARAMETERS - {"binary_data_output"} if predicting else frozenset())
        user = query.get("user_id")
        if user is not None:
            user = inputs.user_id(user)
        data = inputs.friendly_data(call.body, call.header(b"content-type") or "")

        def plan(model: LoadedModel) -> _Plan:
            x = inputs.friendly_windows(data, model.bundle.manifest.input)
            if predicting:
                return self._plan(call, model, x, [user] * len(x), query, lambda r, h: _predictions(model, r, h))
            npy = "application/x-npy" in (call.header(b"accept") or "")
            return self._plan(call, model, x, None, query, lambda r, _: _features(model, r, npy))

        return _Decoded(user, plan)

    def _plan(
        self,
        call: Call,
        model: LoadedModel,
        x: NDArray[Any],
        users: Sequence[str | None] | None,
        parameters: Mapping[str, Any],
        encode: Encode,
    ) -> _Plan:
        if not parameters:
            return _Plan(model, x, users, None, "shared", None, 0, encode)
        fallback = parameters.get("fallback", "shared")
        if fallback not in FALLBACKS:
            raise InvalidRequest(f"fallback is {fallback!r}; it can be {' or '.join(FALLBACKS)}")
        timeout = _integer(parameters, "timeout")
        return _Plan(
            model,
            x,
            users,
            _integer(parameters, "head_version"),
            fallback,
            call.begin + timeout / 1e6 if timeout else None,
            _integer(parameters, "priority") or 0,
            encode,
        )

    async def _decode_elsewhere(self, call: Call, candidates: list[LoadedModel]) -> None:
        self._decoded(call, candidates, await asyncio.to_thread(self._decode, call))

    # Heads and queue

    def _decoded(self, call: Call, candidates: list[LoadedModel], decoded: _Decoded) -> None:
        model: LoadedModel | None = candidates[0]
        if decoded.user is not None and len(candidates) > 1:
            model = self._services.resolver.preferred(candidates, decoded.user)
        if model is None:
            assert decoded.user is not None
            return self._later(call, self._find_version(call, candidates, decoded, decoded.user))
        return self._planned(call, model, decoded)

    def _planned(self, call: Call, model: LoadedModel, decoded: _Decoded) -> None:
        call.loaded = model
        plan = decoded.plan(model)
        if plan.users is None:
            return self._queue(call, plan, None)
        heads = self._services.resolver.resident(model, plan.users, plan.head_version, plan.fallback)
        if heads is None:
            return self._later(call, self._fetch_heads(call, plan, plan.users))
        return self._queue(call, plan, heads)

    async def _find_version(self, call: Call, candidates: list[LoadedModel], decoded: _Decoded, user: str) -> None:
        chosen = candidates[0]
        for model in candidates:
            if await self._services.resolver.has_head(model.scope, user):
                chosen = model
                break
        self._planned(call, chosen, decoded)

    async def _fetch_heads(self, call: Call, plan: _Plan, users: Sequence[str | None]) -> None:
        left = None if plan.deadline is None else plan.deadline - time.monotonic()
        try:
            async with asyncio.timeout(left):
                heads = await self._services.resolver.fetched(plan.model, users, plan.head_version, plan.fallback)
        except TimeoutError as e:
            raise DeadlineExceeded("the timeout passed while the user's head was fetched") from e
        self._queue(call, plan, heads)

    def _queue(self, call: Call, plan: _Plan, heads: Sequence[ResolvedHead] | None) -> None:
        if call.cancelled:
            if heads is not None:
                self._services.resolver.release(plan.model, heads)
            return
        slots = None
        if heads is not None:
            call.heads = heads
            slots = np.fromiter((h.slot for h in heads), np.int64, len(heads))
        call.job = plan.model.scheduler.enqueue(
            plan.x,
            slots,
            lambda outcome: self._done(call, plan, outcome),
            timeout=None if plan.deadline is None else plan.deadline - time.monotonic(),
            priority=plan.priority,
            bulk=heads is None,
        )

    def _later(self, call: Call, coroutine: Any) -> None:
        """Go on in a task, for something must be waited for."""
        task = asyncio.get_running_loop().create_task(self._guarded(call, coroutine))
        call.task = task
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _guarded(self, call: Call, coroutine: Any) -> None:
        try:
            await coroutine
        except StoreError as e:
            self.fail(call, Unavailable(str(e), retry_after=2))
        except Exception as e:
            self.fail(call, e)

    # Answers

    def _done(self, call: Call, plan: _Plan, outcome: Result | Exception) -> None:
        if isinstance(outcome, Exception):
            return self.fail(call, outcome)
        heads = call.heads
        try:
            headers, body = plan.encode(outcome, heads)
        except Exception as e:
            return self.fail(call, e)
        self._release(call)
        now = time.monotonic()
        headers.append(
            (
                b"server-timing",
                b"queue;dur=%.3f, infer;dur=%.3f, head;dur=%.3f, total;dur=%.3f"
                % (outcome.queue * 1e3, outcome.inference * 1e3, outcome.heads * 1e3, (now - call.begin) * 1e3),
            )
        )
        personal = sum(1 for h in heads if h.version)
        self._services.metrics.answered(plan.model, outcome, personal, len(heads) - personal)
        return self._reply(call, 200, headers, body)

    def _reply(self, call: Call, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        model = call.loaded
        self._services.metrics.request(model, call.endpoint, status, time.monotonic() - call.begin)
        headers.append((b"x-request-id", call.request_id.encode("latin-1")))
        if not call.cancelled:
            call.cancelled = True  # from here on there is nothing to cancel
            call.reply(status, headers, body)

    def _release(self, call: Call) -> None:
        if call.heads and call.loaded is not None:
            self._services.resolver.release(call.loaded, call.heads)
            call.heads = ()

    def _outputs(
        self, names: Sequence[str], model: LoadedModel, result: Result, heads: Sequence[ResolvedHead]
    ) -> list[Tensor]:
        labels, logits = model.label_bytes, result.logits
        made = []
        for name in names:
            if name == "features":
                made.append(Tensor(name, "FP32", result.features))
                continue
            assert logits is not None
            if name == "logits":
                made.append(Tensor(name, "FP32", logits))
            elif name == "probabilities":
                made.append(Tensor(name, "FP32", softmax(logits)))
            elif name == "label":
                made.append(Tensor(name, "BYTES", labels[logits.argmax(1)]))
            elif name == "labels":
                made.append(Tensor(name, "BYTES", np.tile(labels, (len(logits), 1))))
            elif name == "head":
                made.append(Tensor(name, "BYTES", np.array([h.kind.encode() for h in heads], object)))
            else:
                made.append(Tensor(name, "INT64", np.array([h.version for h in heads], np.int64)))
        return made


def _is_binary(call: Call) -> bool:
    return b"inference-header-content-length" in call.headers


def _predictions(
    model: LoadedModel, result: Result, heads: Sequence[ResolvedHead]
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    labels = model.bundle.manifest.labels
    assert result.logits is not None
    probabilities = softmax(result.logits)
    rows = [
        {"label": labels[best], "probability": row[best], "probabilities": dict(zip(labels, row, strict=True))}
        for row, best in zip(probabilities.tolist(), probabilities.argmax(1).tolist(), strict=True)
    ]
    answer = {"predictions": rows, **_who(model), "head": heads[0].kind, "head_version": heads[0].version}
    return [(b"content-type", JSON)], orjson.dumps(answer)


def _features(model: LoadedModel, result: Result, npy: bool) -> tuple[list[tuple[bytes, bytes]], bytes]:
    features = np.ascontiguousarray(result.features)
    if not npy:
        body = orjson.dumps({"features": features, **_who(model)}, option=orjson.OPT_SERIALIZE_NUMPY)
        return [(b"content-type", JSON)], body
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, features, allow_pickle=False)
    headers = [
        (b"content-type", NPY),
        (b"headway-model", model.name.encode()),
        (b"headway-model-version", str(model.version).encode()),
    ]
    return headers, buffer.getvalue()


def _who(model: LoadedModel) -> dict[str, str]:
    return {"model": model.name, "model_version": str(model.version)}


def _typed_query(query: Mapping[str, str], known: set[str] | frozenset[str]) -> dict[str, Any]:
    """Read query parameters; misspelt ones are refused, for they would answer with another head than was meant."""
    values: dict[str, Any] = {}
    for name, value in query.items():
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise InvalidRequest(f"unknown query parameter {name!r}; known are: {names}")
        whole = name in ("head_version", "timeout", "priority") and value.isdecimal() and len(value) <= 19
        values[name] = int(value) if whole else value
    return values


def _integer(parameters: Mapping[str, Any], name: str) -> int | None:
    value = parameters.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**62:
        raise InvalidRequest(f"{name} must be an integer from 0 to 2^62, not {value!r}")
    return value
