"""Of which revision the store's tables are, and how a new store gets them; older ones are for `headway db upgrade`."""

from __future__ import annotations

import secrets

from sqlalchemy import Column, MetaData, PrimaryKeyConstraint, String, Table, delete, insert, inspect, select
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from service.personal import data_tables as data_tables  # so that they are made with the others
from service.personal import operation_tables as operation_tables
from service.personal import schema
from service.personal.records import StoreError

VERSION_TABLE = "schema_revision"
"""Where the revision stands: Alembic's table under a name of this store's own."""

LEGACY_MARK = "2"
"""`schema` in the table `meta` from revision 0002 on: 0.1.0 reads it and refuses the store."""

_revision = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32)),
    PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
)


async def found(c: AsyncConnection) -> str | None:
    """Return the revision of the store's tables; None where there are none.

    Raises:
        StoreError: they are of no Headway that is known.
    """
    tables = set(await c.run_sync(lambda connection: inspect(connection).get_table_names()))
    if VERSION_TABLE in tables:
        return await c.scalar(select(_revision.c.version_num))
    if "meta" not in tables:
        return None
    number = await c.scalar(select(schema.meta.c.value).where(schema.meta.c.key == "schema"))
    if number != "1":
        raise StoreError(f"the store is of schema {number!r}, which this Headway does not know")
    return schema.FIRST_REVISION  # of 0.1.0, which wrote no revision


async def made_or_checked(c: AsyncConnection, name: str, *, shared: bool) -> str:
    """Make the tables where there are none, or see that they are of this release; returns the store's salt.

    Raises:
        StoreError: they are of another revision.
    """
    revision = await found(c)
    if revision is None:
        await c.run_sync(_make, shared)
    else:
        check(revision, name)
    salt = await c.scalar(select(schema.meta.c.value).where(schema.meta.c.key == "salt"))
    if salt is None:
        salt = secrets.token_hex(16)
        await c.execute(insert(schema.meta).values(key="salt", value=salt))
    return str(salt)


def check(revision: str, name: str) -> None:
    """Refuse tables of another revision.

    Raises:
        StoreError: they are of another revision; the message says what to do.
    """
    if revision < schema.REVISION:
        raise StoreError(
            f"the store {name} is of revision {revision} and this release needs {schema.REVISION}: "
            "stop what uses it, keep a copy, and run `headway db upgrade` with the same --store"
        )
    if revision > schema.REVISION:
        raise StoreError(
            f"the store {name} is of revision {revision}, and this release knows up to {schema.REVISION}: "
            "use the release that upgraded it, or the copy from before"
        )


def _make(connection: Connection, shared: bool) -> None:
    schema.metadata.create_all(connection)
    if shared:
        schema.feed.create_all(connection)
    _revision.create(connection)
    connection.execute(insert(schema.meta).values(key="schema", value=LEGACY_MARK))
    stamp(connection, schema.REVISION)


def stamp(connection: Connection, revision: str) -> None:
    """Write down of which revision the tables are."""
    connection.execute(delete(_revision))
    connection.execute(insert(_revision).values(version_num=revision))
