"""Heads of requests to a model with several outputs: one of each output for each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from service.loaded import LoadedModel
from service.personal.resolved import Heads, ResolvedHead


class HeadsOfOutputs:
    """Finds and holds the heads of several outputs, as `Heads` does of one; also of models with one.

    Heads come output by output: those of all rows for the first, then for the second, ….

    Args:
        heads: finds those of one output.
        wanted: outputs that are asked for, none for all; rows of the others get the shared head.
    """

    def __init__(self, heads: Heads, wanted: tuple[str, ...] = ()) -> None:
        self._heads, self._wanted = heads, wanted

    def resident(
        self, model: LoadedModel, users: Sequence[str | None], version: int | None, fallback: str
    ) -> list[ResolvedHead] | None:
        """Hold the heads of `users` if all are known here, without waiting; else None, and `fetched` finds them."""
        held: list[list[ResolvedHead]] = []
        for output in model.each:
            found = self._heads.resident(output, self._of(output, users), version, fallback)
            if found is None:
                self._release(model, held)
                return None
            held.append(found)
        return [head for heads in held for head in heads]

    async def fetched(
        self, model: LoadedModel, users: Sequence[str | None], version: int | None, fallback: str
    ) -> list[ResolvedHead]:
        """Hold the heads of `users`, waiting for what is not here; `Heads.fetched` says what it raises."""
        held: list[list[ResolvedHead]] = []
        try:
            for output in model.each:
                held.append(await self._heads.fetched(output, self._of(output, users), version, fallback))  # noqa: PERF401 - what is held so far is let go
        except BaseException:
            self._release(model, held)
            raise
        return [head for heads in held for head in heads]

    def release(self, model: LoadedModel, heads: Sequence[ResolvedHead]) -> None:
        """Let go of what `resident` or `fetched` held."""
        self._release(model, by_output(model, heads))

    def _release(self, model: LoadedModel, held: Sequence[Sequence[ResolvedHead]]) -> None:
        for output, heads in zip(model.each, held, strict=False):  # fewer where the others could not be had
            self._heads.release(output, heads)

    def preferred(self, candidates: Sequence[LoadedModel], user: str) -> LoadedModel | None:
        """Which of several versions a user has a head in, of any output that is wanted, newest first; or None."""
        outputs = self._outputs(candidates)
        found = self._heads.preferred([output for _, output in outputs], user)
        return next((model for model, output in outputs if output is found), None)

    async def has_head(self, model: LoadedModel, user: str) -> bool:
        """Whether a personal head is active for a user in an output that is wanted."""
        for _, output in self._outputs([model]):
            if await self._heads.has_head(output, user):
                return True
        return False

    def _of(self, output: LoadedModel, users: Sequence[str | None]) -> Sequence[str | None]:
        return users if self._wants(output) else [None] * len(users)

    def _wants(self, output: LoadedModel) -> bool:
        return not self._wanted or not output.output or output.output in self._wanted

    def _outputs(self, candidates: Sequence[LoadedModel]) -> list[tuple[LoadedModel, LoadedModel]]:
        return [(model, output) for model in candidates for output in model.each if self._wants(output)]


def by_output(model: LoadedModel, heads: Sequence[ResolvedHead]) -> list[Sequence[ResolvedHead]]:
    """Return the heads of each output, of those of all outputs one behind the other."""
    rows = len(heads) // len(model.each)
    return [heads[i * rows : (i + 1) * rows] for i in range(len(model.each))]


def heads_asked_for(
    model: LoadedModel, heads: Sequence[ResolvedHead], wanted: tuple[str, ...]
) -> list[tuple[LoadedModel, Sequence[ResolvedHead]]]:
    """Return the outputs that a request wants, none named for all, and the heads of their rows."""
    found = zip(model.outputs, by_output(model, heads), strict=True)
    return [(output, own) for output, own in found if not wanted or output.output in wanted]


def followed(model: LoadedModel, heads: Sequence[ResolvedHead]) -> Iterator[tuple[LoadedModel, Sequence[ResolvedHead]]]:
    """Return the outputs whose heads may follow their users, and the heads of their rows: regressions do not."""
    found = zip(model.outputs, by_output(model, heads), strict=True)
    return ((output, own) for output, own in found if not output.targets)


def rows_of(model: LoadedModel, slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the slots of each row's heads, `(n, outputs)`, of those of all outputs one behind the other."""
    return slots.reshape(len(model.outputs), -1).T
