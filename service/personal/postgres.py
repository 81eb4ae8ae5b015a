"""A store in PostgreSQL (13 or newer), which several services share."""

from __future__ import annotations

import logging
from collections.abc import Callable

import asyncpg
from sqlalchemy import URL, insert, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from service.personal.database import Database, json_options
from service.personal.feed import Feed
from service.personal.records import Kind, OnChanges, StoreError
from service.personal.schema import changes

log = logging.getLogger("headway")

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 10
"""Also how long a transaction may stand idle and hold its locks; all together far less than the feed's retention."""
_LOCK = 0x68656164776179
"""Of all advisory locks, the one for looking at the tables' revision: "headway"."""


class PostgresDatabase(Database):
    """A pool of connections, and the feed by which services hear of each other's changes."""

    kind, shared = "postgresql", True
    errors = (*Database.errors, asyncpg.PostgresError, asyncpg.InterfaceError)

    def __init__(self, url: URL, *, patient: bool) -> None:
        if not url.database:
            raise StoreError("the store's URL names no database: postgresql+asyncpg://user:password@host/database")
        seconds = None if patient else STATEMENT_SECONDS
        milliseconds = str(1000 * (seconds or 0))  # 0: no limit
        settings = {
            "application_name": "headway",
            "statement_timeout": milliseconds,
            "idle_in_transaction_session_timeout": milliseconds,
        }
        super().__init__(
            create_async_engine(
                url.set(drivername="postgresql+asyncpg"),
                isolation_level="AUTOCOMMIT",
                pool_pre_ping=True,  # after a restart of the database the first request finds a connection that works
                pool_timeout=CONNECT_SECONDS,
                connect_args={
                    "timeout": CONNECT_SECONDS,
                    "command_timeout": seconds and seconds + 1,
                    "server_settings": settings,
                },
                **json_options(),
            )
        )
        self._feed = Feed(self.engine)

    def claim(self) -> None:
        """Nothing to take: it is shared."""

    async def begins(self, c: AsyncConnection, *, write: bool, single: bool) -> None:
        """Let a writer lock the rows it goes by, and a reader see one state; single statements need no transaction."""
        if write:
            await c.execution_options(isolation_level="READ COMMITTED")
        elif not single:
            await c.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    async def alone(self, c: AsyncConnection) -> None:
        """Take an advisory lock."""
        await c.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})

    async def opened(self, c: AsyncConnection) -> None:
        """Begin the feed at what is visible now.

        Raises:
            StoreError: the server is too old.
        """
        version = int(await c.scalar(text("SELECT current_setting('server_version_num')::int")))
        if version < 130000:
            raise StoreError(f"the store's PostgreSQL is of version {version // 10000}; 13 or newer is needed")
        if await c.scalar(text("SELECT current_setting('synchronous_commit')")) == "off":
            log.warning("the store's PostgreSQL has synchronous_commit=off: its crash can lose answered calibrations")
        await self._feed.begin(c)

    async def publish(self, c: AsyncConnection, who: int, kind: Kind) -> None:
        """Write the change into the feed."""
        await c.execute(insert(changes).values(who=who, kind=int(kind)))

    @property
    def staleness(self) -> float:
        """Seconds since changes by other services were last read."""
        return self._feed.staleness

    def hint(self) -> None:
        """Let the feed notify its other readers."""
        self._feed.hint()

    async def follow(self, changed: OnChanges, lost: Callable[[], None]) -> None:
        """Read the feed until cancelled."""
        await self._feed.follow(changed, lost)

    async def scrub(self) -> None:
        """Its log and backups are the server's to keep and to let go (docs/deployment.md)."""
