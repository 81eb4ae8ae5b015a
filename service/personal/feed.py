"""How services on one PostgreSQL hear of each other's changes: a table that is polled, and a notification to poll now.

A change is a row that is written with the transaction that makes it, under that transaction's number. A reader keeps
the *snapshot* of its last look, and asks for rows whose transactions were not visible in it. So a commit that becomes
visible late is found whenever it does, and no running transaction of anybody's holds others' changes back; a counter
would skip the former, and waiting for a horizon the latter.

After a crash the server may give out numbers again that transactions had whose commits did not reach the disk. So who
connects anew also reads what was written since shortly before the last look; to hear of a change twice does no harm.

The notification is sent apart from the change: with it, commits would wait for one another in PostgreSQL.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Callable
from typing import Any

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from service.personal.records import Kind, OnChanges

log = logging.getLogger("headway")

POLL_SECONDS = 0.5
"""Between two looks without a notification: a quarter of the staleness that is promised."""
PAUSE_SECONDS = 0.01
"""Between two looks at least, so that many changes are read together."""
RETRY_SECONDS = 0.5
OVERLAP = datetime.timedelta(seconds=60)
"""Time before the last look from which a new connection reads changes again; no transaction here takes longer."""
RETENTION_SECONDS = 600
"""Age at which rows are deleted."""
PRUNE_SECONDS = 30.0
CHANNEL = "headway_changes"

# One statement sees one snapshot: what it returns is what it has read.
LOOK = """
SELECT s.now::text AS now, clock_timestamp() AS at, c.who, c.kind
FROM (SELECT pg_current_snapshot() AS now, $1::text::pg_snapshot AS before) s
LEFT JOIN changes c ON c.transaction >= pg_snapshot_xmin($1::text::pg_snapshot)
AND NOT pg_visible_in_snapshot(c.transaction, s.before)
"""
AGAIN = "SELECT who, kind FROM changes WHERE at >= $1"
BEGIN = "SELECT pg_current_snapshot()::text AS now, clock_timestamp() AS at"
IDENTITY = """
SELECT (SELECT system_identifier FROM pg_control_system()), (SELECT timeline_id FROM pg_control_checkpoint()),
(SELECT oid FROM pg_database WHERE datname = current_database())
"""
PRUNE = "DELETE FROM changes WHERE at < clock_timestamp() - make_interval(secs => $1)"


class Feed:
    """A reader of the changes, on a connection of its own."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._snapshot, self._at = "", datetime.datetime.min.replace(tzinfo=datetime.UTC)
        self._identity: tuple[Any, ...] = ()
        self._looked = self._pruned = 0.0
        self._wake = asyncio.Event()
        self._hinted = self._followed = False

    async def begin(self, c: AsyncConnection) -> None:
        """Take what is visible now as read."""
        self._snapshot, self._at = (await c.execute(text(BEGIN))).one()
        self._identity = tuple((await c.execute(text(IDENTITY))).one())
        self._looked = time.monotonic()

    @property
    def staleness(self) -> float:
        """Seconds since the last look."""
        return time.monotonic() - self._looked

    def hint(self) -> None:
        """Notify the other readers soon."""
        self._hinted = True
        self._wake.set()

    async def follow(self, changed: OnChanges, lost: Callable[[], None]) -> None:
        """Pass on changes until cancelled; a connection that fails is replaced."""
        down = False
        while True:
            try:
                async with self._engine.connect() as c:
                    await self._connected(c, changed, lost)
                    if down:
                        log.info("the store's changes are followed again")
                    down = False
                    await self._read_on(c, changed)
            except (SQLAlchemyError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as e:
                if not down:
                    log.error("changes in the store cannot be followed: %s", getattr(e, "orig", None) or e)
                down = True
            except Exception:  # whatever it is: a service that follows no more would serve old heads for ever
                log.exception("changes in the store could not be passed on")
            await asyncio.sleep(RETRY_SECONDS)

    async def _connected(self, c: AsyncConnection, changed: OnChanges, lost: Callable[[], None]) -> None:
        """Find out whether the last snapshot still means something here, and read again what its numbers may hide.

        Not so after rows were deleted that were never seen, on another server, or on one that took the place of a
        failed one and may lack its last commits. A promotion in between two looks is seen by its timeline.
        """
        driver = (await c.get_raw_connection()).driver_connection
        assert driver is not None
        identity = tuple(await driver.fetchrow(IDENTITY))
        if identity != self._identity or time.monotonic() - self._looked > RETENTION_SECONDS / 2:
            log.warning("changes in the store may have been missed: heads in memory are dropped")
            self._snapshot, self._at = await driver.fetchrow(BEGIN)
            self._identity, self._looked = identity, time.monotonic()
            lost()
            return
        again = await driver.fetch(AGAIN, self._at - OVERLAP) if self._followed else []
        self._followed = True
        if again:
            changed([(row["who"], Kind(row["kind"])) for row in again])

    async def _read_on(self, c: AsyncConnection, changed: OnChanges) -> None:
        driver: Any = (await c.get_raw_connection()).driver_connection
        try:
            await driver.add_listener(CHANNEL, lambda *_: self._wake.set())
            while True:
                self._wake.clear()
                if self._hinted:
                    self._hinted = False
                    await driver.execute(f"NOTIFY {CHANNEL}")
                begin = time.monotonic()
                rows = await driver.fetch(LOOK, self._snapshot)
                found = [(row["who"], Kind(row["kind"])) for row in rows if row["who"] is not None]
                if found:
                    changed(found)
                self._snapshot, self._at, self._looked = rows[0]["now"], rows[0]["at"], begin
                if begin - self._pruned > PRUNE_SECONDS:
                    self._pruned = begin
                    await driver.execute(PRUNE, RETENTION_SECONDS)
                await asyncio.sleep(PAUSE_SECONDS)
                await self._woken()
        finally:
            await c.invalidate()  # what listens does not go back into the pool

    async def _woken(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            return
