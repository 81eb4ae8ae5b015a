"""The store of users' heads: SQLAlchemy on SQLite (WAL). Versions are immutable; a pointer says which is served."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table, delete, func, insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.sql.elements import ColumnElement

from models.heads.head import Head
from service.personal import schema
from service.personal.database import claim, connect, transaction
from service.personal.records import (
    NewVersion,
    NoSuchVersion,
    Scope,
    StoreError,
    User,
    Version,
    VersionIsActive,
    head_from_bytes,
    head_to_bytes,
)
from service.personal.schema import activations, audit, meta, users, versions

STATISTICS_KEPT = 2
"""Versions whose statistics are kept: the newest ones, beside the active one and the base."""

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
        where = [getattr(users.c, k) == v for k, v in _values(scope).items()]
        async with transaction(self._engine) as c:
            for begin in range(0, len(names), USERS_A_QUERY):
                rows = await c.execute(
                    select(users.c.user, versions.c.version, versions.c.head, versions.c.digest)
                    .join(versions, _same(users, versions) & (users.c.active == versions.c.version))
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
                        _of(versions, scope, user), versions.c.version == version
                    )
                )
            ).first()
        return None if row is None else (row.head, row.digest)

    async def user(self, scope: Scope, user: str) -> User | None:
        """Return a user's pointers, or None."""
        async with transaction(self._engine) as c:
            row = (await c.execute(select(users).where(_of(users, scope, user)))).mappings().first()
        return None if row is None else _user(row)

    async def users(self, scope: Scope, after: str, limit: int) -> list[User]:
        """List users by name, beginning behind `after`."""
        where = [getattr(users.c, k) == v for k, v in _values(scope).items()]
        async with transaction(self._engine) as c:
            rows = await c.execute(
                select(users).where(*where, users.c.user > after).order_by(users.c.user).limit(limit)
            )
            return [_user(row) for row in rows.mappings()]

    async def statistics(self, scope: Scope, user: str) -> tuple[bytes | None, User | None]:
        """Return the statistics that an update adds to (None: begin anew), and the user."""
        async with transaction(self._engine) as c:
            row = (await c.execute(select(users).where(_of(users, scope, user)))).mappings().first()
            if row is None:
                return None, None
            data = await c.scalar(
                select(versions.c.statistics).where(_of(versions, scope, user), versions.c.version == row["base"])
            )
        return data, _user(row)

    async def versions(self, scope: Scope, user: str) -> list[Version]:
        """List a user's versions, oldest first."""
        async with transaction(self._engine) as c:
            rows = await c.execute(_version_columns().where(_of(versions, scope, user)).order_by(versions.c.version))
            return [_version(row) for row in rows.mappings()]

    async def version(self, scope: Scope, user: str, version: int) -> Version | None:
        """Return one version, or None."""
        async with transaction(self._engine) as c:
            rows = await c.execute(_version_columns().where(_of(versions, scope, user), versions.c.version == version))
            row = rows.mappings().first()
        return None if row is None else _version(row)

    async def by_idempotency_key(self, scope: Scope, user: str, key: str) -> Version | None:
        """Return the version that a call with this key made, or None."""
        async with transaction(self._engine) as c:
            rows = await c.execute(
                _version_columns().where(_of(versions, scope, user), versions.c.idempotency_key == key)
            )
            row = rows.mappings().first()
        return None if row is None else _version(row)

    async def commit(self, scope: Scope, user: str, new: NewVersion) -> int:
        """Write a version and move the pointer in one transaction; returns the version's number.

        The number is also written into the report, under `version`.
        """
        now = time.time()
        blob = head_to_bytes(new.head)
        async with transaction(self._engine, write=True) as c:
            row = (await c.execute(select(users).where(_of(users, scope, user)))).mappings().first()
            if row is None:
                row_values = {**_values(scope, user), "active": 0, "base": 0, "last": 0, "created": now, "updated": now}
                await c.execute(insert(users).values(**row_values))
                before = User(user, 0, 0, 0, now, now)
            else:
                before = _user(row)
            number = before.last + 1
            active = number if new.active else before.active
            base = number if new.base else before.base
            await c.execute(
                insert(versions).values(
                    **_values(scope, user),
                    version=number,
                    calibration_id=new.calibration_id,
                    created=now,
                    head=blob,
                    digest=hashlib.sha256(blob).hexdigest(),
                    statistics=new.statistics,
                    report={**new.report, "version": number, "active_version": active},
                    idempotency_key=new.idempotency_key,
                    request_digest=new.request_digest,
                )
            )
            await c.execute(
                update(users).where(_of(users, scope, user)).values(active=active, base=base, last=number, updated=now)
            )
            await c.execute(
                update(versions)
                .where(
                    _of(versions, scope, user),
                    versions.c.version.not_in({active, base}),
                    versions.c.version <= number - STATISTICS_KEPT,
                )
                .values(statistics=None)
            )
            if new.active:
                await c.execute(insert(activations).values(**_values(scope, user), version=number, at=now))
            await self._audit(c, scope, user, "calibrated", {"version": number, "outcome": new.report.get("outcome")})
        return number

    async def activate(self, scope: Scope, user: str, version: int) -> User:
        """Point a user at one of their versions, or at the shared head (0).

        Raises:
            NoSuchVersion: there is no such version.
        """
        async with transaction(self._engine, write=True) as c:
            await self._point(c, scope, user, version, "activated")
        return await self._required(scope, user)

    async def rollback(self, scope: Scope, user: str) -> User:
        """Point a user at what was served before the active version; the shared head is before the first.

        Raises:
            NoSuchVersion: the shared head is active already.
        """
        async with transaction(self._engine, write=True) as c:
            active = await c.scalar(select(users.c.active).where(_of(users, scope, user)))
            if not active:
                raise NoSuchVersion("the shared head is active; there is nothing to roll back to")
            last = await c.scalar(
                select(func.max(activations.c.id)).where(_of(activations, scope, user), activations.c.version == active)
            )
            held = select(versions.c.version).where(_of(versions, scope, user))
            before = await c.scalar(
                select(activations.c.version)
                .where(
                    _of(activations, scope, user),
                    activations.c.id < (last or 0),
                    activations.c.version != active,
                    (activations.c.version == 0) | activations.c.version.in_(held),
                )
                .order_by(activations.c.id.desc())
                .limit(1)
            )
            await c.execute(delete(activations).where(_of(activations, scope, user), activations.c.id >= (last or 0)))
            await self._point(c, scope, user, before or 0, "rolled back", record=False)
        return await self._required(scope, user)

    async def delete_version(self, scope: Scope, user: str, version: int) -> None:
        """Delete a version that is not active.

        Raises:
            NoSuchVersion: there is no such version.
            VersionIsActive: it is being served.
        """
        async with transaction(self._engine, write=True) as c:
            if await c.scalar(select(users.c.active).where(_of(users, scope, user))) == version:
                raise VersionIsActive
            gone = await c.execute(delete(versions).where(_of(versions, scope, user), versions.c.version == version))
            if not gone.rowcount:
                raise NoSuchVersion(f"version {version} does not exist")
            await c.execute(update(users).where(_of(users, scope, user), users.c.base == version).values(base=0))
            await self._audit(c, scope, user, "deleted a version", {"version": version})

    async def erase(self, user: str, model: str | None = None, tenant: str = "default") -> tuple[int, bool]:
        """Delete everything of a user in one model (all its feature spaces) or in all.

        Deleted content is overwritten with zeros (SQLite's secure_delete) and the write-ahead log is truncated, which
        another process that reads the file just then (a backup) prevents.

        Returns:
            Rows deleted, and whether the log was truncated.
        """
        rows = 0
        async with transaction(self._engine, write=True) as c:
            for table in (versions, activations, users):
                where = [table.c.tenant == tenant, table.c.user == user]
                if model is not None:
                    where.append(table.c.model == model)
                rows += (await c.execute(delete(table).where(*where))).rowcount
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

    async def _point(
        self, c: AsyncConnection, scope: Scope, user: str, version: int, event_name: str, *, record: bool = True
    ) -> None:
        if version:
            exists = await c.scalar(
                select(func.count()).where(_of(versions, scope, user), versions.c.version == version)
            )
            if not exists:
                raise NoSuchVersion(f"version {version} does not exist")
        now = time.time()
        moved = await c.execute(
            update(users).where(_of(users, scope, user)).values(active=version, base=version, updated=now)
        )
        if not moved.rowcount:
            raise NoSuchVersion("the user has no versions")
        if record:
            await c.execute(insert(activations).values(**_values(scope, user), version=version, at=now))
        await self._audit(c, scope, user, event_name, {"version": version})

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


def _values(scope: Scope, user: str | None = None) -> dict[str, str]:
    values = {"tenant": scope.tenant, "model": scope.model, "feature_space": scope.feature_space}
    return values if user is None else {**values, "user": user}


def _of(table: Table, scope: Scope, user: str) -> ColumnElement[bool]:
    condition: ColumnElement[bool] = table.c.user == user
    for name, value in _values(scope).items():
        condition &= table.c[name] == value
    return condition


def _same(a: Table, b: Table) -> ColumnElement[bool]:
    condition: ColumnElement[bool] = a.c.user == b.c.user
    for name in ("tenant", "model", "feature_space"):
        condition &= a.c[name] == b.c[name]
    return condition


def _version_columns() -> Any:
    return select(
        versions.c.version,
        versions.c.calibration_id,
        versions.c.created,
        versions.c.digest,
        versions.c.report,
        versions.c.request_digest,
    )


def _user(row: RowMapping) -> User:
    return User(row["user"], row["active"], row["base"], row["last"], row["created"], row["updated"])


def _version(row: RowMapping) -> Version:
    return Version(
        row["version"], row["calibration_id"], row["created"], row["digest"], row["report"], row["request_digest"]
    )
