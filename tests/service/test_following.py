"""Heads that follow their users while they predict: `adapt` off, suggest and on."""

import asyncio

import numpy as np
import pytest
from sqlalchemy import select

from service.errors import Conflict
from service.personal import following, observations
from service.personal.observations import ROWS_KEPT, Observations
from service.personal.records import Scope, UserChanged
from service.personal.resolved import SHARED_HEAD, ResolvedHead
from service.personal.schema import activations
from tests.service.test_adaptations import MOVED, URL
from tests.service.test_users import OFFSET, calibrate, who
from tests.tiny import tiny_windows


class Model:
    """As much of a loaded model as observations look at."""

    name = "tiny"
    scope = Scope("tiny", "space")


PERSONAL = ResolvedHead(1, 1)


async def predict(client, rng, rows, offset=MOVED, user="ana"):
    x, _ = tiny_windows(rows, rng, offset)
    order = rng.permutation(len(x))
    answer = await client.post(f"/v2/models/tiny/predict?user_id={user}", json={"inputs": x[order].tolist()})
    assert answer.status_code == 200
    return answer.json()


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def state(client):
    return (await client.get(URL)).json()


async def followed(client):
    return (await state(client))["adaptation"] is not None


async def test_off_learns_nothing(client, rng):
    await calibrate(client, rng)
    for _ in range(3):
        await predict(client, rng, 30)
    await asyncio.sleep(0.2)
    found = await state(client)
    assert (found["adapt"], found["adaptation"]) == ("off", None)
    assert await who(client) == ("personal", 1)


async def test_on_publishes_a_version_that_follows(client, rng):
    await calibrate(client, rng)
    assert (await client.put(URL, json={"adapt": "on"})).json()["adapt"] == "on"
    for _ in range(4):
        await predict(client, rng, 30)

    async def moved():
        return (await who(client))[1] > 1

    await until(moved)
    versions = (await client.get(f"{URL}/versions")).json()
    assert [v["version"] for v in versions["versions"]] == [1, 2]
    report = (await client.get(f"{URL}/versions/2")).json()["report"]
    assert (report["origin"], report["causal"], report["anchor"]) == ("adaptation", True, 1)
    told = (await state(client))["adaptation"]
    assert told["published_version"] == 2
    assert told["outcome"] == "promoted"


async def test_suggest_reports_and_serves_what_was_served(client, rng):
    await calibrate(client, rng)
    await client.put(URL, json={"adapt": "suggest"})
    for _ in range(4):
        await predict(client, rng, 30)

    async def judged():
        told = (await state(client))["adaptation"]
        return told is not None and told["outcome"] == "promoted"

    await until(judged)
    assert await who(client) == ("personal", 1)
    assert len((await client.get(f"{URL}/versions")).json()["versions"]) == 1


async def test_it_goes_back_by_itself_when_the_session_ends(client, rng):
    await calibrate(client, rng)
    await client.put(URL, json={"adapt": "on"})

    async def adapted():
        await predict(client, rng, 30)
        return (await who(client))[1] == 2

    await until(adapted)

    async def back():
        await predict(client, rng, 30, offset=OFFSET)
        return (await who(client))[1] == 1

    await until(back, 20)
    assert (await who(client)) == ("personal", 1)


async def test_a_calibration_begins_the_stream_anew(client, rng):
    await calibrate(client, rng)
    await client.put(URL, json={"adapt": "suggest"})
    await predict(client, rng, 60)
    await until(lambda: followed(client))
    await calibrate(client, rng, activate="always")
    await predict(client, rng, 60)

    async def anew():
        return (await state(client))["adaptation"]["anchor"] == 2

    await until(anew)
    assert (await state(client))["adaptation"]["published_version"] in (0, None)


async def test_far_windows_advise_a_calibration(client, rng):
    await calibrate(client, rng)
    await client.put(URL, json={"adapt": "suggest"})
    await predict(client, rng, 60, offset=OFFSET)
    await until(lambda: followed(client))
    assert not (await state(client))["adaptation"]["recalibration_advised"]
    await predict(client, rng, 60, offset=np.array([15.0, -15.0, 15.0, -15.0]))

    async def advised():
        return (await state(client))["adaptation"]["recalibration_advised"]

    await until(advised)
    assert (await predict(client, rng, 1))["recalibration_advised"] is True
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 2, 4], "data": [0.0] * 8}
    for user, told in (("ana", True), ("bob", None)):
        answer = await client.post("/v2/models/tiny/infer", json={"inputs": [tensor], "parameters": {"user_id": user}})
        assert answer.json()["parameters"].get("recalibration_advised") is told
    assert "headway_feature_drift_count" in (await client.get("/metrics")).text


@pytest.mark.parametrize("leave", ["off", "erase"])
async def test_nothing_is_left_of_who_leaves(client, rng, leave):
    await calibrate(client, rng)
    await client.put(URL, json={"adapt": "suggest"})
    await predict(client, rng, 60)
    await until(lambda: followed(client))
    if leave == "off":
        await client.put(URL, json={"adapt": "off"})
    else:
        await client.delete(URL)
        await calibrate(client, rng)
    await predict(client, rng, 60)
    await asyncio.sleep(0.2)
    assert (await state(client))["adaptation"] is None


async def test_who_is_followed_is_known_again_after_a_restart(settings, rng):
    from service.app import create_app
    from tests.conftest import running

    async with running(create_app(settings)) as client:
        await calibrate(client, rng)
        await client.put(URL, json={"adapt": "suggest"})
    async with running(create_app(settings)) as client:
        await predict(client, rng, 60)
        await until(lambda: followed(client))
        assert (await state(client))["adaptation"]["anchor"] == 1


def rows(n, value=0.0):
    return np.full((n, 4), value, np.float32)


def test_only_rows_of_personal_heads_of_those_who_want_it_are_queued():
    ready = []
    queue = Observations(2, ready.append)
    queue.saw(Model, ["ana"], [PERSONAL], rows(1))
    assert not ready, "nobody wants it"
    queue.wanted.add(("tiny", "ana"))
    queue.saw(Model, ["ana", "ana"], [SHARED_HEAD, SHARED_HEAD], rows(2))
    assert not ready, "the shared head answered"
    z = np.arange(16, dtype=np.float32).reshape(4, 4)
    queue.saw(Model, ["ana", "bob", None, "ana"], [PERSONAL, PERSONAL, SHARED_HEAD, PERSONAL], z)
    assert ready == [(Model.scope, "ana")]
    np.testing.assert_array_equal(queue.take((Model.scope, "ana")), z[[0, 3]])
    assert queue.take((Model.scope, "ana")) is None


def test_the_queue_is_bounded_and_drops_the_oldest():
    queue = Observations(10**9, lambda who: None)
    who = (Model.scope, "ana")
    for i in range(200):
        queue.put(who, rows(10, i))
    kept = queue.take(who)
    assert len(kept) <= ROWS_KEPT
    assert kept[-1, 0] == 199
    assert queue.dropped == 2000 - len(kept)
    for i in range(2000):
        queue.put((Model.scope, f"user{i}"), rows(1))
    assert queue.take((Model.scope, "user0")) is None
    assert queue.take((Model.scope, "user1999")) is not None


@pytest.fixture
async def served(settings):
    from service.app import create_app
    from tests.conftest import running

    app = create_app(settings)
    async with running(app) as client:
        yield app.state.services, client


async def suggested(client, rng, offset=MOVED):
    """Let a head's stream begin."""
    await calibrate(client, rng)
    await client.put(URL, json={"adapt": "suggest"})

    async def seen():
        await predict(client, rng, 30, offset=offset)
        return await followed(client)

    await until(seen)


async def test_advice_is_forgotten_with_who_is_followed_no_more(served, rng):
    own, client = served
    await suggested(client, rng, OFFSET * 20)
    assert ("tiny", "ana", "") in own.following.observations.advised
    own.following._followed.clear()  # made room for others
    assert (await client.delete(URL)).status_code == 200
    assert not own.following.observations.advised


@pytest.mark.parametrize("how", ["none", "forget"])
async def test_nothing_learned_outlives_the_samples_it_was_learned_from(served, rng, how):
    own, client = served
    await suggested(client, rng)
    if how == "none":
        await client.put(URL, json={"retention": "none"})
    else:
        await client.delete(f"{URL}/samples")
    assert not own.following._followed
    assert not own.following.observations._rows
    assert (await state(client))["adapt"] == "suggest"


async def test_going_back_leaves_what_somebody_chose_meanwhile(served, rng):
    own, client = served
    await calibrate(client, rng)
    await calibrate(client, rng)
    await client.put(URL, json={"adapt": "on"})

    async def published():
        await predict(client, rng, 30)
        return (await who(client))[1] > 2

    await until(published)
    (model,) = own.models.loaded()
    found = own.following._followed[model.scope, "ana"]

    async def chosen():
        return (await client.put(f"{URL}/active", json={"version": 1})).status_code == 200

    await until(chosen)
    with pytest.raises(Conflict):
        await own.following._go_back(model, (model.scope, "ana"), found)
    assert await who(client) == ("personal", 1)


async def test_a_stream_is_not_begun_for_who_was_erased_meanwhile(served, rng):
    own, client = served
    await calibrate(client, rng)
    (model,) = own.models.loaded()
    with pytest.raises(UserChanged):  # the store was asked, and `adapt` turned off before it answered
        await own.following._current(model, (model.scope, "ana"))
    assert not own.following._followed


async def test_a_choice_made_through_another_service_is_kept_to(served, rng):
    own, client = served
    await suggested(client, rng)
    own.following._modes["tiny", "ana"] = "on"  # as it was when this service began
    for _ in range(4):
        await predict(client, rng, 30)
        await asyncio.sleep(0.05)
    await until(lambda: asyncio.sleep(0, own.following._modes["tiny", "ana"] == "suggest"))
    assert await who(client) == ("personal", 1)


async def test_versions_that_replace_each_other_leave_no_trail(served, rng, monkeypatch):
    monkeypatch.setattr(following, "PUBLISH_ROWS", 50)
    monkeypatch.setattr(following, "PUBLISH_SECONDS", 0.0)
    own, client = served
    await calibrate(client, rng)
    await client.put(URL, json={"adapt": "on"})

    async def often():
        await predict(client, rng, 30)
        return (await who(client))[1] > 5

    await until(often, 20)
    async with own.store.transaction() as c:
        rows = (await c.scalars(select(activations.c.version))).all()
    assert len(rows) <= 3


async def test_who_goes_back_stays_there_until_they_choose_anew(served, rng, monkeypatch):
    monkeypatch.setattr(following, "PUBLISH_ROWS", 50)
    monkeypatch.setattr(following, "PUBLISH_SECONDS", 0.0)
    _, client = served
    await calibrate(client, rng)
    await client.put(URL, json={"adapt": "on"})

    async def published():
        await predict(client, rng, 30)
        return (await who(client))[1] > 1

    await until(published)

    async def rolled_back():
        return (await client.post(f"{URL}/rollback")).status_code == 200

    await until(rolled_back)
    for _ in range(5):
        await predict(client, rng, 30)
        await asyncio.sleep(0.1)
    assert await who(client) == ("personal", 1)
    assert (await state(client))["adaptation"]["outcome"] == "promoted"
    await client.put(URL, json={"adapt": "on"})
    await until(published)


def test_rows_that_wait_are_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(observations, "BYTES_KEPT", 1000)
    queue = Observations(100, lambda who: None)
    for user in ("ana", "bo", "cy"):
        for _ in range(2):
            queue.put((Model.scope, user), np.ones((10, 5), np.float32))  # 200 bytes
    assert queue.nbytes == 800
    assert queue.take((Model.scope, "ana")) is None
    assert len(queue.take((Model.scope, "bo"))) == 20
    queue.forget("cy")
    assert queue.nbytes == 0
    assert queue.dropped == 20
