"""The database behind the store: what differs between SQLite and PostgreSQL stands behind this one interface."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import orjson
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from service.personal.records import Kind, OnChanges, StoreError, UserChanged

EXAMPLES = "sqlite+aiosqlite:///headway.db or postgresql+asyncpg://user:password@host/database"

CLOSE_SECONDS = 10.0
"""Time that transactions have to end when the store is closed."""
STALENESS_SECONDS = 2
"""Time within which every service on a shared store follows a change, while the store answers."""


class Database(ABC):
    """An engine and its ways: how transactions begin, who may open it, and how others hear of changes.

    Attributes:
        engine: SQLAlchemy's; connections are opened when they are needed.
        shared: whether several services may use it at once.
        errors: what is raised where it does not answer.
    """

    kind: ClassVar[str]
    shared: ClassVar[bool]
    errors: tuple[type[Exception], ...] = (SQLAlchemyError, OSError)

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._open, self._idle = 0, asyncio.Event()
        self._idle.set()

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self.engine.url.render_as_string(hide_password=True)

    @property
    def staleness(self) -> float:
        """Seconds since changes by other services were last read."""
        return 0.0

    @asynccontextmanager
    async def transaction(self, *, write: bool = False, single: bool = False) -> AsyncIterator[AsyncConnection]:
        """Begin a transaction that ends with the block, as a reader of one state or as a writer.

        `single` is for a reader whose statements need not agree with each other, and so cost less.

        Raises:
            StoreError: the database does not answer.
            UserChanged: another service wrote the same meanwhile.
        """
        self._open += 1
        self._idle.clear()
        try:
            async with self.engine.connect() as c:
                await self.begins(c, write=write, single=single)
                async with c.begin():
                    yield c
        except IntegrityError as e:
            raise UserChanged from e
        except self.errors as e:
            detail = getattr(e, "orig", None) or e
            raise StoreError(f"the store does not answer: {str(detail) or type(detail).__name__}") from e
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()
        if write:
            self.hint()

    async def close(self) -> None:
        """Close all connections and let others open it, when the transactions that have begun are at their end.

        A commit goes on where its request was given up; on a connection that is gone it would wait for ever.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._idle.wait()
        await self.engine.dispose()

    @abstractmethod
    def claim(self) -> None:
        """Take it for this service, if it is for one only.

        Raises:
            StoreError: another service has it.
        """

    @abstractmethod
    async def begins(self, c: AsyncConnection, *, write: bool, single: bool) -> None:
        """Prepare a connection for a transaction."""

    @abstractmethod
    async def alone(self, c: AsyncConnection) -> None:
        """Wait until no other service looks at the tables' revision or changes it; lasts as long as the transaction."""

    @abstractmethod
    async def opened(self, c: AsyncConnection) -> None:
        """Note from where changes are to be followed, before anything is read that is kept in memory."""

    @abstractmethod
    async def publish(self, c: AsyncConnection, who: int, kind: Kind) -> None:
        """Tell other services of a change, with the transaction that makes it."""

    def hint(self) -> None:  # noqa: B027 - nobody else is there by default
        """Tell other services to look for changes now, which they would soon do anyway."""

    async def follow(self, changed: OnChanges, lost: Callable[[], None]) -> None:  # noqa: B027 - as above
        """Pass on all services' changes until cancelled; returns at once where there is one service only.

        Args:
            changed: called with changes, within `STALENESS_SECONDS` of their commit while the database answers.
            lost: called when changes may have been missed: nothing in memory can be relied on.
        """

    @abstractmethod
    async def scrub(self) -> bool | None:
        """Leave no trace of what was deleted in logs; returns whether that was done, None where it cannot be."""


def connect(url: str, *, patient: bool = False, existing: bool = False) -> Database:
    """Return the database of a store's URL.

    Args:
        url: of the store.
        patient: lets statements take as long as they will.
        existing: for those who only look: a SQLite file is not made.

    Raises:
        StoreError: the URL is of no database that this release supports, or of no SQLite file in an existing folder.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as e:
        raise StoreError(f"the store's URL cannot be read; examples: {EXAMPLES}") from e
    if parsed.drivername in ("sqlite", "sqlite+aiosqlite"):
        from service.personal.sqlite import SqliteDatabase

        return SqliteDatabase(parsed, existing=existing)
    if parsed.drivername in ("postgres", "postgresql", "postgresql+asyncpg"):
        from service.personal.postgres import PostgresDatabase  # only here: a SQLite store needs no driver of it

        return PostgresDatabase(parsed, patient=patient)
    raise StoreError(f"a store of kind {parsed.drivername!r} is not supported; use {EXAMPLES}")


def json_options() -> dict[str, Any]:
    """Return the engine's JSON codec: NaN and infinity become null, as in answers."""
    return {"json_serializer": lambda value: orjson.dumps(value).decode(), "json_deserializer": orjson.loads}
