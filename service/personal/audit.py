"""The audit trail: who did what to whose heads, when, and what the guard said. It names users by a pseudonym only."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service.personal.acting import acting
from service.personal.records import Scope
from service.personal.schema import audit


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the trail; `at` in Unix seconds."""

    at: float
    by: str
    model: str
    pseudonym: str
    event: str
    verdict: str | None
    details: dict[str, Any]


def pseudonym(salt: str, user: str) -> str:
    """Return the name of a user in the trail."""
    return hashlib.sha256(f"{salt}:{user}".encode()).hexdigest()[:24]


def who(salt: str, scope: Scope, user: str) -> int:
    """Return the name of a user's heads in one scope where services tell each other of changes: 64 bits, keyed."""
    said = "\0".join((scope.tenant, scope.model, scope.feature_space, user)).encode()
    digest = hashlib.blake2b(said, digest_size=8, key=salt.encode()).digest()
    return int.from_bytes(digest, "big", signed=True)


async def write(
    c: AsyncConnection, scope: Scope, name: str, event: str, details: dict[str, Any], verdict: str | None = None
) -> None:
    """Add a line with the transaction that it is about; `name` is the pseudonym."""
    await c.execute(
        insert(audit).values(
            at=time.time(),
            tenant=scope.tenant,
            model=scope.model,
            pseudonym=name,
            event=event,
            details=details,
            by=acting.get(),
            verdict=verdict,
        )
    )


async def read(c: AsyncConnection, name: str | None, limit: int) -> list[Event]:
    """Return the newest lines of a pseudonym, or of all, oldest first."""
    wanted = select(audit).order_by(audit.c.id.desc()).limit(limit)
    if name is not None:
        wanted = wanted.where(audit.c.pseudonym == name)
    rows = (await c.execute(wanted)).mappings().all()
    names = ("at", "by", "model", "pseudonym", "event", "verdict", "details")
    return [Event(*(row[n] for n in names)) for row in reversed(rows)]
