"""Bringing a store's tables to this release. Alembic is imported here only: a service that starts does without it."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy.engine import Connection

from service.personal import revision, schema
from service.personal.database import connect
from service.personal.records import StoreError


def configuration() -> Config:
    """Return Alembic's configuration of the migrations in this package."""
    config = Config()
    config.set_main_option("script_location", "service.personal:migrations")
    config.set_main_option("path_separator", "os")
    return config


async def upgrade(url: str, target: str = schema.REVISION) -> tuple[str | None, str]:
    """Make or upgrade the tables, in one transaction; returns the revision before (None: no tables) and after.

    Raises:
        StoreError: the store cannot be opened, is in use, or is of a newer release.
    """
    database = connect(url, patient=True)
    try:
        database.claim()
        async with database.transaction(write=True) as c:
            await database.alone(c)
            before = await revision.found(c)
            if before is not None and before > target:
                revision.check(before, database.name)
                raise StoreError(f"the store is of revision {before} already; there is no way back to {target}")
            await c.run_sync(_upgrade, before, target)
        return before, target
    finally:
        await database.close()


async def current(url: str) -> str | None:
    """Return the revision of a store's tables, None where there are none.

    Raises:
        StoreError: the store cannot be opened.
    """
    database = connect(url, existing=True)
    try:
        async with database.transaction() as c:
            return await revision.found(c)
    finally:
        await database.close()


def _upgrade(connection: Connection, before: str | None, target: str) -> None:
    config = configuration()
    config.attributes["connection"] = connection
    if before == schema.FIRST_REVISION:
        command.stamp(config, before)  # of 0.1.0, which wrote none down; else it says so already
    command.upgrade(config, target)
