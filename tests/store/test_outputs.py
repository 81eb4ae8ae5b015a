"""Feature spaces of several outputs of one model: those of one are older ones of it, those of another are not."""

import pytest

from service.personal import data_changes
from service.personal.records import Scope, output_of
from service.personal.states import elsewhere, spaces_of, users_in
from service.personal.store import Store
from service.personal.user_data import UserData
from tests.store.test_contract import version

OLD, NEW = "fs-00000000aaaa", "fs-11111111bbbb"
NAMES = ("", "force", "left_arm", "left-arm", "leftxarm")


def scope(space, name):
    return Scope("arm", f"{space}/{name}-1a2b3c4d" if name else f"{space}-1a2b3c4d")


@pytest.fixture
async def store(url):
    opened = await Store.open(url)
    yield opened
    await opened.close()


def test_a_scope_tells_its_output():
    for name in NAMES:
        assert output_of(scope(OLD, name).feature_space) == name == scope(OLD, name).output


@pytest.mark.parametrize("name", NAMES)
async def test_a_head_of_another_output_makes_nobody_stale(store, name):
    for other in NAMES:
        await store.commit(scope(OLD, other), f"of {other}", version(1))
    here = scope(NEW, name)
    assert [u.name for u in await users_in(store, here, "stale", "", 9)] == [f"of {name}"]
    assert await elsewhere(store, here, f"of {name}") == {scope(OLD, name).feature_space: 1}
    assert await elsewhere(store, here, "of another") == {}
    assert await spaces_of(store, here) == [scope(OLD, name).feature_space]


@pytest.mark.parametrize("name", NAMES)
async def test_what_is_forgotten_of_an_output_is_its_own(store, name):
    data = UserData(store)
    for other in NAMES:
        await store.commit(scope(OLD, other), "ana", version(1, statistics=b"sums"))
    assert await data.forget(scope(NEW, name), "ana", None, lambda _: None)
    for other in NAMES:
        left, _ = await store.statistics(scope(OLD, other), "ana")
        assert left == (None if other == name else b"sums")
    async with store.transaction(write=True) as c:
        assert await data_changes.spaces_of(c, scope(NEW, name), "ana") == [scope(OLD, name).feature_space]
