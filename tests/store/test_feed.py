"""How services on one PostgreSQL hear of changes: every one that is committed, whenever it becomes visible."""

import asyncio
import contextlib

import asyncpg
import pytest

from service.personal import feed
from service.personal.records import Kind, Scope
from service.personal.store import Store
from tests.postgres import postgres
from tests.store.test_contract import version

SCOPE = Scope("tiny", "space")


class Follower:
    """A store that is followed, and what was passed on."""

    def __init__(self, store):
        self.store, self.heard, self.losses = store, [], 0

    def lost(self):
        self.losses += 1

    async def hears(self, *expected, again=False):
        """Wait for changes of users, in any order; with `again` also of some that were heard before."""
        wanted = sorted((self.store.who(SCOPE, user), kind) for user, kind in expected)
        async with asyncio.timeout(20.0):
            while sorted(self.heard) != wanted and not (again and set(wanted) <= set(self.heard)):
                await asyncio.sleep(0.01)
        self.heard.clear()


@contextlib.asynccontextmanager
async def following(url):
    store = await Store.open(url)
    follower = Follower(store)
    task = asyncio.create_task(store.follow(follower.heard.extend, follower.lost))
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()


@pytest.fixture
def url(postgres_server):
    return postgres_server.database()


async def test_all_services_hear_of_all_changes(url):
    async with following(url) as a, following(url) as b:
        await a.store.commit(SCOPE, "ana", version(1))
        await b.hears(("ana", Kind.MOVED))
        await a.hears(("ana", Kind.MOVED))
        await b.store.commit(SCOPE, "ana", version(2, active=False))  # moves nothing
        await b.store.commit(SCOPE, "bob", version(1))
        await b.store.activate(SCOPE, "ana", 2)
        await b.store.delete_version(SCOPE, "ana", 1)
        await b.store.rollback(SCOPE, "ana")
        await b.store.erase("ana")
        moved, dropped, erased = ("ana", Kind.MOVED), ("ana", Kind.DROPPED), ("ana", Kind.ERASED)
        for each in (a, b):
            await each.hears(("bob", Kind.MOVED), moved, dropped, moved, erased)
            assert each.losses == 0


async def test_without_notifications_changes_are_heard_too(url, monkeypatch):
    monkeypatch.setattr(feed.Feed, "hint", lambda self: None)
    async with following(url) as a, following(url) as b:
        await a.store.commit(SCOPE, "ana", version(1))
        await b.hears(("ana", Kind.MOVED))
        assert (a.losses, b.losses) == (0, 0)


async def test_a_commit_that_becomes_visible_late_is_heard_and_holds_nobody_back(url):
    async with following(url) as a, following(url) as b:
        slow = await asyncpg.connect(url)
        transaction = slow.transaction()
        await transaction.start()
        await slow.execute("INSERT INTO changes (who, kind) VALUES ($1, 1)", a.store.who(SCOPE, "late"))
        for n in range(3):
            await a.store.commit(SCOPE, f"u{n}", version(1))
            await b.hears((f"u{n}", Kind.MOVED))
        await asyncio.sleep(3 * feed.POLL_SECONDS)
        assert b.heard == []
        await transaction.commit()
        await b.hears(("late", Kind.MOVED))
        await asyncio.sleep(3 * feed.POLL_SECONDS)
        assert b.heard == []  # once
        await slow.close()


async def test_many_at_once_are_heard_once_each(url):
    async with following(url) as a, following(url) as b:
        users = [f"u{n}" for n in range(60)]
        await asyncio.gather(
            *(each.store.commit(SCOPE, u, version(1)) for u, each in zip(users, [a, b] * 30, strict=True))
        )
        expected = [(u, Kind.MOVED) for u in users]
        await asyncio.gather(a.hears(*expected), b.hears(*expected))
        await asyncio.sleep(3 * feed.POLL_SECONDS)
        assert (a.heard, b.heard) == ([], [])  # once


async def test_old_rows_are_deleted_and_hold_no_name(url, monkeypatch):
    monkeypatch.setattr(feed, "PRUNE_SECONDS", 0.0)
    monkeypatch.setattr(feed, "RETENTION_SECONDS", 1.0)
    async with following(url) as a:
        await a.store.commit(SCOPE, "patient-4711", version(1))
        await a.hears(("patient-4711", Kind.MOVED))
        connection = await asyncpg.connect(url)
        assert "4711" not in str(await connection.fetch("SELECT * FROM changes"))
        async with asyncio.timeout(20):
            while await connection.fetchval("SELECT count(*) FROM changes"):
                await asyncio.sleep(0.05)
        await connection.close()
        assert a.losses == 0


CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid != pg_backend_pid()"
)


async def test_numbers_that_are_given_out_again_after_a_crash_hide_nothing(url):
    async with following(url) as a:
        other, connection = await Store.open(url), await asyncpg.connect(url)
        # What a reader knows that saw numbers which the crash has made free again.
        a.store._database._feed._snapshot = "1000000:1000000:"
        await connection.execute(CUT)
        await other.commit(SCOPE, "ana", version(1))
        await a.hears(("ana", Kind.MOVED))
        await connection.close()
        await other.close()


async def test_a_cut_connection_is_replaced_and_what_was_missed_is_heard(url):
    async with following(url) as a:
        other = await Store.open(url)
        connection = await asyncpg.connect(url)
        for n in range(3):
            await connection.execute(CUT)
            await other.commit(SCOPE, f"u{n}", version(1))
            await a.hears((f"u{n}", Kind.MOVED), again=True)
        assert a.losses == 0
        await connection.close()
        await other.close()


async def test_a_crash_of_the_server_loses_nothing_and_a_long_silence_drops_everything(monkeypatch):
    server = contextlib.ExitStack()
    database = await asyncio.to_thread(server.enter_context, postgres())
    try:
        url = await asyncio.to_thread(database.database)
        async with following(url) as a, following(url) as b:
            await a.store.commit(SCOPE, "ana", version(1))
            await asyncio.to_thread(database.kill)
            await asyncio.sleep(1)
            await asyncio.to_thread(database.start)
            await b.hears(("ana", Kind.MOVED), again=True)
            assert await a.store.commit(SCOPE, "ana", version(2)) == 2
            await b.hears(("ana", Kind.MOVED), again=True)
            assert a.losses == b.losses == 0
            monkeypatch.setattr(feed, "RETENTION_SECONDS", 1.0)
            await asyncio.to_thread(database.kill)
            await asyncio.sleep(1.5)
            await asyncio.to_thread(database.start)
            async with asyncio.timeout(20):
                while not (a.losses and b.losses):
                    await asyncio.sleep(0.05)
            monkeypatch.setattr(feed, "RETENTION_SECONDS", 600)  # a busy machine may take its time from here on
            b.heard.clear()
            await a.store.commit(SCOPE, "bob", version(1))
            async with asyncio.timeout(20):
                while not b.heard:
                    await asyncio.sleep(0.05)
    finally:
        await asyncio.to_thread(server.close)


async def test_roles_without_privileges_can_follow(postgres_server):
    url = await asyncio.to_thread(postgres_server.database)
    connection = await asyncpg.connect(url)
    await connection.execute(
        "DROP ROLE IF EXISTS plain; CREATE ROLE plain LOGIN; GRANT CREATE ON SCHEMA public TO plain"
    )
    await connection.close()
    async with following(url.replace("postgres@", "plain@")) as a:
        await a.store.commit(SCOPE, "ana", version(1))
        await a.hears(("ana", Kind.MOVED))
