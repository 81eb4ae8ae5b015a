"""The store of users' heads, in SQLite or PostgreSQL. Versions are immutable; a pointer says which is served.

Here are its reads and its transactions; what a change does to the rows is in `service.personal.changes`, and what
differs between databases behind `service.personal.database`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from models.heads.head import Head
from service.personal import audit, changes, records, revision
from service.personal.database import Database, connect
from service.personal.records import Erasure, Kind, NewVersion, NoSuchVersion, OnChanges, Scope, User, Version
from service.personal.rows import VERSION_COLUMNS, in_scope, owned, same_owner, user_of, version_of
from service.personal.schema import meta, users, versions

USERS_A_QUERY = 500
"""Users whose heads are read by one statement."""
VISIBLE_SECONDS = 1.0
"""Time that a version of a shared store has to become visible to who asks for it by its number."""


class Store:
    """Asynchronous access to users, versions, pointers and the audit trail. Open it with `Store.open`."""

    def __init__(self, database: Database, salt: str) -> None:
        self._database, self._salt = database, salt

    @classmethod
    async def open(cls, url: str, *, existing: bool = False) -> Store:
        """Connect, create the tables where there are none, and check their revision; no file is made if `existing`.

        Raises:
            StoreError: the URL is of no store, it does not answer, is in use, or of another revision.
        """
        database = connect(url, existing=existing)
        try:
            database.claim()
            async with database.transaction(write=True) as c:
                await database.alone(c)
                salt = await revision.made_or_checked(c, database.name, shared=database.shared)
                await database.opened(c)
        except BaseException:
            await database.close()
            raise
        return cls(database, salt)

    @property
    def shared(self) -> bool:
        """Whether other services may use the same store."""
        return self._database.shared

    @property
    def staleness(self) -> float:
        """Seconds since changes by other services were last read."""
        return self._database.staleness

    async def close(self) -> None:
        """Close all connections and let others open the store."""
        await self._database.close()

    async def follow(self, changed: OnChanges, lost: Callable[[], None]) -> None:
        """Pass on changes by any service until cancelled, as `Database.follow`; returns where there is one only."""
        await self._database.follow(changed, lost)

    async def active(self, scope: Scope, user: str) -> tuple[int, Head | None]:
        """Return the version served to a user and its head; `(0, None)` is the shared one."""
        return (await self.active_of(scope, [user])).get(user, (0, None))

    async def active_of(self, scope: Scope, names: Sequence[str]) -> dict[str, tuple[int, Head]]:
        """Return the version served and its head for those of many users who have one."""
        found: dict[str, tuple[int, Head]] = {}
        where = in_scope(users, scope)
        async with self._database.transaction(single=True) as c:
            for begin in range(0, len(names), USERS_A_QUERY):
                rows = await c.execute(
                    select(users.c.user, versions.c.version, versions.c.head, versions.c.digest)
                    .join(versions, same_owner(users, versions) & (users.c.active == versions.c.version))
                    .where(*where, users.c.user.in_(names[begin : begin + USERS_A_QUERY]))
                )
                for row in rows:
                    found[row.user] = row.version, records.head_from_bytes(row.head, row.digest)
        return found

    async def head(self, scope: Scope, user: str, version: int) -> Head | None:
        """Return the head of one version, or None."""
        blob = await self.weights(scope, user, version)
        return None if blob is None else records.head_from_bytes(*blob)

    async def head_in_time(self, scope: Scope, user: str, version: int) -> Head | None:
        """Return the head of one version, in a shared store also one that is about to be committed; or None."""
        deadline = time.monotonic() + VISIBLE_SECONDS
        while True:
            head = await self.head(scope, user, version)
            if head is not None or not self.shared or time.monotonic() > deadline:
                return head
            found = await self.user(scope, user)
            if found is not None and version <= found.last:
                return None  # there was one, and it was deleted
            await asyncio.sleep(VISIBLE_SECONDS / 10)

    async def weights(self, scope: Scope, user: str, version: int) -> tuple[bytes, str] | None:
        """Return the safetensors of one version and their digest, or None."""
        async with self._database.transaction(single=True) as c:
            row = (
                await c.execute(
                    select(versions.c.head, versions.c.digest).where(
                        owned(versions, scope, user), versions.c.version == version
                    )
                )
            ).first()
        return None if row is None else (row.head, row.digest)

    async def user(self, scope: Scope, user: str) -> User | None:
        """Return a user's pointers, or None."""
        async with self._database.transaction(single=True) as c:
            row = (await c.execute(select(users).where(owned(users, scope, user)))).mappings().first()
        return None if row is None else user_of(row)

    async def revision(self, scope: Scope, user: str) -> int:
        """Return what changes with every change of a user; 0 where there is none."""
        found = await self.user(scope, user)
        return found.revision if found else 0

    async def users(self, scope: Scope, after: str, limit: int) -> list[User]:
        """List users by name, beginning behind `after`."""
        where = in_scope(users, scope)
        async with self._database.transaction(single=True) as c:
            rows = await c.execute(
                select(users).where(*where, users.c.user > after).order_by(users.c.user).limit(limit)
            )
            return [user_of(row) for row in rows.mappings()]

    async def statistics(self, scope: Scope, user: str) -> tuple[bytes | None, User | None]:
        """Return the statistics that an update adds to (None: begin anew), and the user."""
        async with self._database.transaction() as c:
            row = (await c.execute(select(users).where(owned(users, scope, user)))).mappings().first()
            if row is None:
                return None, None
            data = await c.scalar(
                select(versions.c.statistics).where(owned(versions, scope, user), versions.c.version == row["base"])
            )
        return data, user_of(row)

    async def versions(self, scope: Scope, user: str) -> list[Version]:
        """List a user's versions, oldest first."""
        async with self._database.transaction(single=True) as c:
            rows = await c.execute(
                select(*VERSION_COLUMNS).where(owned(versions, scope, user)).order_by(versions.c.version)
            )
            return [version_of(row) for row in rows.mappings()]

    async def version(self, scope: Scope, user: str, version: int) -> Version | None:
        """Return one version, or None."""
        async with self._database.transaction(single=True) as c:
            rows = await c.execute(
                select(*VERSION_COLUMNS).where(owned(versions, scope, user), versions.c.version == version)
            )
            row = rows.mappings().first()
        return None if row is None else version_of(row)

    async def by_idempotency_key(self, scope: Scope, user: str, key: str) -> Version | None:
        """Return the version that a call with this key made, or None."""
        async with self._database.transaction(single=True) as c:
            rows = await c.execute(
                select(*VERSION_COLUMNS).where(owned(versions, scope, user), versions.c.idempotency_key == key)
            )
            row = rows.mappings().first()
        return None if row is None else version_of(row)

    async def commit(self, scope: Scope, user: str, new: NewVersion) -> int:
        """Write a version and move the pointer in one transaction; returns the version's number.

        The number is also written into the report, under `version`.

        Raises:
            UserChanged: the user is no more as they were when the version was made, or its Idempotency-Key is taken.
        """
        async with self._database.transaction(write=True) as c:
            number = await changes.add_version(c, scope, user, new)
            if new.also is not None:
                await new.also(c, number)
            event = "adapted" if new.report.get("origin") == "adaptation" else "calibrated"
            outcome, details = new.report.get("outcome"), {"version": number, "active": new.active}
            await audit.write(c, scope, self.pseudonym(user), event, details, outcome)
            if new.active:
                await self._database.publish(c, self.who(scope, user), Kind.MOVED)
        return number

    async def activate(self, scope: Scope, user: str, version: int) -> User:
        """Point a user at one of their versions, or at the shared head (0).

        Raises:
            NoSuchVersion: there is no such version.
        """
        async with self._database.transaction(write=True) as c:
            await changes.point(c, scope, user, version)
            await self._noted(c, scope, user, "activated", version)
        return await self._required(scope, user)

    async def rollback(self, scope: Scope, user: str) -> User:
        """Point a user at what was served before the active version; the shared head is before the first.

        Raises:
            NoSuchVersion: the shared head is active already.
        """
        async with self._database.transaction(write=True) as c:
            version = await changes.step_back(c, scope, user)
            await self._noted(c, scope, user, "rolled back", version)
        return await self._required(scope, user)

    async def delete_version(self, scope: Scope, user: str, version: int) -> None:
        """Delete a version that is not active.

        Raises:
            NoSuchVersion: there is no such version.
            VersionIsActive: it is being served.
        """
        async with self._database.transaction(write=True) as c:
            await changes.remove_version(c, scope, user, version)
            await self._noted(c, scope, user, "deleted a version", version, Kind.DROPPED)

    async def erase(self, user: str, model: str | None = None, tenant: str = "default") -> Erasure:
        """Delete everything of a user in one model (all its feature spaces) or in all, and from the database's logs."""
        async with self._database.transaction(write=True) as c:
            rows, scopes = await changes.remove_user(c, user, model, tenant)
            everywhere = Scope(model or "*", "*", tenant)
            await audit.write(c, everywhere, self.pseudonym(user), "erased", {"rows": rows})
            for scope in scopes:
                await self._database.publish(c, self.who(scope, user), Kind.ERASED)
        return Erasure(rows, await self._database.scrub())

    async def audit_trail(self, user: str | None = None, limit: int = 100) -> list[audit.Event]:
        """Return the newest lines of the audit trail, of one user or of all, oldest first."""
        async with self._database.transaction() as c:
            return await audit.read(c, None if user is None else self.pseudonym(user), limit)

    def transaction(self, *, write: bool = False) -> AbstractAsyncContextManager[AsyncConnection]:
        """Begin a transaction that ends with the block, for what else is kept of users.

        Raises:
            StoreError: the database does not answer.
        """
        return self._database.transaction(write=write)

    async def purge(self) -> bool | None:
        """Leave no trace of what was deleted in the database's logs; returns as `Erasure.log_truncated`."""
        return await self._database.scrub()

    async def audit(self, c: AsyncConnection, scope: Scope, user: str, event: str, details: dict[str, Any]) -> None:
        """Note in the audit trail what a transaction does to a user."""
        await audit.write(c, scope, self.pseudonym(user), event, details)

    async def replaced(self, c: AsyncConnection, scope: Scope, user: str) -> None:
        """Tell other services that a transaction replaces all of a user's heads."""
        await self._database.publish(c, self.who(scope, user), Kind.DROPPED)

    async def ping(self) -> None:
        """Do one read.

        Raises:
            StoreError: the store is out of reach.
        """
        async with self._database.transaction(single=True) as c:
            await c.execute(select(meta.c.key).limit(1))

    def pseudonym(self, user: str) -> str:
        """Name of a user in the audit trail."""
        return audit.pseudonym(self._salt, user)

    def who(self, scope: Scope, user: str) -> int:
        """Name of a user's heads in one scope in what `follow` passes on."""
        return audit.who(self._salt, scope, user)

    async def _required(self, scope: Scope, user: str) -> User:
        found = await self.user(scope, user)
        if found is None:
            raise NoSuchVersion("the user was erased meanwhile")
        return found

    async def _noted(
        self, c: AsyncConnection, scope: Scope, user: str, event: str, version: int, kind: Kind = Kind.MOVED
    ) -> None:
        """Write a change of pointers or versions into the audit trail, and tell other services of it."""
        await audit.write(c, scope, self.pseudonym(user), event, {"version": version})
        await self._database.publish(c, self.who(scope, user), kind)
