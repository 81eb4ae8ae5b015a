"""What each change does to the store's rows; the caller holds the transaction, so that a change is whole or is not."""

from __future__ import annotations

import hashlib
import time

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.personal.data_tables import retained
from service.personal.records import NewVersion, NoSuchVersion, Scope, User, VersionIsActive, head_to_bytes
from service.personal.rows import owned, owner_values, user_of
from service.personal.schema import activations, metadata, users, versions

STATISTICS_KEPT = 2
"""Versions whose statistics are kept: the newest ones, beside the active one and the base."""


async def add_version(c: AsyncConnection, scope: Scope, user: str, new: NewVersion) -> int:
    """Write a version, move the pointers as it says, and drop statistics that nothing adds to; returns its number.

    The number is also written into the report, under `version`.
    """
    now = time.time()
    before = await found_or_made(c, scope, user, now)
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
        update(users).where(owned(users, scope, user)).values(active=active, base=base, last=number, updated=now)
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
    """Return a user, made where there is none."""
    row = (await c.execute(select(users).where(owned(users, scope, user)))).mappings().first()
    if row is not None:
        return user_of(row)
    pointers = {"active": 0, "base": 0, "last": 0}
    await c.execute(insert(users).values(**owner_values(scope, user), **pointers, created=now, updated=now))
    return User(user, **pointers, created=now, updated=now)


async def point(c: AsyncConnection, scope: Scope, user: str, version: int) -> None:
    """Point a user at one of their versions, or at the shared head (0), and note it for a rollback.

    Raises:
        NoSuchVersion: there is no such version, or no such user.
    """
    now = time.time()
    await _move(c, scope, user, version, now)
    await c.execute(insert(activations).values(**owner_values(scope, user), version=version, at=now))


async def step_back(c: AsyncConnection, scope: Scope, user: str) -> int:
    """Point a user at what was served before the active version, and forget that it was; returns the version.

    Raises:
        NoSuchVersion: the shared head is active already.
    """
    active = await c.scalar(select(users.c.active).where(owned(users, scope, user)))
    if not active:
        raise NoSuchVersion("the shared head is active; there is nothing to roll back to")
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
    """Set the pointers; the next update adds to what is served."""
    if version:
        exists = await c.scalar(select(func.count()).where(owned(versions, scope, user), versions.c.version == version))
        if not exists:
            raise NoSuchVersion(f"version {version} does not exist")
    moved = await c.execute(
        update(users).where(owned(users, scope, user)).values(active=version, base=version, updated=now)
    )
    if not moved.rowcount:
        raise NoSuchVersion("the user has no versions")


async def remove_version(c: AsyncConnection, scope: Scope, user: str, version: int) -> None:
    """Delete a version that is not active.

    Raises:
        NoSuchVersion: there is no such version.
        VersionIsActive: it is being served.
    """
    if await c.scalar(select(users.c.active).where(owned(users, scope, user))) == version:
        raise VersionIsActive
    gone = await c.execute(delete(versions).where(owned(versions, scope, user), versions.c.version == version))
    if not gone.rowcount:
        raise NoSuchVersion(f"version {version} does not exist")
    await c.execute(delete(retained).where(owned(retained, scope, user), retained.c.version == version))
    await c.execute(update(users).where(owned(users, scope, user), users.c.base == version).values(base=0))


async def remove_user(c: AsyncConnection, user: str, model: str | None, tenant: str) -> int:
    """Delete all rows of a user in one model (all its feature spaces) or in all; returns how many there were."""
    rows = 0
    for table in metadata.tables.values():
        if "user" not in table.c:  # the audit trail knows a pseudonym
            continue
        where = [table.c.tenant == tenant, table.c.user == user]
        if model is not None:
            where.append(table.c.model == model)
        rows += (await c.execute(delete(table).where(*where))).rowcount
    return rows
