"""One request of the data plane: what came, and what the body asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from exporters.bundle import InputSpec
from service import answers
from service.answers import Headers
from service.engine.jobs import Job, Result
from service.errors import InvalidRequest
from service.loaded import LoadedModel
from service.personal.resolved import ResolvedHead
from service.protocol import compression, inputs, oip, parameters
from service.protocol.parameters import Parameters

PREDICT_PARAMETERS = tuple(name for name in parameters.KNOWN if name != "binary_data_output")

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
        over: whether nothing more is to be answered.
        job, task: what is under way for it.
        loaded, decoded, x, users, heads: what is known of it so far: the version, what the body asks for, the rows, and
            each row's user and head (None, and none, where no heads are wanted).
        moves: times that its rows came back because a head had moved.
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
    decoded: Decoded | None = None
    x: NDArray[Any] | None = None
    users: Sequence[str | None] | None = None
    heads: Sequence[ResolvedHead] = ()
    moves: int = 0

    def header(self, name: bytes) -> str | None:
        """Return a header's value."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


@dataclass(slots=True)
class Decoded:
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


def inflate_and_decode(call: Call, spec: InputSpec, limit: int) -> Decoded:
    """Decode a body that may be compressed, within `limit` bytes; a pure function, for it runs on a thread."""
    coding = compression.coding_of(call.header(b"content-encoding"))
    if coding is not None:
        call.body = compression.decompress(call.body, coding, limit)
    return decode(call, spec)


def decode(call: Call, spec: InputSpec) -> Decoded:
    """Decode a body; a pure function, for it may run on a thread."""
    if call.endpoint == "infer":
        return _decode_infer(call, spec)
    data = inputs.friendly_data(call.body, call.header(b"content-type") or "")
    windows = partial(inputs.friendly_windows, data)
    if call.endpoint == "features":
        _only(call.query, ())
        npy = "application/x-npy" in (call.header(b"accept") or "")
        return Decoded(Parameters(), windows, None, lambda m, r, _: answers.features(npy, m, r))
    _only(call.query, PREDICT_PARAMETERS)
    asked = parameters.of_query(call.query)
    return Decoded(asked, windows, lambda rows: [asked.user_id] * rows, answers.predictions)


def _only(query: Mapping[str, str], known: Sequence[str]) -> None:
    """Refuse misspelt query parameters, which would answer with another head than was meant."""
    for name in query:
        if name not in known:
            raise InvalidRequest(
                f"unknown query parameter {name[:64]!r}; known are: {', '.join(sorted(known)) or 'none'}"
            )


def _decode_infer(call: Call, spec: InputSpec) -> Decoded:
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
    return Decoded(
        asked, partial(inputs.windows, tensor), users, partial(answers.inference, message.id, outputs, per_row)
    )
