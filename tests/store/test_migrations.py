"""Tables of older releases: recognised, refused with the command to run, and brought up to date with all they hold."""

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import inspect

from service.app import create_app
from service.personal import schema
from service.personal.database import connect
from service.personal.records import Scope, StoreError
from service.personal.store import Store
from service.personal.upgrade import current, upgrade
from tests.conftest import running

OLD = Path(__file__).parent / "headway-0.1.0.sqlite"
"""Written by 0.1.0: ana calibrated three times and rolled back, bob calibrated once, carl was erased."""


@pytest.fixture
def old(tmp_path):
    """The URL of a copy of the old file."""
    return f"sqlite+aiosqlite:///{shutil.copy(OLD, tmp_path / 'headway.db')}"


def rows(file, *tables):
    with sqlite3.connect(file) as c:
        return {t: c.execute(f'SELECT * FROM "{t}" ORDER BY 1, 2, 3, 4, 5').fetchall() for t in tables}


async def tables(url):
    """All columns, keys and indexes, as the database describes them."""

    def described(connection):
        found = inspect(connection)
        parts = ("get_columns", "get_pk_constraint", "get_unique_constraints", "get_indexes")
        return {name: [str(getattr(found, part)(name)) for part in parts] for name in sorted(found.get_table_names())}

    database = connect(url)
    async with database.transaction() as c:
        answer = await c.run_sync(described)
    await database.close()
    return answer


@pytest.mark.filterwarnings("ignore:Did not recognize type 'xid8'")
async def test_new_tables_and_migrated_ones_are_the_same(url, request, tmp_path):
    await (await Store.open(url)).close()
    other = f"sqlite+aiosqlite:///{tmp_path}/other.db"
    if url.startswith("postgresql"):
        other = await asyncio.to_thread(request.getfixturevalue("postgres_server").database)
    assert await upgrade(other) == (None, schema.REVISION)
    assert await tables(url) == await tables(other)
    store = await Store.open(other)
    assert await store.audit_trail() == []
    await store.close()


async def test_the_revision_of_the_code_is_that_of_the_last_migration():
    from alembic.script import ScriptDirectory

    from service.personal.upgrade import configuration

    assert ScriptDirectory.from_config(configuration()).get_current_head() == schema.REVISION


async def test_an_old_store_is_refused_with_the_command_to_run_and_not_touched(old, tmp_path):
    before = OLD.read_bytes()
    with pytest.raises(StoreError, match=f"of revision 0001 and this release needs {schema.REVISION}: .*db upgrade"):
        await Store.open(old)
    assert await current(old) == "0001"
    assert (tmp_path / "headway.db").read_bytes() == before


async def test_an_upgrade_keeps_every_row(old, settings, tmp_path):
    kept = ("versions", "activations")
    before = rows(OLD, *kept)
    assert await upgrade(old) == ("0001", schema.REVISION)
    assert await upgrade(old) == (schema.REVISION, schema.REVISION)
    assert rows(tmp_path / "headway.db", *kept) == before
    (scope,) = {Scope(row[1], row[2]) for row in before["versions"]}
    store = await Store.open(old)
    try:
        assert [(u.name, u.active, u.last, u.revision) for u in await store.users(scope, "", 10)] == [
            ("ana", 2, 3, 1), ("bob", 1, 1, 1),
        ]  # fmt: skip
        assert (await store.active(scope, "ana"))[1] is not None
        assert [e.event for e in await store.audit_trail("carl")] == ["calibrated", "erased"]
    finally:
        await store.close()
    async with running(create_app(settings.model_copy(update={"store": old}))) as client:
        assert (await client.post("/v2/models/tiny/users/ana/rollback")).json()["active"] == 1
        assert (await client.delete("/v2/users/bob")).json()["rows"] == 3


async def test_an_upgrade_that_fails_changes_nothing(old, tmp_path):
    with sqlite3.connect(tmp_path / "headway.db") as c:
        c.execute("CREATE TABLE in_the_way (x)")
        c.execute("CREATE INDEX audit_pseudonym ON in_the_way (x)")
    c.close()
    with pytest.raises(StoreError, match="already exists"):
        await upgrade(old)
    assert await current(old) == "0001"
    assert "revision" not in str((await tables(old))["users"])


async def test_a_store_in_use_or_of_a_newer_release_is_refused(url):
    store = await Store.open(url)
    if url.startswith("sqlite"):
        with pytest.raises(StoreError, match="another service uses"):
            await upgrade(url)
    await store.close()
    database = connect(url)
    async with database.transaction(write=True) as c:
        await c.exec_driver_sql("UPDATE schema_revision SET version_num = '9999'")
    await database.close()
    for opening in (Store.open(url), upgrade(url)):
        with pytest.raises(StoreError, match=r"revision 9999, and this release knows up to .*use the release that"):
            await opening


def headway(*arguments):
    line = [sys.executable, "-m", "service.cli", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_command(old):
    done = headway("db", "check", "--store", old)
    assert (done.returncode, done.stdout) == (1, f"revision 0001; this release uses {schema.REVISION}\n")
    assert headway("db", "upgrade", "--store", old).stdout == f"revision 0001 -> {schema.REVISION}\n"
    assert headway("db", "upgrade", "--store", old).stdout == f"revision {schema.REVISION}, as it was\n"
    assert headway("db", "check", "--store", old).returncode == 0
    trail = headway("db", "audit", "--store", old, "--user", "carl").stdout.splitlines()
    assert ['"event":"calibrated"' in trail[0], '"event":"erased"' in trail[1], len(trail)] == [True, True, 2]
    wrong = headway("db", "upgrade", "--store", "mysql://x/y")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "not supported" in wrong.stderr


def test_a_service_starts_without_alembic():
    check = "import sys, service.app; sys.exit(bool({'alembic', 'mako', 'asyncpg'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
