"""Long work on many users, as rows of the store: what is to be done, how far it is, and which service does it.

Every step is one transaction with the count of it, under the condition that the work is still this service's. So what
is killed loses nothing and does nothing twice; whoever comes next goes on with the users that have no outcome yet.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, func, insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from service.personal.operation_tables import OUTCOMES, operation_users, operations
from service.personal.records import Scope, UserChanged
from service.personal.schema import users
from service.personal.store import Store

LEASE_SECONDS = 15.0
"""Time without a sign after which another service on the same store takes work over."""
KEPT_SECONDS = 30 * 86400.0
"""Age at which operations that have ended are forgotten, when another begins."""
RUNNING, DONE, CANCELLED, FAILED = "running", "done", "cancelled", "failed"


class OperationRunning(RuntimeError):
    """Another operation on the model's users runs; its id is the message."""


class NotOurs(RuntimeError):
    """The operation was cancelled, or another service has taken it over."""


@dataclass(frozen=True, slots=True)
class Operation:
    """How far an operation is; times in Unix seconds."""

    id: str
    scope: Scope
    model_version: int
    sources: tuple[str, ...]
    dry_run: bool
    state: str
    message: str
    created: float
    updated: float
    total: int
    moved: int
    needs_enrolment: int
    failed: int

    @property
    def done(self) -> int:
        """Users who have an outcome."""
        return self.moved + self.needs_enrolment + self.failed


class Operations:
    """Reads and writes operations, as one service that does them."""

    def __init__(self, store: Store, me: str | None = None) -> None:
        self._store, self.me = store, me or uuid.uuid4().hex

    async def create(
        self, scope: Scope, model_version: int, sources: Sequence[str], dry_run: bool, *, taken: bool = False
    ) -> Operation:
        """Begin to move the users of a model from some feature spaces into a scope's; `taken`: it is ours to do.

        Raises:
            OperationRunning: users of the model are being moved already.
        """
        now, identifier = time.time(), uuid.uuid4().hex
        key = f"{scope.tenant}/{scope.model}"
        running = select(operations.c.id).where(operations.c.running == key)
        try:
            async with self._store.transaction(write=True) as c:
                if (other := await c.scalar(running)) is not None:
                    raise OperationRunning(other)
                await _prune(c, now - KEPT_SECONDS)
                stale = select(users.c.user).where(*_stale(scope, sources)).distinct()
                total = await c.scalar(select(func.count()).select_from(stale.subquery()))
                await c.execute(
                    insert(operations).values(
                        id=identifier,
                        tenant=scope.tenant,
                        model=scope.model,
                        feature_space=scope.feature_space,
                        model_version=model_version,
                        sources=list(sources),
                        dry_run=dry_run,
                        state=RUNNING,
                        message="",
                        created=now,
                        updated=now,
                        total=total or 0,
                        **dict.fromkeys(OUTCOMES, 0),
                        running=key,
                        owner=self.me if taken else None,
                        lease=now + LEASE_SECONDS if taken else 0.0,
                    )
                )
        except UserChanged:  # another service began one in the same moment
            async with self._store.transaction() as c:
                raise OperationRunning(await c.scalar(running) or "another") from None
        found = await self.get(identifier)
        assert found is not None
        return found

    async def get(self, identifier: str) -> Operation | None:
        """Return an operation, or None."""
        async with self._store.transaction() as c:
            row = (await c.execute(select(operations).where(operations.c.id == identifier))).mappings().first()
        return None if row is None else _operation(row)

    async def recent(self, limit: int = 100) -> list[Operation]:
        """List operations, the newest first."""
        async with self._store.transaction() as c:
            rows = await c.execute(select(operations).order_by(operations.c.created.desc()).limit(limit))
            return [_operation(row) for row in rows.mappings()]

    async def users(self, identifier: str, outcome: str, after: str, limit: int) -> list[tuple[str, str]]:
        """List users with an outcome, and why, by name, beginning behind `after`."""
        t = operation_users.c
        async with self._store.transaction() as c:
            rows = await c.execute(
                select(t.user, t.reason)
                .where(t.operation == identifier, t.outcome == outcome, t.user > after)
                .order_by(t.user)
                .limit(limit)
            )
            return [(row.user, row.reason) for row in rows]

    async def cancel(self, identifier: str) -> Operation | None:
        """End an operation before its next user; what is done stays. One that has ended is left as it is."""
        async with self._store.transaction(write=True) as c:
            await _end(c, [operations.c.id == identifier, operations.c.state == RUNNING], CANCELLED, "")
            await _unlist_moved(c, identifier)
        return await self.get(identifier)

    async def claim(self, identifier: str | None = None) -> Operation | None:
        """Take an operation that nobody does, the oldest or the one asked for; None where there is none."""
        now = time.time()
        free = operations.c.state == RUNNING
        if identifier is not None:
            free &= operations.c.id == identifier
        if self._store.shared:  # else nobody else can be at it: the file is this service's alone
            free &= (operations.c.lease < now) | (operations.c.owner == self.me)
        async with self._store.transaction() as c:  # this is asked every few seconds: mostly there is nothing to write
            if await c.scalar(select(operations.c.id).where(free).limit(1)) is None:
                return None
        async with self._store.transaction(write=True) as c:
            query = select(operations).where(free).order_by(operations.c.created).limit(1).with_for_update()
            row = (await c.execute(query)).mappings().first()
            if row is None:
                return None
            values = {"owner": self.me, "lease": now + LEASE_SECONDS}
            await c.execute(update(operations).where(operations.c.id == row["id"]).values(**values))
        return _operation(row)

    async def ranges(self, operation: Operation, size: int) -> list[tuple[str, str | None]]:
        """Cut the users who are left into ranges of so many: each is behind a name, and up to another (None: the end).

        Whoever comes to have a head meanwhile is in one of them, too.
        """
        ends, after = list[str](), ""
        where = (*_stale(operation.scope, operation.sources), ~_told(operation))
        while True:
            query = select(users.c.user).where(*where, users.c.user > after).distinct().order_by(users.c.user)
            async with self._store.transaction() as c:
                end = await c.scalar(query.offset(size - 1).limit(1))
            if end is None:
                return list(zip(["", *ends], [*ends, None], strict=True))
            ends.append(end)
            after = end

    async def batch(
        self, operation: Operation, after: str, limit: int, until: str | None = None
    ) -> list[tuple[str, list[str]]]:
        """Return users without an outcome, by name behind `after`, and the sources in which each has a head.

        `until` is the last name that may be among them.
        """
        async with self._store.transaction() as c:
            where = [*_stale(operation.scope, operation.sources), users.c.user > after, ~_told(operation)]
            if until is not None:
                where.append(users.c.user <= until)
            names = (
                await c.scalars(select(users.c.user).where(*where).distinct().order_by(users.c.user).limit(limit))
            ).all()
            rows = await c.execute(
                select(users.c.user, users.c.feature_space).where(
                    *_stale(operation.scope, operation.sources), users.c.user.in_(names)
                )
            )
            spaces: dict[str, list[str]] = {name: [] for name in names}
            for row in rows:
                spaces[row.user].append(row.feature_space)
        return [(name, sorted(found, key=operation.sources.index)) for name, found in spaces.items()]

    async def count(self, c: AsyncConnection, operation: Operation, user: str, outcome: str, reason: str) -> None:
        """Note a user's outcome, within the transaction that brings it about.

        Raises:
            NotOurs: the operation is no longer this service's to do.
        """
        column, now = operations.c[outcome], time.time()
        counted = await c.execute(
            update(operations)
            .where(operations.c.id == operation.id, operations.c.state == RUNNING, operations.c.owner == self.me)
            .values({column: column + 1, "message": "", "updated": now, "lease": now + LEASE_SECONDS})
        )
        if not counted.rowcount:
            raise NotOurs(operation.id)
        whose = {"operation": operation.id, "tenant": operation.scope.tenant, "model": operation.scope.model}
        await c.execute(insert(operation_users).values(**whose, user=user, outcome=outcome, reason=reason))

    async def note(self, operation: Operation, user: str, outcome: str, reason: str) -> None:
        """Note a user's outcome that changed nothing; of one who was erased meanwhile nothing is written down.

        Raises:
            NotOurs: as `count`.
        """
        scope = operation.scope
        theirs = users.c.tenant == scope.tenant, users.c.model == scope.model, users.c.user == user
        async with self._store.transaction(write=True) as c:
            if not (await c.execute(select(users.c.user).where(*theirs).with_for_update())).all():
                return
            await self.count(c, operation, user, outcome, reason)

    async def say(self, operation: Operation, message: str) -> None:
        """Keep an operation that cannot go on just now, and say why.

        Raises:
            NotOurs: as `count`.
        """
        now = time.time()
        where = operations.c.id == operation.id, operations.c.state == RUNNING, operations.c.owner == self.me
        async with self._store.transaction(write=True) as c:
            values = {"message": message, "updated": now, "lease": now + LEASE_SECONDS}
            if not (await c.execute(update(operations).where(*where).values(**values))).rowcount:
                raise NotOurs(operation.id)

    async def extend(self, operation: Operation) -> None:
        """Show that an operation is being done, however long nobody has been moved.

        Raises:
            NotOurs: as `count`.
        """
        where = operations.c.id == operation.id, operations.c.state == RUNNING, operations.c.owner == self.me
        async with self._store.transaction(write=True) as c:
            if not (
                await c.execute(update(operations).where(*where).values(lease=time.time() + LEASE_SECONDS))
            ).rowcount:
                raise NotOurs(operation.id)

    async def finish(self, operation: Operation, state: str, message: str = "") -> None:
        """End an operation of this service's; users who were moved are no longer listed under it."""
        where = [operations.c.id == operation.id, operations.c.state == RUNNING, operations.c.owner == self.me]
        async with self._store.transaction(write=True) as c:
            await _end(c, where, state, message)
            await _unlist_moved(c, operation.id)

    async def release(self, operation: Operation) -> None:
        """Let another service go on at once."""
        where = operations.c.id == operation.id, operations.c.owner == self.me
        async with self._store.transaction(write=True) as c:
            await c.execute(update(operations).where(*where).values(owner=None, lease=0.0))


async def _unlist_moved(c: AsyncConnection, identifier: str) -> None:
    """Forget who was moved by an operation that has ended: their versions say so. A dry run's list is all there is."""
    real = select(operations.c.id).where(
        operations.c.id == identifier, operations.c.state != RUNNING, ~operations.c.dry_run
    )
    moved = operation_users.c.operation.in_(real), operation_users.c.outcome == "moved"
    await c.execute(delete(operation_users).where(*moved))


async def _prune(c: AsyncConnection, before: float) -> None:
    ended = select(operations.c.id).where(operations.c.state != RUNNING, operations.c.updated < before)
    await c.execute(delete(operation_users).where(operation_users.c.operation.in_(ended)))
    await c.execute(delete(operations).where(operations.c.state != RUNNING, operations.c.updated < before))


async def _end(c: AsyncConnection, where: list[ColumnElement[bool]], state: str, message: str) -> None:
    values = {"state": state, "message": message, "updated": time.time(), "running": None, "owner": None}
    await c.execute(update(operations).where(*where).values(**values))


def _stale(scope: Scope, sources: Sequence[str]) -> list[ColumnElement[bool]]:
    """Conditions on rows of `users`: a head is active in one of the sources, and none in the scope."""
    here = users.alias("here")
    moved = (
        select(here.c.user)
        .where(
            here.c.tenant == scope.tenant,
            here.c.model == scope.model,
            here.c.feature_space == scope.feature_space,
            here.c.user == users.c.user,
            here.c.active > 0,
        )
        .exists()
    )
    return [
        users.c.tenant == scope.tenant,
        users.c.model == scope.model,
        users.c.feature_space.in_(sources),
        users.c.active > 0,
        ~moved,
    ]


def _told(operation: Operation) -> ColumnElement[bool]:
    """Whether the user of a row of `users` has an outcome."""
    own = operation_users.c
    return select(own.user).where(own.operation == operation.id, own.user == users.c.user).exists()


def _operation(row: RowMapping) -> Operation:
    names: dict[str, Any] = {name: row[name] for name in Operation.__dataclass_fields__ if name in row}
    scope = Scope(row["model"], row["feature_space"], row["tenant"])
    return Operation(**{**names, "scope": scope, "sources": tuple(row["sources"])})
