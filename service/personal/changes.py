"""What each change does to the store's rows; the caller holds the transaction, so that a change is whole or is not.

Each change locks the user's row first: two services that change one user go one after the other.
"""

from __future__ import annotations

import hashlib
import secrets
import time

from sqlalchemy import Table, case, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from service.personal.data_tables import retained
from service.personal.records import (
    NewVersion,
    NoSuchVersion,
    Scope,
    User,
    UserChanged,
    VersionIsActive,
    head_to_bytes,
)
from service.personal.rows import owned, owner_values, user_of
from service.personal.schema import activations, metadata, users, versions

STATISTICS_KEPT = 2
"""Versions whose statistics are kept: the newest ones, beside the active one and the base."""


async def add_version(c: AsyncConnection, scope: Scope, user: str, new: NewVersion) -> int:
    """Write a version, move the pointers as it says, and drop statistics that nothing adds to; returns its number.

    The number is also written into the report, under `version`.

    Raises:
        UserChanged: the user is no more as they were when the version was made.
    """
    now = time.time()
    before = await _locked(c, scope, user)
    if new.revision is not None and new.revision != (before.revision if before else 0):
        raise UserChanged
    before = before or await _made(c, scope, user, now)
    number = before.last + 1
    active = number if new.active else before.active
    base = number if new.base else before.base
    blob = head_to_bytes(new.head)
    await c.execute(
        insert(versions).values(
            **owner_values(scope, user),
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
        update(users)
        .where(owned(users, scope, user))
        .values(active=active, base=base, last=number, updated=now, revision=before.revision + 1)
    )
    await c.execute(
        update(versions)
        .where(
            owned(versions, scope, user),
            versions.c.version.not_in({active, base}),
            versions.c.version <= number - STATISTICS_KEPT,
        )
        .values(statistics=None)
    )
    if new.active:
        await c.execute(insert(activations).values(**owner_values(scope, user), version=number, at=now))
    return number


async def found_or_made(c: AsyncConnection, scope: Scope, user: str, now: float) -> User:
    """Return a user, locked until the transaction ends; made where there is none."""
    return await _locked(c, scope, user) or await _made(c, scope, user, now)


async def altered(c: AsyncConnection, scope: Scope, user: str) -> bool:
    """Lock a user, and make void what was read of them to be committed later; returns whether there is one."""
    row = update(users).where(owned(users, scope, user)).values(revision=users.c.revision + 1)
    return (await c.execute(row)).rowcount > 0


async def _locked(c: AsyncConnection, scope: Scope, user: str) -> User | None:
    row = (await c.execute(select(users).where(owned(users, scope, user)).with_for_update())).mappings().first()
    return None if row is None else user_of(row)


async def _made(c: AsyncConnection, scope: Scope, user: str, now: float) -> User:
    # Begins anywhere: who was erased and calibrates again must not look like who was there before.
    pointers = {"active": 0, "base": 0, "last": 0, "revision": 1 + secrets.randbits(40)}
    await c.execute(insert(users).values(**owner_values(scope, user), **pointers, created=now, updated=now))
    return User(user, **pointers, created=now, updated=now)


async def point(c: AsyncConnection, scope: Scope, user: str, version: int) -> None:
    """Point a user at one of their versions, or at the shared head (0), and note it for a rollback.

    Raises:
        NoSuchVersion: there is no such version, or no such user.
    """
    now = time.time()
    await _locked(c, scope, user)
    await _move(c, scope, user, version, now)
    await c.execute(insert(activations).values(**owner_values(scope, user), version=version, at=now))


async def step_back(c: AsyncConnection, scope: Scope, user: str) -> int:
    """Point a user at what was served before the active version, and forget that it was; returns the version.

    Raises:
        NoSuchVersion: the shared head is active already.
    """
    found = await _locked(c, scope, user)
    if found is None or not found.active:
        raise NoSuchVersion("the shared head is active; there is nothing to roll back to")
    active = found.active
    own = owned(activations, scope, user)
    last = await c.scalar(select(func.max(activations.c.id)).where(own, activations.c.version == active)) or 0
    held = select(versions.c.version).where(owned(versions, scope, user))
    before = await c.scalar(
        select(activations.c.version)
        .where(
            own,
            activations.c.id < last,
            activations.c.version != active,
            (activations.c.version == 0) | activations.c.version.in_(held),
        )
        .order_by(activations.c.id.desc())
        .limit(1)
    )
    await c.execute(delete(activations).where(own, activations.c.id >= last))
    await _move(c, scope, user, before or 0, time.time())
    return before or 0


async def _move(c: AsyncConnection, scope: Scope, user: str, version: int, now: float) -> None:
    """Set the pointers; the next update adds to what is served, or to what that was adapted from."""
    base, mine = version, owned(versions, scope, user)
    if version:
        report = await c.scalar(select(versions.c.report).where(mine, versions.c.version == version))
        if report is None:
            raise NoSuchVersion(f"version {version} does not exist")
        anchor = mine & (versions.c.version == report.get("anchor", version)) & versions.c.statistics.is_not(None)
        base = await c.scalar(select(versions.c.version).where(anchor)) or version
    moved = await c.execute(
        update(users)
        .where(owned(users, scope, user))
        .values(active=version, base=base, updated=now, revision=users.c.revision + 1)
    )
    if not moved.rowcount:
        raise NoSuchVersion("the user has no versions")


async def remove_version(c: AsyncConnection, scope: Scope, user: str, version: int) -> None:
    """Delete a version that is not active.

    Raises:
        NoSuchVersion: there is no such version.
        VersionIsActive: it is being served.
    """
    found = await _locked(c, scope, user)
    if found is not None and found.active == version:
        raise VersionIsActive
    gone = await c.execute(delete(versions).where(owned(versions, scope, user), versions.c.version == version))
    if not gone.rowcount:
        raise NoSuchVersion(f"version {version} does not exist")
    await c.execute(delete(retained).where(owned(retained, scope, user), retained.c.version == version))
    await c.execute(delete(activations).where(owned(activations, scope, user), activations.c.version == version))
    base = case((users.c.base == version, 0), else_=users.c.base)
    await c.execute(update(users).where(owned(users, scope, user)).values(base=base, revision=users.c.revision + 1))


async def remove_user(c: AsyncConnection, user: str, model: str | None, tenant: str) -> tuple[int, list[Scope]]:
    """Delete all rows of a user in one model (all its feature spaces) or in all; returns how many, and where."""

    def theirs(table: Table) -> list[ColumnElement[bool]]:
        """Conditions on a table's rows."""
        of_model = [] if model is None else [table.c.model == model]
        return [table.c.tenant == tenant, table.c.user == user, *of_model]

    # Locked before anything goes: a version that is being committed is then either seen here, or refused there.
    held = await c.execute(
        select(users.c.model, users.c.feature_space)
        .where(*theirs(users))
        .order_by(users.c.model, users.c.feature_space)
        .with_for_update()
    )
    scopes = [Scope(row.model, row.feature_space, tenant) for row in held]
    rows = 0
    for table in metadata.tables.values():
        if "user" not in table.c:  # the audit trail knows a pseudonym
            continue
        rows += (await c.execute(delete(table).where(*theirs(table)))).rowcount
    return rows, scopes
