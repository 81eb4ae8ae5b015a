"""A batch of many users while versions change over: each row is answered by the version in which its user has a head.

The rows are dealt to parts, one a version, which take the way of calls of their own; their tensors are put together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.heads.head import NEVER
from service import answers, output_answers
from service.answers import Headers
from service.call import Call, Decoded, PerRow
from service.engine.jobs import Result
from service.errors import Conflict
from service.loaded import LoadedModel
from service.personal.resolved import Heads, ResolvedHead
from service.protocol.tensors import Tensor

Groups = dict[LoadedModel, list[int]]
"""Rows by the version that answers them."""


def check_alike(versions: Collection[LoadedModel], wanted: tuple[str, ...]) -> None:
    """Check that answers of versions fit into one: of the same input and, in the outputs wanted, the same rows.

    Raises:
        Conflict: they do not; the message says which differ, and what to ask instead.
    """
    # How far windows of recordings were apart says nothing of a row.
    inputs = [(m.bundle.manifest.input.model_copy(update={"stride": 1}), m.media.tokenizer) for m in versions]
    rows = [_rows_wanted(model, wanted) for model in versions]
    fewest = min(map(len, rows))
    parts: dict[str, list[Any]] = {
        "inputs": inputs,
        "outputs": [len(each) for each in rows],
        "labels": [each[:fewest] for each in rows],
    }
    differ = [what for what, each in parts.items() if any(one != each[0] for one in each)]
    if not differ:
        return
    numbers = ", ".join(map(str, sorted(m.version for m in versions)))
    way = "ask one version by its path"
    if differ == ["outputs"]:
        way = f"name outputs that all have, by task or under outputs, or {way}"
    raise Conflict(
        f"users of this batch have their heads in versions {numbers}, whose {' and '.join(differ)} differ: "
        f"the answers do not fit into one; {way}"
    )


def part_names(model: LoadedModel) -> tuple[str, ...]:
    """Names of the parts of a fused model's input; of others none."""
    return tuple(part.name for part in model.bundle.manifest.input.parts)


def _rows_wanted(model: LoadedModel, wanted: tuple[str, ...]) -> list[tuple[str, ...]]:
    """What heads of the outputs that are wanted say, in order."""
    return [o.bundle.manifest.head_rows for o in model.each if not wanted or not o.output or o.output in wanted]


async def version_of(heads: Heads, candidates: Sequence[LoadedModel], user: str) -> LoadedModel:
    """Find the newest version in which a user has a head, else the newest."""
    known = heads.preferred(candidates, user)
    if known is not None:
        return known
    for model in candidates:
        if await heads.has_head(model, user):
            return model
    return candidates[0]


async def dealt(heads: Heads, candidates: Sequence[LoadedModel], users: Sequence[str | None]) -> Groups:
    """Group rows by the version in which their users have a head."""
    named = [user for user in dict.fromkeys(users) if user is not None]
    found = await asyncio.gather(*(version_of(heads, candidates, user) for user in named))
    chosen: dict[str | None, LoadedModel] = {None: candidates[0], **dict(zip(named, found, strict=True))}
    groups: Groups = {}
    for row, user in enumerate(users):
        groups.setdefault(chosen[user], []).append(row)
    return groups


@dataclass(slots=True)
class Mixed:
    """One call and what came of its parts.

    Attributes:
        call, decoded: the whole.
        newest: the version that the answer names; each row has its own beside it.
        joined: takes the whole answer's status, headers, body, and the durations of its parts.
    """

    call: Call
    decoded: Decoded
    newest: LoadedModel
    joined: Callable[[int, Headers, bytes, Sequence[Result]], None]
    _waiting: int = 0
    _parts: list[tuple[list[int], list[tuple[Tensor, bool]], dict[str, Any]]] = field(default_factory=list)
    _results: list[Result] = field(default_factory=list)
    _failure: tuple[int, Headers, bytes] | None = None

    def deal(self, x: NDArray[Any], users: Sequence[str | None], groups: Groups) -> list[Call]:
        """Make a call of each version's rows.

        Raises:
            Conflict: features are asked for: those of two versions are not in one space.
        """
        if any(output.name == "features" for output in self._asked.outputs):
            numbers = ", ".join(str(m.version) for m in groups)
            raise Conflict(
                f"users of this batch have their heads in versions {numbers}, whose features are not comparable: "
                "ask one version for features, by its path"
            )
        self._waiting = len(groups)
        return [self._part(model, rows, x[rows], [users[i] for i in rows]) for model, rows in groups.items()]

    @property
    def _asked(self) -> PerRow:
        assert self.decoded.per_row is not None
        return self.decoded.per_row

    def _part(self, model: LoadedModel, rows: list[int], x: NDArray[Any], users: list[str | None]) -> Call:
        whole = self.call
        part = Call(
            whole.endpoint, whole.model, whole.version, {}, {}, b"", self._replied, whole.request_id, whole.begin
        )
        part.is_part, part.loaded = True, model
        encode = partial(self._made, rows)
        part.decoded = Decoded(self.decoded.asked, lambda spec: x, lambda n: users, encode, wanted=self.decoded.wanted)
        return part

    def _made(
        self, rows: list[int], model: LoadedModel, result: Result, heads: Sequence[ResolvedHead]
    ) -> tuple[Headers, bytes]:
        """Take a part's tensors."""
        asked = self.decoded.asked if self.decoded.asked.decides else None
        made, said = output_answers.made(self._asked.outputs, self.decoded.wanted, asked, model, result, heads)
        self._parts.append((rows, made, said))
        self._results.append(result)
        return [], b""

    def _replied(self, status: int, headers: Headers, body: bytes) -> None:
        """Take a part's end; the last one ends the whole."""
        if status != 200 and self._failure is None:
            self._failure = status, [h for h in headers if h[0] != b"x-request-id"], body
        self._waiting -= 1
        if self._waiting:
            return
        if self._failure is not None:
            self.joined(*self._failure, ())
        else:
            self.joined(200, *self._together(), self._results)

    def _together(self) -> tuple[Headers, bytes]:
        back = np.argsort(np.concatenate([rows for rows, _, _ in self._parts]))
        outputs = []
        for at, (first, binary) in enumerate(self._parts[0][1]):
            data = np.concatenate(_as_wide([made[at][0] for _, made, _ in self._parts]))[back]
            outputs.append((Tensor(first.name, first.datatype, data, first.parameters), binary))
        answer: dict[str, Any] = {"model_name": self.newest.name, "model_version": str(self.newest.version)}
        if self._asked.request_id:
            answer["id"] = self._asked.request_id
        said = [said for _, _, said in self._parts]
        if said[0]:
            answer["parameters"] = {name: _summed([each[name] for each in said]) for name in said[0]}
        return answers.encoded(answer, outputs)


def _as_wide(tensors: list[Tensor]) -> list[NDArray[Any]]:
    """Fill rows up to the widest: users may have labels of their own, and fewer than another version's."""
    first = tensors[0].data
    if first.ndim == 1 or len({t.data.shape[1:] for t in tensors}) == 1:
        return [t.data for t in tensors]
    width = max(t.data.shape[1] for t in tensors)
    nothing: Any = (
        b"" if tensors[0].datatype == "BYTES" else NEVER if tensors[0].name.rpartition(".")[2] == "logits" else 0
    )
    fills = [(t.data, np.full((len(t.data), width - t.data.shape[1]), nothing, first.dtype)) for t in tensors]
    return [np.concatenate(pair, 1) for pair in fills]


def _summed(values: list[Any]) -> Any:
    """What is said of all rows, from what is said of some: counts add up, words are kept where they are the same."""
    if isinstance(values[0], int):
        return sum(values)
    return values[0] if len(set(values)) == 1 else "mixed"
