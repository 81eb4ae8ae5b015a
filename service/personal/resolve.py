"""From a request's user to the slot of a head."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from models.heads.head import Head
from service.errors import Conflict, Unavailable
from service.loaded import LoadedModel
from service.personal.known import KnownUsers
from service.personal.records import Kind, Scope, StoreError
from service.personal.resolved import POINTERS_KEPT, SHARED_HEAD, ResolvedHead, no_head
from service.personal.store import Store

READS_AT_ONCE = 2
"""Queries for active heads under way. More would each fetch fewer; one would wait for the store's answer idly."""


class _Fetch:
    """A look-up under way; `stale` once what it reads may be old."""

    def __init__(self) -> None:
        self.stale = False


class Resolver:
    """Finds and holds the heads of requests; fetches from the store what is not resident.

    Active pointers are cached. On a store of this service's own they are written through; on a shared one a change, be
    it this service's or another's, drops them, and they are read again: what was read before a change that is known
    here is never kept.

    Attributes:
        on_move: called when a user's pointer moves or what is known of them is dropped, before the caller is told.
        on_forget: called when heads of a user are dropped.
        on_erase: called when another service has erased a user of a model: nothing of them may be left in memory.
    """

    def __init__(self, store: Store, loaded: Callable[[], Iterable[LoadedModel]]) -> None:
        self._store, self._loaded = store, loaded
        self._known = KnownUsers(store.who, POINTERS_KEPT, self._drop) if store.shared else None
        self.on_move: Callable[[Scope, str], None] = lambda scope, user: None
        self.on_forget: Callable[[str], None] = lambda user: None
        self.on_erase: Callable[[str, str], None] = lambda model, user: None
        self._pointers: OrderedDict[tuple[Scope, str], int] = OrderedDict()
        self._fetching: dict[tuple[Scope, str], set[_Fetch]] = {}
        self._wanted: dict[Scope, dict[str, list[asyncio.Future[tuple[int, Head | None]]]]] = {}
        self._reads: set[asyncio.Task[None]] = set()

    def resident(
        self, model: LoadedModel, users: Sequence[str | None], version: int | None, fallback: str
    ) -> list[ResolvedHead] | None:
        """Hold the heads of `users` if all are known and resident, without waiting; else None, and `heads` fetches.

        What is held must be given back to `release`.
        """
        if len(users) == 1 or users.count(users[0]) == len(users):
            one = self._resident(model, users[0], version, fallback)
            return None if one is None else [one] * len(users)
        known: dict[str | None, ResolvedHead] = {}
        for user in users:
            if user not in known:
                found = self._resident(model, user, version, fallback)
                if found is None:
                    model.bank.unpin(h.slot for h in known.values())
                    return None
                known[user] = found
        return [known[user] for user in users]

    def release(self, model: LoadedModel, heads: Sequence[ResolvedHead]) -> None:
        """Let go of what `resident` held."""
        if len(heads) == 1:
            model.bank.unpin((heads[0].slot,))
        else:
            model.bank.unpin({h.slot for h in heads})

    def _resident(
        self, model: LoadedModel, user: str | None, version: int | None, fallback: str
    ) -> ResolvedHead | None:
        if user is None or version == 0:
            return SHARED_HEAD
        wanted = self._pointers.get((model.scope, user)) if version is None else version
        if wanted is None:
            return None
        if wanted == 0:
            return SHARED_HEAD if fallback == "shared" else None
        slot = model.bank.pin((user, wanted))
        return None if slot is None else ResolvedHead(slot, wanted, model.bank.own(slot))

    def preferred(self, candidates: Sequence[LoadedModel], user: str) -> LoadedModel | None:
        """Which of several versions a user has a head in, newest first; None if that is not known here."""
        for model in candidates:
            version = self._pointers.get((model.scope, user))
            if version is None:
                return None
            if version:
                return model
        return candidates[0]

    async def fetched(
        self, model: LoadedModel, users: Sequence[str | None], version: int | None, fallback: str
    ) -> list[ResolvedHead]:
        """Hold the heads of `users` (None: the shared one), fetching what is not resident; see `release`.

        Raises:
            UnknownUser: a user has no head and `fallback` is `error`.
            Conflict: `version` is asked for and the user has no such version.
            Unavailable: the head is not resident and the store is out of reach.
        """
        known: dict[str | None, ResolvedHead] = {}

        async def hold(user: str | None) -> None:
            known[user] = found = await self._resolve(model, user, version)
            if user is not None and not found.version and fallback == "error" and version != 0:
                raise no_head(user, model.name)

        try:
            outcomes = await asyncio.gather(*map(hold, dict.fromkeys(users)), return_exceptions=True)
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome
        except BaseException:
            self.release(model, list(known.values()))
            raise
        return [known[user] for user in users]

    async def _resolve(self, model: LoadedModel, user: str | None, version: int | None) -> ResolvedHead:
        if user is None or version == 0:
            return SHARED_HEAD
        wanted = self._pointers.get((model.scope, user)) if version is None else version
        if wanted == 0:
            return SHARED_HEAD
        if wanted is not None:
            slot = model.bank.pin((user, wanted))
            if slot is not None:
                return ResolvedHead(slot, wanted, model.bank.own(slot))
        model.bank.misses += 1
        try:
            return await self._fetch(model, user, version)
        except StoreError as e:
            raise Unavailable(f"the head of user {user!r} is not resident and {e}", retry_after=2) from e

    async def _fetch(self, model: LoadedModel, user: str, version: int | None) -> ResolvedHead:
        while True:
            self._know(model.scope, user)
            fetch = _Fetch()
            under_way = self._fetching.setdefault((model.scope, user), set())
            under_way.add(fetch)
            try:
                if version is None:
                    wanted, head = await self._active(model.scope, user)
                else:
                    wanted, head = version, await self._store.head_in_time(model.scope, user, version)
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
            return SHARED_HEAD
        return ResolvedHead(model.bank.insert((user, wanted), head), wanted, head.own)

    async def _active(self, scope: Scope, user: str) -> tuple[int, Head | None]:
        """Read a user's active head, in one query with all that are wanted in this turn of the loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[int, Head | None]] = loop.create_future()
        if scope not in self._wanted:
            self._wanted[scope] = {}
            loop.call_soon(self._read)
        self._wanted[scope].setdefault(user, []).append(future)
        return await future

    def _read(self) -> None:
        """Begin queries; what is wanted while enough are under way goes into the next one, all together."""
        while self._wanted and len(self._reads) < READS_AT_ONCE:
            scope = next(iter(self._wanted))
            task = asyncio.get_running_loop().create_task(self._answer(scope, self._wanted.pop(scope)))
            self._reads.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._reads.discard(task)
        self._read()

    async def _answer(self, scope: Scope, wanted: dict[str, list[asyncio.Future[tuple[int, Head | None]]]]) -> None:
        try:
            found = await self._store.active_of(scope, list(wanted))
        except Exception as e:  # each who waits is told
            if len(wanted) > 1:  # one damaged head must not cost the others theirs
                await asyncio.gather(*(self._answer(scope, {user: who}) for user, who in wanted.items()))
                return
            for future in next(iter(wanted.values())):
                if not future.done():
                    future.set_exception(e)
            return
        for user, futures in wanted.items():
            for future in futures:
                if not future.done():
                    future.set_result(found.get(user, (0, None)))

    async def has_head(self, model: LoadedModel, user: str) -> bool:
        """Whether a personal head is active for a user in a feature space."""
        scope = model.scope
        version = self._pointers.get((scope, user))
        if version is not None:
            return version > 0
        self._know(scope, user)
        fetch = _Fetch()
        under_way = self._fetching.setdefault((scope, user), set())
        under_way.add(fetch)
        try:
            found = await self._store.user(scope, user)
        finally:
            under_way.discard(fetch)
            if not under_way:
                self._fetching.pop((scope, user), None)
        version = found.active if found else 0
        if not fetch.stale:
            self._remember(scope, user, version)
        return version > 0

    def point(self, scope: Scope, user: str, version: int) -> None:
        """Note which version is active; call it as soon as the store has committed it."""
        self._outdate(scope, user)
        if self._known is None:
            self._remember(scope, user, version)
        else:  # another service's change may have come after this one, and been passed on before
            self._pointers.pop((scope, user), None)

    def forget(self, user: str, model: LoadedModel) -> None:
        """Drop all that is cached of a user of a model."""
        self._outdate(model.scope, user)
        self._pointers.pop((model.scope, user), None)
        model.bank.forget(user)
        self.on_forget(user)

    def changed(self, changes: Sequence[tuple[int, Kind]]) -> None:
        """Take note of changes that services on a shared store have committed."""
        assert self._known is not None
        for who, kind in changes:
            key = self._known.find(who)
            if key is None:
                continue
            if kind == Kind.MOVED:
                self._outdate(*key)
                self._pointers.pop(key, None)
                continue
            self._drop(*key)
            if kind == Kind.ERASED:
                self.on_erase(key[0].model, key[1])

    def lost(self) -> None:
        """Drop all that is cached of everybody: changes of a shared store may have been missed."""
        assert self._known is not None
        for scope, user in self._known.all():
            self._drop(scope, user)

    def _drop(self, scope: Scope, user: str) -> None:
        """Drop all that is cached of a user in a scope."""
        self._outdate(scope, user)
        self._pointers.pop((scope, user), None)
        for model in self._loaded():
            if model.scope == scope:
                model.bank.forget(user)
        self.on_forget(user)

    def _know(self, scope: Scope, user: str) -> None:
        """Be ready for changes of a user, before anything is read of them."""
        if self._known is not None:
            self._known.add(scope, user)

    def _outdate(self, scope: Scope, user: str) -> None:
        self.on_move(scope, user)
        for fetch in self._fetching.get((scope, user), ()):
            fetch.stale = True

    def _remember(self, scope: Scope, user: str, version: int) -> None:
        self._pointers[scope, user] = version
        self._pointers.move_to_end((scope, user))
        if len(self._pointers) > POINTERS_KEPT:
            self._pointers.popitem(last=False)
