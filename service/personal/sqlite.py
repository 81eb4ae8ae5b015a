"""A store in a SQLite file: a write-ahead log, durable commits, overwritten deletions, one service at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

from sqlalchemy import URL, event
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from service.personal.database import Database, json_options
from service.personal.records import Kind, StoreError

BUSY_MILLISECONDS = 10_000
"""Time that a change waits for the one before it."""
SCRUB_MILLISECONDS = 2_000
"""Time that an erasure waits for a reader (a backup) to end, before it says that the log could not be truncated."""


class SqliteDatabase(Database):
    """A file and the lock beside it."""

    kind, shared = "sqlite", False

    def __init__(self, url: URL, *, existing: bool = False) -> None:
        if not url.database or url.database == ":memory:":
            raise StoreError("the store needs a file: sqlite+aiosqlite:///headway.db")
        self.file = Path(url.database)
        folder = self.file.resolve().parent
        if not folder.is_dir():
            raise StoreError(f"the store's folder {folder} does not exist")
        if existing and not self.file.is_file():
            raise StoreError(f"there is no store {self.file.resolve()}; `headway db upgrade` makes one")
        url = url.set(drivername="sqlite+aiosqlite")
        super().__init__(create_async_engine(url, connect_args={"timeout": BUSY_MILLISECONDS / 1000}, **json_options()))
        self._lock: int | None = None

        @event.listens_for(self.engine.sync_engine, "connect")
        def configure(connection: Any, _record: Any) -> None:
            """Make every connection durable, and erasing in truth."""
            connection.isolation_level = None  # transactions are begun below, and nowhere else
            cursor = connection.cursor()
            for pragma in (
                "journal_mode=WAL",
                "synchronous=FULL",
                "secure_delete=ON",
                f"busy_timeout={BUSY_MILLISECONDS}",
            ):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

        @event.listens_for(self.engine.sync_engine, "begin")
        def begin(connection: Connection) -> None:
            """Begin as a reader or as a writer."""
            # A writer takes its lock at once: a read that turns into a write later could not wait for another writer.
            write = connection.get_execution_options().get("headway_write", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    def claim(self) -> None:
        """Lock the file against a second service, whose memory would not see this one's changes.

        The end of the process gives the lock back too.

        Raises:
            StoreError: another service has it.
        """
        file = f"{self.file}.lock"
        try:
            lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise StoreError(f"{file} cannot be written: {e.strerror}") from e
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(lock)
            raise StoreError(
                f"another service uses the store {self.file}: stop it, or give each its own with --store"
            ) from e
        self._lock = lock

    async def close(self) -> None:
        """Close all connections and give the lock back."""
        await super().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def begins(self, c: AsyncConnection, *, write: bool, single: bool) -> None:
        """Say which BEGIN it is to be."""
        await c.execution_options(headway_write=write)

    async def alone(self, c: AsyncConnection) -> None:
        """Nothing to wait for: the writer's lock is held already."""

    async def opened(self, c: AsyncConnection) -> None:
        """Nobody else changes anything."""

    async def publish(self, c: AsyncConnection, who: int, kind: Kind) -> None:
        """Nobody else is there to be told."""

    async def scrub(self) -> bool:
        """Truncate the write-ahead log, which another process that reads the file just then (a backup) prevents.

        Deleted content in the file itself was overwritten with zeros by the deletion (`secure_delete`).
        """
        async with self.engine.connect() as c:
            autocommit = await c.execution_options(isolation_level="AUTOCOMMIT")
            await autocommit.exec_driver_sql(f"PRAGMA busy_timeout={SCRUB_MILLISECONDS}")
            done = (await autocommit.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")).first()
            await autocommit.exec_driver_sql(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}")
        return done is not None and done[0] == 0
