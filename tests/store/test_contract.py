"""What a store promises, on each database."""

import asyncio
import contextlib
from itertools import count

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from models.heads.head import Head
from service.personal.acting import acting
from service.personal.records import NewVersion, NoSuchVersion, Scope, StoreError, UserChanged, VersionIsActive
from service.personal.store import Store

SCOPE, OTHER = Scope("tiny", "space"), Scope("tiny", "another space")


def head(number):
    return Head(np.full((3, 4), number, np.float64), np.arange(3.0) + number)


def version(number, *, active=True, base=True, statistics=b"statistics", **fields):
    report = {"outcome": "promoted", "method": "map", "metrics": {}, "classes": {}}
    return NewVersion(f"id-{number}", head(number), statistics, report, active, base, **fields)


@contextlib.asynccontextmanager
async def opened(url):
    store = await Store.open(url)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(url):
    async with opened(url) as store:
        yield store


async def test_a_new_user_has_nothing(store):
    assert await store.active(SCOPE, "ana") == (0, None)
    assert await store.user(SCOPE, "ana") is None
    assert await store.revision(SCOPE, "ana") == 0
    assert await store.users(SCOPE, "", 10) == await store.versions(SCOPE, "ana") == []
    assert await store.statistics(SCOPE, "ana") == (None, None)
    assert await store.head(SCOPE, "ana", 1) is None
    assert await store.version(SCOPE, "ana", 2**62) is None
    for change in (store.activate(SCOPE, "ana", 1), store.activate(SCOPE, "ana", 0), store.rollback(SCOPE, "ana")):
        with pytest.raises(NoSuchVersion):
            await change
    with pytest.raises(NoSuchVersion):
        await store.delete_version(SCOPE, "ana", 1)
    assert (await store.erase("ana")).rows == 0


async def test_versions_pointers_and_statistics(store):
    assert [await store.commit(SCOPE, "ana", version(n)) for n in (1, 2)] == [1, 2]
    assert await store.commit(SCOPE, "ana", version(3, active=False, base=False)) == 3
    number, found = await store.active(SCOPE, "ana")
    assert number == 2
    np.testing.assert_array_equal(found.weight, head(2).weight)
    assert [v.version for v in await store.versions(SCOPE, "ana")] == [1, 2, 3]
    assert (await store.version(SCOPE, "ana", 3)).report["version"] == 3
    assert (await store.statistics(SCOPE, "ana"))[0] == b"statistics"
    assert (await store.rollback(SCOPE, "ana")).active == 1
    assert await store.statistics(SCOPE, "ana") == (None, await store.user(SCOPE, "ana"))  # dropped with version 3
    assert (await store.activate(SCOPE, "ana", 3)).active == 3
    with pytest.raises(VersionIsActive):
        await store.delete_version(SCOPE, "ana", 3)
    await store.delete_version(SCOPE, "ana", 2)
    assert await store.head(SCOPE, "ana", 2) is None
    assert await store.commit(SCOPE, "ana", version(4)) == 4  # numbers are not used again
    assert await store.active(OTHER, "ana") == (0, None)


async def test_many_heads_in_one_question_and_users_in_order_of_code_points(store):
    names = ["a", "Z", "ä", "zz", "👋", "A b", "_", "'; drop table users"]
    for i, name in enumerate(names):
        await store.commit(SCOPE, name, version(i))
    found = await store.active_of(SCOPE, [*names, "nobody", *(f"n{i}" for i in range(600))])
    assert {name: h.weight[0, 0] for name, (_, h) in found.items()} == {name: i for i, name in enumerate(names)}
    listed = [u.name for u in await store.users(SCOPE, "", 3)]
    listed += [u.name for u in await store.users(SCOPE, listed[-1], 100)]
    assert listed == sorted(names)


async def test_a_commit_over_what_somebody_did_meanwhile_is_refused(store):
    await store.commit(SCOPE, "ana", version(1, revision=0))
    with pytest.raises(UserChanged):
        await store.commit(SCOPE, "ana", version(2, revision=0))
    seen = {await store.revision(SCOPE, "ana")}
    changes = [
        lambda: store.commit(SCOPE, "ana", version(2)),
        lambda: store.rollback(SCOPE, "ana"),
        lambda: store.activate(SCOPE, "ana", 2),
        lambda: store.delete_version(SCOPE, "ana", 1),
        lambda: store.erase("ana"),
        lambda: store.commit(SCOPE, "ana", version(1)),
    ]
    for change in changes:
        await change()
        revision = await store.revision(SCOPE, "ana")
        assert revision not in seen
        for old in seen:
            with pytest.raises(UserChanged):
                await store.commit(SCOPE, "ana", version(9, revision=old))
        seen.add(revision)
    assert [v.version for v in await store.versions(SCOPE, "ana")] == [1]


async def test_of_many_commits_at_once_one_wins_or_all_are_whole(store):
    async def commit(n, revision):
        try:
            return await store.commit(SCOPE, "ana", version(n, revision=revision))
        except UserChanged:
            return None

    made = await asyncio.gather(*(commit(n, 0) for n in range(8)))
    assert sorted(n for n in made if n) == [1]
    made = await asyncio.gather(*(commit(n, None) for n in range(8)))
    assert sorted(made) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert (await store.active(SCOPE, "ana"))[0] == 9
    for listed in await store.versions(SCOPE, "ana"):
        assert await store.head(SCOPE, "ana", listed.version) is not None


async def test_an_erasure_and_commits_at_once_leave_all_or_nothing(store):
    for _ in range(10):
        await store.commit(SCOPE, "ana", version(1))
        revision = await store.revision(SCOPE, "ana")

        async def commit(revision=revision):
            with contextlib.suppress(UserChanged):
                await store.commit(SCOPE, "ana", version(2, revision=revision))

        await asyncio.gather(commit(), store.erase("ana"), commit())
        assert await store.user(SCOPE, "ana") is None
        assert await store.versions(SCOPE, "ana") == []


async def test_an_idempotency_key_makes_one_version(store):
    keyed = {"idempotency_key": "k", "request_digest": "d"}
    await store.commit(SCOPE, "ana", version(1, **keyed))
    with pytest.raises(UserChanged):
        await store.commit(SCOPE, "ana", version(2, **keyed))
    assert (await store.by_idempotency_key(SCOPE, "ana", "k")).version == 1
    assert (await store.user(SCOPE, "ana")).last == 1
    await store.commit(SCOPE, "bob", version(1, **keyed))


async def test_numbers_that_json_does_not_have_become_null(store):
    new = version(1)
    new.report["metrics"] = {"shared": float("nan"), "previous": float("inf")}
    await store.commit(SCOPE, "ana", new)
    assert (await store.version(SCOPE, "ana", 1)).report["metrics"] == {"shared": None, "previous": None}


async def test_the_audit_trail_says_who_when_what_and_the_verdict(store):
    await store.commit(SCOPE, "patient-4711", version(1))
    token = acting.set("clinic")
    await store.rollback(SCOPE, "patient-4711")
    acting.reset(token)
    await store.commit(SCOPE, "bob", version(1))
    await store.erase("patient-4711")
    trail = await store.audit_trail("patient-4711")
    assert [(e.by, e.event, e.verdict) for e in trail] == [
        ("anonymous", "calibrated", "promoted"), ("clinic", "rolled back", None), ("anonymous", "erased", None),
    ]  # fmt: skip
    assert {e.pseudonym for e in trail} == {store.pseudonym("patient-4711")}
    assert trail[0].at <= trail[1].at <= trail[2].at
    assert "patient" not in repr(await store.audit_trail())
    assert len(await store.audit_trail()) == 4
    assert len(await store.audit_trail(limit=2)) == 2


async def test_a_store_is_as_it_was_when_it_is_opened_again(url):
    async with opened(url) as store:
        await store.commit(SCOPE, "ana", version(1))
        pseudonym, who = store.pseudonym("ana"), store.who(SCOPE, "ana")
    async with opened(url) as store:
        assert (await store.active(SCOPE, "ana"))[0] == 1
        assert (store.pseudonym("ana"), store.who(SCOPE, "ana")) == (pseudonym, who)


@pytest.mark.parametrize("url", ["mysql://db/x", "postgresql://host", "sqlite:///:memory:", "nonsense"])
async def test_other_urls_are_refused_with_a_sentence(url):
    with pytest.raises(StoreError, match="store"):
        await Store.open(url)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.booleans(), st.booleans()),
        st.tuples(st.just("activate"), st.integers(0, 4)),
        st.tuples(st.just("delete"), st.integers(1, 4)),
        st.tuples(st.sampled_from(["rollback", "erase"])),
    ),
    max_size=12,
)
users = (f"user-{i}" for i in count())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_any_history_leaves_what_it_should(url, operations):
    """Against a model in a few lines: versions, the pointer, and what was active before."""

    async def play():
        async with opened(url) as store:
            user, held, active, last, past = next(users), set(), 0, 0, []
            for name, *arguments in operations:
                with contextlib.suppress(NoSuchVersion, VersionIsActive):
                    if name == "commit":
                        last = await store.commit(SCOPE, user, version(1, active=arguments[0], base=arguments[1]))
                        held.add(last)
                        if arguments[0]:
                            past.append(last)
                            active = last
                    elif name == "activate":
                        active = (await store.activate(SCOPE, user, arguments[0])).active
                        past.append(active)
                    elif name == "delete":
                        await store.delete_version(SCOPE, user, arguments[0])
                        held.remove(arguments[0])
                    elif name == "rollback":
                        before = active
                        active = (await store.rollback(SCOPE, user)).active
                        while past and past.pop() != before:
                            pass
                        wanted = next((v for v in reversed(past) if v != before and (v == 0 or v in held)), 0)
                        assert active == wanted
                    else:
                        await store.erase(user)
                        held, active, last, past = set(), 0, 0, []
                assert {v.version for v in await store.versions(SCOPE, user)} == held
                assert (await store.active(SCOPE, user))[0] == active
                found = await store.user(SCOPE, user)
                assert (found.active, found.last) == (active, last) if found else not held

    asyncio.run(play())


async def test_closing_waits_for_what_is_being_committed(url):
    store = await Store.open(url)
    entered, ended = asyncio.Event(), []

    async def change():
        async with store.transaction(write=True) as c:
            entered.set()
            await asyncio.sleep(0.3)
            await c.execute(text("SELECT 1"))
            ended.append(True)

    task = asyncio.create_task(change())
    await entered.wait()
    await store.close()
    assert ended == [True]
    await task
