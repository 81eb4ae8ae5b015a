"""Operations on both databases: one at a time, each user once, taken over from who is gone."""

import asyncio

import numpy as np
import pytest

from models.heads.head import Head
from service.personal import operations as module
from service.personal.operations import NotOurs, OperationRunning, Operations
from service.personal.records import NewVersion, Scope, UserChanged
from service.personal.store import Store

OLD, NEW = Scope("tiny", "fs-old"), Scope("tiny", "fs-new")


@pytest.fixture
async def store(url):
    opened = await Store.open(url)
    yield opened
    await opened.close()


def version(active=True):
    return NewVersion("c", Head(np.eye(2), np.zeros(2)), None, {"outcome": "promoted"}, active, active)


async def users_of(store, *names):
    for name in names:
        await store.commit(OLD, name, version())


async def names(operations, operation, after="", limit=100):
    return [user for user, _ in await operations.batch(operation, after, limit)]


async def test_users_are_counted_once_and_listed_by_name(store):
    await users_of(store, "b", "a", "c", "Z", "é")
    await store.commit(OLD, "enrolling", version(active=False))
    await store.commit(NEW, "c", version())  # has moved by themselves
    operations = Operations(store)
    made = await operations.create(NEW, 2, ["fs-old", "fs-older"], False)
    assert (made.total, made.done, made.state) == (4, 0, "running")
    claimed = await operations.claim()
    assert claimed.id == made.id
    assert await operations.batch(claimed, "", 2) == [("Z", ["fs-old"]), ("a", ["fs-old"])]
    assert await names(operations, claimed, after="a") == ["b", "é"]
    await operations.note(claimed, "a", "needs_enrolment", "why")
    with pytest.raises(UserChanged):  # the second count is undone
        await operations.note(claimed, "a", "failed", "")
    found = await operations.get(made.id)
    assert (found.needs_enrolment, found.failed, found.done) == (1, 0, 1)
    assert await operations.users(made.id, "needs_enrolment", "", 10) == [("a", "why")]
    assert await names(operations, claimed) == ["Z", "b", "é"]


async def test_a_move_and_its_count_are_one_transaction(store):
    await users_of(store, "a", "b")
    operations = Operations(store)
    await operations.create(NEW, 2, ["fs-old"], False)
    claimed = await operations.claim()

    async def counted(c, number):
        await operations.count(c, claimed, "a", "moved", "bridge")

    await store.commit(NEW, "a", NewVersion("c", Head(np.eye(2), np.zeros(2)), None, {}, True, True, also=counted))
    assert await names(operations, claimed) == ["b"]
    await operations.cancel(claimed.id)
    late = NewVersion("d", Head(np.eye(2), np.zeros(2)), None, {}, True, True, also=counted)
    with pytest.raises(NotOurs):
        await store.commit(NEW, "b", late)
    assert await store.user(NEW, "b") is None
    assert (await operations.get(claimed.id)).moved == 1


async def test_one_operation_of_a_model_at_a_time(store):
    await users_of(store, "a")
    here, there = Operations(store), Operations(store)
    begun = await asyncio.gather(*(o.create(NEW, 2, ["fs-old"], False) for o in (here, there)), return_exceptions=True)
    refused = [b for b in begun if isinstance(b, OperationRunning)]
    (made,) = [b for b in begun if not isinstance(b, Exception)]
    assert [str(r) for r in refused] == [made.id]
    other = await here.create(Scope("another", "fs-new"), 1, ["fs-old"], False)
    assert {o.id for o in await here.recent()} == {made.id, other.id}
    claimed = await here.claim()
    await here.finish(claimed, "done")
    assert (await here.get(claimed.id)).state == "done"
    assert await here.create(claimed.scope, 2, ["fs-old"], True)


async def test_who_goes_silent_is_replaced(store, monkeypatch):
    await users_of(store, "a", "b")
    here, there = Operations(store), Operations(store)
    await here.create(NEW, 2, ["fs-old"], False)
    mine = await here.claim()
    await here.note(mine, "a", "failed", "")
    if store.shared:
        assert await there.claim() is None  # as long as there are signs of life
        monkeypatch.setattr(module, "LEASE_SECONDS", -1.0)
        await here.say(mine, "still here")
    theirs = await there.claim()
    assert (theirs.id, theirs.failed) == (mine.id, 1)
    assert await names(there, theirs) == ["b"]
    for late in (here.note(mine, "b", "failed", ""), here.say(mine, "hello")):
        with pytest.raises(NotOurs):
            await late
    await here.finish(mine, "done")
    await here.release(mine)
    assert (await here.get(mine.id)).state == "running"
    await there.release(theirs)
    assert (await here.claim()).id == mine.id


async def test_erased_users_are_in_no_operation(store):
    await users_of(store, "a", "b")
    operations = Operations(store)
    await operations.create(NEW, 2, ["fs-old"], False)
    claimed = await operations.claim()
    await operations.note(claimed, "a", "failed", "why")
    await store.erase("a")
    assert await operations.users(claimed.id, "failed", "", 10) == []
    assert await names(operations, claimed) == ["b"]
