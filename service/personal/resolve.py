"""From a request's user to the slot of a head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service.engine.head_bank import SHARED
from service.errors import Conflict, Unavailable, UnknownUser
from service.personal.records import Scope, StoreError
from service.personal.store import Store
from service.registry import LoadedModel

POINTERS_KEPT = 1_000_000


@dataclass(frozen=True, slots=True)
class ResolvedHead:
    """The head that a row gets: its slot, and the version it is (0 = shared)."""

    slot: int
    version: int

    @property
    def kind(self) -> str:
        """`personal` or `shared`, as answers say it."""
        return "personal" if self.version else "shared"


class _Fetch:
    """A look-up under way; `stale` once what it reads may be old."""

    def __init__(self) -> None:
        self.stale = False


class Resolver:
    """Finds and holds the heads of requests; fetches from the store what is not resident.

    Active pointers are cached and written through by this process, the only writer of its SQLite store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pointers: OrderedDict[tuple[Scope, str], int] = OrderedDict()
        self._fetching: dict[tuple[Scope, str], set[_Fetch]] = {}

    @asynccontextmanager
    async def heads(
        self, model: LoadedModel, users: Sequence[str | None], version: int | None, fallback: str
    ) -> AsyncIterator[list[ResolvedHead]]:
        """Hold the heads of `users` (None: the shared one) until the block ends.

        Raises:
            UnknownUser: a user has no head and `fallback` is `error`.
            Conflict: `version` is asked for and the user has no such version.
            Unavailable: the head is not resident and the store is out of reach.
        """
        held: list[ResolvedHead] = []
        known: dict[str | None, ResolvedHead] = {}
        try:
            for user in users:
                found = known.get(user)
                if found is None:
                    found = await self._resolve(model, user, version)
                    known[user] = found
                    held.append(found)
                if user is not None and not found.version and fallback == "error" and version != 0:
                    raise UnknownUser(
                        f"user {user!r} has no head for model {model.name!r}; calibrate first or use fallback 'shared'"
                    )
            yield [known[user] for user in users]
        finally:
            model.bank.unpin(h.slot for h in held)

    async def _resolve(self, model: LoadedModel, user: str | None, version: int | None) -> ResolvedHead:
        if user is None or version == 0:
            return ResolvedHead(SHARED, 0)
        wanted = self._pointers.get((model.scope, user)) if version is None else version
        if wanted == 0:
            return ResolvedHead(SHARED, 0)
        if wanted is not None:
            slot = model.bank.pin((user, wanted))
            if slot is not None:
                return ResolvedHead(slot, wanted)
        try:
            return await self._fetch(model, user, version)
        except StoreError as e:
            raise Unavailable(f"the head of user {user!r} is not resident and {e}", retry_after=2) from e

    async def _fetch(self, model: LoadedModel, user: str, version: int | None) -> ResolvedHead:
        while True:
            fetch = _Fetch()
            under_way = self._fetching.setdefault((model.scope, user), set())
            under_way.add(fetch)
            try:
                if version is None:
                    wanted, head = await self._store.active(model.scope, user)
                else:
                    wanted, head = version, await self._store.head(model.scope, user, version)
            finally:
                under_way.discard(fetch)
                if not under_way:
                    self._fetching.pop((model.scope, user), None)
            if not fetch.stale:
                break  # else this user's pointer moved, or they were erased, while the store answered
        if version is None:
            self._remember(model.scope, user, wanted)
        elif head is None:
            raise Conflict(f"user {user!r} has no head version {version} for model {model.name!r}")
        if head is None:
            return ResolvedHead(SHARED, 0)
        return ResolvedHead(model.bank.insert((user, wanted), head), wanted)

    async def has_head(self, scope: Scope, user: str) -> bool:
        """Whether a personal head is active for a user in a feature space."""
        version = self._pointers.get((scope, user))
        if version is None:
            found = await self._store.user(scope, user)
            version = found.active if found else 0
        return version > 0

    def point(self, scope: Scope, user: str, version: int) -> None:
        """Note which version is active; call it as soon as the store has committed it."""
        self._outdate(scope, user)
        self._remember(scope, user, version)

    def forget(self, user: str, model: LoadedModel) -> None:
        """Drop all that is cached of a user of a model."""
        self._outdate(model.scope, user)
        self._pointers.pop((model.scope, user), None)
        model.bank.forget(user)

    def _outdate(self, scope: Scope, user: str) -> None:
        for fetch in self._fetching.get((scope, user), ()):
            fetch.stale = True

    def _remember(self, scope: Scope, user: str, version: int) -> None:
        self._pointers[scope, user] = version
        self._pointers.move_to_end((scope, user))
        if len(self._pointers) > POINTERS_KEPT:
            self._pointers.popitem(last=False)
