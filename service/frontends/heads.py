"""Heads in a front end: asked for once, then read in the memory that the primary writes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from service import errors
from service.frontends.board import Board
from service.frontends.channel import ChannelClosed
from service.loaded import LoadedModel
from service.personal.resolved import POINTERS_KEPT, SHARED_HEAD, ResolvedHead, no_head

Found = list[list[int | str]]
"""For each user the version, the handle of the head and the user's own labels; or an error's name and message."""
Ask = Callable[[int, list[str], int | None], Awaitable[Found]]
"""Asks the primary for heads of a model (by serial): users, and the version wanted (None: the active one)."""

USERS_A_QUESTION = 500


def refusal(message: str, users: int) -> Found:
    """Return the answer of a primary that cannot look heads up."""
    return [["Unavailable", message] for _ in range(users)]


class _Known(NamedTuple):
    head: ResolvedHead
    bucket: int
    epoch: int


_Waiting = dict[str, list[asyncio.Future[ResolvedHead]]]


class RemoteHeads:
    """Finds heads for the data plane of a front end; `ResolvedHead.slot` is a handle (`HeadTable.handle`)."""

    def __init__(self, ask: Ask, board: Board) -> None:
        self._ask, self._board, self._epochs = ask, board, board.epochs
        self._known: dict[LoadedModel, OrderedDict[str, dict[int | None, _Known]]] = {}
        self._wanted: dict[tuple[LoadedModel, int | None], _Waiting] = {}
        self._questions: set[asyncio.Task[None]] = set()

    def resident(
        self, model: LoadedModel, users: Sequence[str | None], version: int | None, fallback: str
    ) -> list[ResolvedHead] | None:
        """Return the heads of `users` if all are known and still where they were; else None, and `fetched` asks."""
        known: dict[str | None, ResolvedHead] = {}
        for user in users:
            if user not in known:
                found = self._look_up(model, user, version)
                if found is None or (not found.version and not _allowed(user, version, fallback)):
                    return None
                known[user] = found
        return [known[user] for user in users]

    def release(self, model: LoadedModel, heads: Sequence[ResolvedHead]) -> None:
        """Nothing is held here: a head that moves is noticed when it is used."""

    def preferred(self, candidates: Sequence[LoadedModel], user: str) -> LoadedModel | None:
        """Which of several versions a user has a head in, newest first; None if that is not known here."""
        for model in candidates:
            found = self._look_up(model, user, None)
            if found is None:
                return None
            if found.version:
                return model
        return candidates[0]

    async def has_head(self, model: LoadedModel, user: str) -> bool:
        """Whether a personal head is active for a user in a model's feature space."""
        found = self._look_up(model, user, None) or await self._fetch(model, user, None)
        return found.version > 0

    async def fetched(
        self, model: LoadedModel, users: Sequence[str | None], version: int | None, fallback: str
    ) -> list[ResolvedHead]:
        """Return the heads of `users` (None: the shared one), asking for what is not known.

        Raises:
            UnknownUser, Conflict, Unavailable, TooManyRequests: as `Resolver.fetched`.
        """
        known = {user: self._look_up(model, user, version) for user in dict.fromkeys(users)}
        missing = [user for user, found in known.items() if found is None and user is not None]
        asked = await asyncio.gather(*(self._fetch(model, user, version) for user in missing))
        known.update(zip(missing, asked, strict=True))
        heads = {user: found for user, found in known.items() if found is not None}
        for user, found in heads.items():
            if user is not None and not found.version and not _allowed(user, version, fallback):
                raise no_head(user, model.name)
        return [heads[user] for user in users]

    def forget(self, model: LoadedModel) -> None:
        """Let go of what is known of a model that was unloaded."""
        self._known.pop(model, None)

    def forget_user(self, user: str) -> None:
        """Let go of a user who was erased."""
        for of_model in self._known.values():
            of_model.pop(user, None)

    def _look_up(self, model: LoadedModel, user: str | None, version: int | None) -> ResolvedHead | None:
        if user is None or version == 0:
            return SHARED_HEAD
        of_model = self._known.get(model)
        of_user = None if of_model is None else of_model.get(user)
        found = None if of_user is None else of_user.get(version)
        if found is None or self._epochs[found.bucket] != found.epoch or not model.memory.table.valid(found.head.slot):
            model.statistics.looked_up(hit=False)
            return None
        if found.head.version:
            model.statistics.looked_up(hit=True)
        return found.head

    async def _fetch(self, model: LoadedModel, user: str, version: int | None) -> ResolvedHead:
        """Ask for a head, in one message with all that are wanted in this turn of the loop."""
        loop = asyncio.get_running_loop()
        bucket = self._board.bucket(model.scope, user)
        epoch = self._epochs[bucket]  # read before the question: an answer that crosses a change is not kept
        waiting = self._wanted.get((model, version))
        if waiting is None:
            waiting = self._wanted[model, version] = {}
            loop.call_soon(self._question, model, version)
        future: asyncio.Future[ResolvedHead] = loop.create_future()
        waiting.setdefault(user, []).append(future)
        head = await future
        of_model = self._known.setdefault(model, OrderedDict())
        of_model.setdefault(user, {})[version] = _Known(head, bucket, epoch)
        of_model.move_to_end(user)
        if len(of_model) > POINTERS_KEPT:
            of_model.popitem(last=False)
        return head

    def _question(self, model: LoadedModel, version: int | None) -> None:
        waiting = list(self._wanted.pop((model, version)).items())
        for begin in range(0, len(waiting), USERS_A_QUESTION):
            part = dict(waiting[begin : begin + USERS_A_QUESTION])
            task = asyncio.get_running_loop().create_task(self._answer(model, version, part))
            self._questions.add(task)
            task.add_done_callback(self._questions.discard)

    async def _answer(self, model: LoadedModel, version: int | None, waiting: _Waiting) -> None:
        try:
            found = await self._ask(model.serial, list(waiting), version)
        except (ChannelClosed, RuntimeError) as e:
            found = refusal(f"heads cannot be had: {e}", len(waiting))
        for futures, (first, second, *own) in zip(waiting.values(), found, strict=True):
            for future in futures:
                if future.done():
                    continue
                if isinstance(first, str):
                    future.set_exception(getattr(errors, first)(str(second), retry_after=_retry_after(first)))
                else:
                    future.set_result(ResolvedHead(int(second), first, tuple(map(str, own))) if first else SHARED_HEAD)


def _allowed(user: str | None, version: int | None, fallback: str) -> bool:
    return user is None or version == 0 or fallback == "shared"


def _retry_after(error: str) -> float | None:
    return 1.0 if error in ("Unavailable", "TooManyRequests") else None
