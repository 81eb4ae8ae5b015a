"""The store of users' heads: SQLAlchemy on SQLite (WAL). Versions are immutable; a pointer says which is served.

Here are its connections, transactions, reads and the audit trail; what a change does to the rows is in
`service.personal.changes`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.heads.head import Head
from service.personal import changes, schema
from service.personal.database import claim, connect, transaction
from service.personal.records import NewVersion, NoSuchVersion, Scope, StoreError, User, Version, head_from_bytes
from service.personal.rows import VERSION_COLUMNS, in_scope, owned, same_owner, user_of, version_of
from service.personal.schema import audit, meta, users, versions

USERS_A_QUERY = 500
"""Users whose heads are read by one statement."""


class Store:
    """Asynchronous access to users, versions, pointers and the audit trail. Open it with `Store.open`."""

    def __init__(self, engine: AsyncEngine, salt: str, lock: int) -> None:
        self._engine, self._salt, self._lock = engine, salt, lock

    @classmethod
    async def open(cls, url: str) -> Store:
        """Connect, create the tables where there are none, and check the schema's version.

        Raises:
            StoreError: the URL is not of SQLite, the file cannot be opened, is in use, or of another schema.
        """
        engine = connect(url)
        lock = claim(engine)
        try:
            async with transaction(engine, write=True) as c:
                await c.run_sync(schema.metadata.create_all)
                rows: dict[str, str] = {row.key: row.value for row in await c.execute(select(meta))}
                found = rows.setdefault("schema", str(schema.SCHEMA_VERSION))
                salt = rows.setdefault("salt", secrets.token_hex(16))
                if found != str(schema.SCHEMA_VERSION):
                    raise StoreError(f"the store is of schema {found}; this Headway reads {schema.SCHEMA_VERSION}")
                await c.execute(delete(meta))
                await c.execute(insert(meta), [{"key": k, "value": v} for k, v in rows.items()])
        except BaseException:
            await engine.dispose()
            os.close(lock)
            raise
        return cls(engine, salt, lock)

    async def close(self) -> None:
        """Close all connections and let others open the store."""
        await self._engine.dispose()
        os.close(self._lock)

    async def active(self, scope: Scope, user: str) -> tuple[int, Head | None]:
        """Return the version served to a user and its head; `(0, None)` is the shared one."""
        return (await self.active_of(scope, [user])).get(user, (0, None))

    async def active_of(self, scope: Scope, names: Sequence[str]) -> dict[str, tuple[int, Head]]:
        """Return the version served and its head for those of many users who have one."""
        found: dict[str, tuple[int, Head]] = {}
        where = in_scope(users, scope)
        async with transaction(self._engine) as c:
            for begin in range(0, len(names), USERS_A_QUERY):
                rows = await c.execute(
                    select(users.c.user, versions.c.version, versions.c.head, versions.c.digest)
                    .join(versions, same_owner(users, versions) & (users.c.active == versions.c.version))
                    .where(*where, users.c.user.in_(names[begin : begin + USERS_A_QUERY]))
                )
                for row in rows:
                    found[row.user] = row.version, head_from_bytes(row.head, row.digest)
        return found

    async def head(self, scope: Scope, user: str, version: int) -> Head | None:
        """Return the head of one version, or None."""
        blob = await self.weights(scope, user, version)
        return None if blob is None else head_from_bytes(*blob)

    async def weights(self, scope: Scope, user: str, version: int) -> tuple[bytes, str] | None:
        """Return the safetensors of one version and their digest, or None."""
        async with transaction(self._engine) as c:
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
        async with transaction(self._engine) as c:
            row = (await c.execute(select(users).where(owned(users, scope, user)))).mappings().first()
        return None if row is None else user_of(row)

    async def users(self, scope: Scope, after: str, limit: int) -> list[User]:
        """List users by name, beginning behind `after`."""
        where = in_scope(users, scope)
        async with transaction(self._engine) as c:
            rows = await c.execute(
                select(users).where(*where, users.c.user > after).order_by(users.c.user).limit(limit)
            )
            return [user_of(row) for row in rows.mappings()]

    async def statistics(self, scope: Scope, user: str) -> tuple[bytes | None, User | None]:
        """Return the statistics that an update adds to (None: begin anew), and the user."""
        async with transaction(self._engine) as c:
            row = (await c.execute(select(users).where(owned(users, scope, user)))).mappings().first()
            if row is None:
                return None, None
            data = await c.scalar(
                select(versions.c.statistics).where(owned(versions, scope, user), versions.c.version == row["base"])
            )
        return data, user_of(row)

    async def versions(self, scope: Scope, user: str) -> list[Version]:
        """List a user's versions, oldest first."""
        async with transaction(self._engine) as c:
            rows = await c.execute(
                select(*VERSION_COLUMNS).where(owned(versions, scope, user)).order_by(versions.c.version)
            )
            return [version_of(row) for row in rows.mappings()]

    async def version(self, scope: Scope, user: str, version: int) -> Version | None:
        """Return one version, or None."""
        async with transaction(self._engine) as c:
            rows = await c.execute(
                select(*VERSION_COLUMNS).where(owned(versions, scope, user), versions.c.version == version)
            )
            row = rows.mappings().first()
        return None if row is None else version_of(row)

    async def by_idempotency_key(self, scope: Scope, user: str, key: str) -> Version | None:
        """Return the version that a call with this key made, or None."""
        async with transaction(self._engine) as c:
            rows = await c.execute(
                select(*VERSION_COLUMNS).where(owned(versions, scope, user), versions.c.idempotency_key == key)
            )
            row = rows.mappings().first()
        return None if row is None else version_of(row)

    async def commit(self, scope: Scope, user: str, new: NewVersion) -> int:
        """Write a version and move the pointer in one transaction; returns the version's number.

        The number is also written into the report, under `version`.
        """
        async with transaction(self._engine, write=True) as c:
            number = await changes.add_version(c, scope, user, new)
            event = "adapted" if new.report.get("origin") == "adaptation" else "calibrated"
            await self._audit(c, scope, user, event, {"version": number, "outcome": new.report.get("outcome")})
        return number

    async def activate(self, scope: Scope, user: str, version: int) -> User:
        """Point a user at one of their versions, or at the shared head (0).

        Raises:
            NoSuchVersion: there is no such version.
        """
        async with transaction(self._engine, write=True) as c:
            await changes.point(c, scope, user, version)
            await self._audit(c, scope, user, "activated", {"version": version})
        return await self._required(scope, user)

    async def rollback(self, scope: Scope, user: str) -> User:
        """Point a user at what was served before the active version; the shared head is before the first.

        Raises:
            NoSuchVersion: the shared head is active already.
        """
        async with transaction(self._engine, write=True) as c:
            version = await changes.step_back(c, scope, user)
            await self._audit(c, scope, user, "rolled back", {"version": version})
        return await self._required(scope, user)

    async def delete_version(self, scope: Scope, user: str, version: int) -> None:
        """Delete a version that is not active.

        Raises:
            NoSuchVersion: there is no such version.
            VersionIsActive: it is being served.
        """
        async with transaction(self._engine, write=True) as c:
            await changes.remove_version(c, scope, user, version)
            await self._audit(c, scope, user, "deleted a version", {"version": version})

    async def erase(self, user: str, model: str | None = None, tenant: str = "default") -> tuple[int, bool]:
        """Delete everything of a user in one model (all its feature spaces) or in all.

        Deleted content is overwritten with zeros (SQLite's secure_delete) and the write-ahead log is truncated, which
        another process that reads the file just then (a backup) prevents.

        Returns:
            Rows deleted, and whether the log was truncated.
        """
        async with transaction(self._engine, write=True) as c:
            rows = await changes.remove_user(c, user, model, tenant)
            await self._audit(c, Scope(model or "*", "*", tenant), user, "erased", {"rows": rows})
        async with self._engine.connect() as c:
            autocommit = await c.execution_options(isolation_level="AUTOCOMMIT")
            done = (await autocommit.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")).first()
        return rows, done is not None and done[0] == 0

    async def ping(self) -> None:
        """Do one read.

        Raises:
            StoreError: the store is out of reach.
        """
        async with transaction(self._engine) as c:
            await c.execute(select(meta.c.key).limit(1))

    def pseudonym(self, user: str) -> str:
        """Name of a user in the audit trail."""
        return hashlib.sha256(f"{self._salt}:{user}".encode()).hexdigest()[:24]

    async def _required(self, scope: Scope, user: str) -> User:
        found = await self.user(scope, user)
        if found is None:
            raise NoSuchVersion("the user was erased meanwhile")
        return found

    async def _audit(
        self, c: AsyncConnection, scope: Scope, user: str, event_name: str, details: dict[str, Any]
    ) -> None:
        await c.execute(
            insert(audit).values(
                at=time.time(),
                tenant=scope.tenant,
                model=scope.model,
                pseudonym=self.pseudonym(user),
                event=event_name,
                details=details,
            )
        )
