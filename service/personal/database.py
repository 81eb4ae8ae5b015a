"""The database behind the store: SQLite with a write-ahead log, durable commits and overwritten deletions."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event, make_url
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from service.personal.records import StoreError


def connect(url: str) -> AsyncEngine:
    """Return an engine for the store's URL; connections are opened when they are needed.

    Raises:
        StoreError: the URL is not of a SQLite file in an existing folder.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as e:
        raise StoreError(f"the store's URL cannot be read: {url!r}; an example: sqlite+aiosqlite:///headway.db") from e
    if parsed.drivername == "sqlite":
        parsed = parsed.set(drivername="sqlite+aiosqlite")
    if parsed.drivername != "sqlite+aiosqlite":
        raise StoreError(
            f"a store of kind {parsed.drivername!r} is not supported by this release; use sqlite+aiosqlite:///FILE"
        )
    if not parsed.database or parsed.database == ":memory:":
        raise StoreError("the store needs a file: sqlite+aiosqlite:///headway.db")
    folder = Path(parsed.database).resolve().parent
    if not folder.is_dir():
        raise StoreError(f"the store's folder {folder} does not exist")
    engine = create_async_engine(parsed, connect_args={"timeout": 10})

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        """Make every connection durable, and erasing in truth."""
        connection.isolation_level = None  # transactions are begun below, and nowhere else
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "busy_timeout=10000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        """Begin as a reader or as a writer."""
        # A writer takes its lock at once: a read that turns into a write later could not wait for another writer.
        write = connection.get_execution_options().get("headway_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def claim(engine: AsyncEngine) -> int:
    """Lock the database's file against a second service, whose caches would not see this one's changes.

    Returns:
        The descriptor that holds the lock; closing it, or the end of the process, gives it back.

    Raises:
        StoreError: another service has it.
    """
    file = f"{engine.url.database}.lock"
    try:
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StoreError(f"{file} cannot be written: {e.strerror}") from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(lock)
        raise StoreError(f"another service uses the store {engine.url.database}; give each its own with --store") from e
    return lock


@asynccontextmanager
async def transaction(engine: AsyncEngine, *, write: bool = False) -> AsyncIterator[AsyncConnection]:
    """Begin a transaction that ends with the block; `write` takes the writer's lock at once.

    Raises:
        StoreError: the database does not answer.
    """
    try:
        async with engine.connect() as c:
            await c.execution_options(headway_write=write)
            async with c.begin():
                yield c
    except (SQLAlchemyError, OSError) as e:
        detail = getattr(e, "orig", None) or e
        raise StoreError(f"the store does not answer: {detail}") from e
