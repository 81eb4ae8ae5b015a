"""What is kept of users beside their heads, on each database: nothing lost between services, nothing kept too long."""

import asyncio
import contextlib

import numpy as np
import pytest

from models.heads import statistics
from service.errors import Conflict, Unprocessable
from service.personal import kept
from service.personal.kept import Kept, joined
from service.personal.records import UserChanged
from service.personal.store import Store
from service.personal.user_data import UserData
from tests.store.test_contract import OTHER, SCOPE, version

K, D, P = 3, 5, 4


def windows(n=6, repetition=0, seed=0, inputs=True):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 2, 4)).astype(np.float32) if inputs else None
    z = rng.standard_normal((n, D)).astype(np.float32)
    return Kept(z, np.arange(n) % K, np.full(n, repetition), x)


@contextlib.asynccontextmanager
async def services(url, many):
    """So many services on one store, where it takes several."""
    stores = [await Store.open(url)]
    if stores[0].shared:
        stores += [await Store.open(url) for _ in range(many - 1)]
    try:
        yield [UserData(s) for s in stores], stores
    finally:
        for s in stores:
            await s.close()


@pytest.fixture
async def data(url):
    async with services(url, 1) as ((data,), (store,)):
        data.store = store
        yield data


async def enrol(data, new, user="ana", **fields):
    def answer(held):
        return {"samples": sum(held.of_class(c)[0] for c in range(K))}

    return await data.enrol(SCOPE, user, new, classes=K, personal=P, own=(), room=0, answer=answer, **fields)


async def configure(data, user="ana", scope=SCOPE, **wanted):
    return await data.configure(scope, user, wanted, {scope: (K, P)})


@pytest.mark.parametrize("level", ["statistics", "features", "inputs"])
async def test_what_is_enrolled_comes_back(data, level):
    await configure(data, retention=level)
    parts = [windows(6, r, r) for r in range(3)]
    for i, part in enumerate(parts, 1):
        assert await enrol(data, part) == ({"samples": 6 * i}, False)
    held = await data.enrolled(SCOPE, "ana", windows=True)
    assert [held.of_class(c) for c in range(K)] == [(6, 3)] * K
    whole = joined(parts)
    if level == "statistics":
        wanted = whole.statistics(K, P)
        assert held.windows is None
        assert np.allclose(held.statistics.class_moment, wanted.class_moment, atol=1e-4)
    else:
        assert np.array_equal(held.windows.z, whole.z)
        assert np.array_equal(held.windows.repetition, whole.repetition)
        assert (held.windows.x is not None) == (level == "inputs")


async def test_services_enrol_a_new_user_at_once(url):
    async with services(url, 3) as (several, _):
        for level in ("statistics", "features"):
            if level != "statistics":
                await configure(several[0], user=level, retention=level)
            calls = [enrol(several[i % len(several)], windows(6, i % 4, i), level) for i in range(24)]
            await asyncio.gather(*calls)
            held = await several[0].enrolled(SCOPE, level)
            assert sum(held.of_class(c)[0] for c in range(K)) == 24 * 6


async def test_the_same_call_twice_at_once_counts_once(url):
    async with services(url, 2) as (several, _):
        calls = [enrol(several[i % len(several)], windows(), key="k", digest="d") for i in range(6)]
        answers = await asyncio.gather(*calls)
        assert [again for _, again in answers].count(False) == 1
        assert {a["samples"] for a, _ in answers} == {6}
        with pytest.raises(Conflict):
            await enrol(several[0], windows(), key="k", digest="another")


async def test_a_version_takes_over_what_it_was_made_from_and_nothing_that_came_meanwhile(data):
    await configure(data, retention="features")
    await enrol(data, windows())
    seen = await data.enrolled(SCOPE, "ana", windows=True)
    also = data.committed(SCOPE, "ana", seen, own=(), used=True, windows=seen.windows)
    await enrol(data, windows(3, 1, 1))
    with pytest.raises(Conflict):
        await data.store.commit(SCOPE, "ana", version(1, also=also))
    assert await data.store.versions(SCOPE, "ana") == []
    assert len((await data.enrolled(SCOPE, "ana", windows=True)).windows) == 9
    seen = await data.enrolled(SCOPE, "ana", windows=True)
    also = data.committed(SCOPE, "ana", seen, own=(), used=True, windows=seen.windows)
    assert await data.store.commit(SCOPE, "ana", version(1, also=also)) == 1
    assert not await data.enrolled(SCOPE, "ana")
    assert len(await data.retained(SCOPE, "ana", 1)) == 9


async def test_windows_are_kept_as_long_as_statistics(data):
    await configure(data, retention="inputs")
    for number in range(1, 6):
        seen = await data.enrolled(SCOPE, "ana")
        also = data.committed(SCOPE, "ana", seen, own=(), used=False, windows=windows(seed=number))
        await data.store.commit(SCOPE, "ana", version(number, also=also))
    held = [await data.retained(SCOPE, "ana", number) is not None for number in range(1, 6)]
    assert held == [False, False, False, True, True]
    await data.store.activate(SCOPE, "ana", 4)
    await data.store.delete_version(SCOPE, "ana", 5)
    assert await data.retained(SCOPE, "ana", 5) is None


async def test_lowering_retention_reaches_every_feature_space(data):
    await configure(data, retention="inputs")
    for scope in (SCOPE, OTHER):
        also = data.committed(scope, "ana", await data.enrolled(scope, "ana"), own=(), used=False, windows=windows())
        await data.store.commit(scope, "ana", version(1, also=also))
    await enrol(data, windows())
    assert (await configure(data, retention="features"))[1] is True
    for scope in (SCOPE, OTHER):
        assert (await data.retained(scope, "ana", 1)).x is None
    await configure(data, retention="none")
    for scope in (SCOPE, OTHER):
        assert await data.retained(scope, "ana", 1) is None
        blob, user = await data.store.statistics(scope, "ana")
        assert (blob, user.base, user.active) == (None, 0, 1)
    assert not await data.enrolled(SCOPE, "ana")
    with pytest.raises(Unprocessable, match="'statistics'"):
        await enrol(data, windows())


@pytest.mark.parametrize("what", ["a class is forgotten", "less is kept"])
async def test_a_calibration_under_way_does_not_bring_back_what_was_deleted(data, what):
    stats = statistics.to_bytes(windows().statistics(K, P))
    await data.store.commit(SCOPE, "ana", version(1, statistics=stats))
    revision = await data.store.revision(SCOPE, "ana")
    also = data.committed(SCOPE, "ana", await data.enrolled(SCOPE, "ana"), own=(), used=False, windows=None)
    if what == "a class is forgotten":
        assert await data.forget(SCOPE, "ana", "b", lambda scope: ("a", "b", "c"))
    else:
        await configure(data, retention="none")
    with pytest.raises((UserChanged, Conflict)):
        await data.store.commit(SCOPE, "ana", version(2, revision=revision, also=also))
    blob, _ = await data.store.statistics(SCOPE, "ana")
    if what == "a class is forgotten":
        assert statistics.from_bytes(blob).n.tolist() == [2, 0, 2]
    else:
        assert blob is None


async def test_an_erasure_leaves_no_row(data):
    await configure(data, retention="inputs", attributes={"a": 1})
    await enrol(data, windows(), key="k", digest="d")
    also = data.committed(SCOPE, "ana", await data.enrolled(SCOPE, "ana"), own=(), used=False, windows=windows())
    await data.store.commit(SCOPE, "ana", version(1, also=also))
    await enrol(data, windows(), "bob")
    assert (await data.store.erase("ana")).rows >= 7
    assert await data.settings(SCOPE, "ana") == kept.UserSettings()
    assert not await data.enrolled(SCOPE, "ana")
    assert await data.retained(SCOPE, "ana", 1) is None
    assert await data.answered(SCOPE, "ana", "k", "d") is None
    assert await data.enrolled(SCOPE, "bob")


async def test_so_many_windows_and_no_more(data, monkeypatch):
    monkeypatch.setattr("service.personal.data_changes.MOST_WINDOWS", 10)
    await configure(data, retention="features")
    await enrol(data, windows())
    with pytest.raises(Unprocessable, match=r"12 windows .* at most 10"):
        await enrol(data, windows())
    await configure(data, retention="statistics")
    await enrol(data, windows(600))  # sums do not grow
