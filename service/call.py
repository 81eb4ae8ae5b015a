"""One request of the data plane: what came, and what the body asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from exporters.bundle import InputSpec
from service.answers import Headers
from service.engine.jobs import Job, Result
from service.loaded import LoadedModel
from service.personal.resolved import ResolvedHead
from service.protocol.media import Items
from service.protocol.oip import RequestedOutput
from service.protocol.parameters import Parameters
from service.protocol.parts import Parts
from service.protocol.tensors import Tensor

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
        parts: calls that its rows were dealt to, where several versions answer them.
        is_part: whether it is one of those: only the whole is counted.
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
    parts: Sequence[Call] = ()
    is_part: bool = False

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
        tensor: the one input of an OIP request, where no tensor says whose its rows are.
        media: encoded images, texts or sounds, or the parts of a fused model's windows, which the model that answers
            reads into rows; `windows` is then unused.
        per_row: the outputs and id of an OIP request whose rows name their users.
        wanted: names of the outputs asked for, of a model with several; none for all.
    """

    asked: Parameters
    windows: Callable[[InputSpec], NDArray[Any]]
    users: Callable[[int], Sequence[str | None]] | None
    encode: Encode
    tensor: Tensor | None = None
    media: Items | Parts | None = None
    per_row: PerRow | None = None
    wanted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PerRow:
    """A request whose rows may be of many users, and may so be answered by several versions.

    `users` reads who they are, before the rows are read; whether there are as many is seen then.
    """

    request_id: str
    outputs: tuple[RequestedOutput, ...]
    users: Callable[[], Sequence[str]]
