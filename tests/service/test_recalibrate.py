"""After a backbone upgrade: who is stale, who is moved and how, and who has to enrol anew."""

import asyncio

import numpy as np
import pytest
from sqlalchemy import select, update

from models.heads.head import Head
from service.app import create_app
from service.config import Settings
from service.personal import recalibrate, refitting
from service.personal.schema import users, versions
from tests.conftest import running
from tests.service.test_users import body
from tests.tiny import tiny_windows, write_tiny_bundle
from tests.upgraded import write_bridged_bundle, write_upgraded_bundle

MODEL = "/v2/models/tiny"
OFFSET = np.array([1.0, 1.0, 0.0, 0.0])


def with_pinch(rng, **fields):
    """A calibration that adds a label of the user's own."""
    sent = body(rng, offset=OFFSET, repetitions=3)
    z = np.array([8.0, 0.0, 8.0, 0.0]) + 0.3 * rng.standard_normal((20, 4))
    pinch = np.repeat(z.reshape(20, 2, 2) / 2, 2, axis=2)
    sent["inputs"] += pinch.tolist()
    sent["labels"] += ["pinch"] * 20
    sent["repetitions"] += [i % 3 for i in range(20)]
    return {**sent, **fields}, pinch


class Upgrade:
    """A service on version 1 of the tiny model, and what becomes of it."""

    def __init__(self, app, client, models):
        self.app, self.client, self.models = app, client, models

    @property
    def own(self):
        return self.app.state.services

    async def calibrate(self, user, rng, **options):
        made = await self.client.post(
            f"{MODEL}/users/{user}/calibrations", json=body(rng, **{"offset": OFFSET, "repetitions": 3, **options})
        )
        assert made.status_code == 201, made.text
        return made.json()

    async def load(self):
        answer = await self.client.post("/v2/repository/models/tiny/load")
        assert answer.status_code == 200, answer.text

    async def begin(self, **fields):
        answer = await self.client.post(f"{MODEL}/users:recalibrate", json=fields)
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == f"/v2/operations/{answer.json()['operation']}"
        return answer.json()["operation"]

    async def ended(self, operation):
        for _ in range(400):
            found = (await self.client.get(f"/v2/operations/{operation}")).json()
            if found["state"] != "running":
                return found
            await asyncio.sleep(0.02)
        raise AssertionError(f"still running: {found}")

    async def recalibrated(self, **fields):
        return await self.ended(await self.begin(**fields))

    async def refused(self, operation, outcome="needs_enrolment"):
        listed = await self.client.get(f"/v2/operations/{operation}/users", params={"outcome": outcome})
        return {u["user"]: u["reason"] for u in listed.json()["users"]}

    async def stale(self):
        listed = (await self.client.get(f"{MODEL}/users", params={"state": "stale"})).json()
        return [u["user"] for u in listed["users"]]

    async def answers(self, user, x):
        answer = await self.client.post(f"{MODEL}/predict?user_id={user}", json={"inputs": x.tolist()})
        assert answer.status_code == 200, answer.text
        found = answer.json()
        return found["model_version"], found["head"], [p["label"] for p in found["predictions"]]


@pytest.fixture
async def upgrade(tmp_path):
    write_tiny_bundle(tmp_path / "models")
    app = create_app(Settings(models=tmp_path / "models", store=f"sqlite+aiosqlite:///{tmp_path}/headway.db"))
    async with running(app) as client:
        yield Upgrade(app, client, tmp_path / "models")


async def test_users_cross_the_bridge(upgrade, rng):
    names = [f"u{i}" for i in range(8)]
    for name in names:
        await upgrade.calibrate(name, rng)
    write_bridged_bundle(upgrade.models)
    await upgrade.load()
    x, labels = tiny_windows(30, rng, OFFSET)
    before = {name: await upgrade.answers(name, x) for name in names}
    assert {b[:2] for b in before.values()} == {("1", "personal")}  # the old version serves whom it knows
    assert await upgrade.stale() == names
    state = (await upgrade.client.get(f"{MODEL}/users/u3")).json()
    assert (state["state"], state["active"], state["model_version"]) == ("stale", "shared", "2")
    assert [h["version"] for h in state["heads_in"]] == [1]

    done = await upgrade.recalibrated()
    assert done["state"] == "done"
    assert done["progress"] == {"total": 8, "done": 8, "moved": 8, "needs_enrolment": 0, "failed": 0}
    assert await upgrade.stale() == []
    for name in names:
        version, head, found = await upgrade.answers(name, x)
        assert (version, head) == ("2", "personal")
        assert np.mean([a == b for a, b in zip(found, labels, strict=True)]) > 0.9
        assert np.mean([a == b for a, b in zip(found, before[name][2], strict=True)]) > 0.95
    report = (await upgrade.client.get(f"{MODEL}/users/u0/versions/1")).json()["report"]
    assert (report["origin"], report["by"], report["from"]["version"]) == ("recalibration", "bridge", 1)
    assert report["classes"]["fist"]["samples"] == 20
    again = await upgrade.recalibrated()
    assert again["progress"]["total"] == 0
    assert (await upgrade.client.get(f"{MODEL}/users/u0")).json()["latest_version"] == 1
    # What follows adds to the statistics that came over.
    assert (await upgrade.calibrate("u0", rng))["classes"]["fist"]["samples"] == 40


async def test_heads_of_the_old_space_are_never_applied_in_the_new(upgrade, rng):
    await upgrade.calibrate("ana", rng)
    write_upgraded_bundle(upgrade.models)
    await upgrade.load()
    x, _ = tiny_windows(3, rng, OFFSET)
    assert await upgrade.answers("ana", x) == ("1", "personal", (await upgrade.answers("ana", x))[2])
    new = await upgrade.client.post(
        f"{MODEL}/versions/2/infer",
        json={
            "inputs": [{"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}],
            "parameters": {"user_id": "ana"},
        },
    )
    assert new.json()["parameters"] == {"head": "shared", "head_version": 0}


@pytest.mark.parametrize("loss", [None, 0.02], ids=["no-bridge", "a-weak-bridge"])
async def test_without_a_good_bridge_they_are_listed(upgrade, rng, loss):
    await upgrade.calibrate("ana", rng)
    if loss is None:
        write_upgraded_bundle(upgrade.models)
    else:
        write_bridged_bundle(upgrade.models, loss=loss)
    await upgrade.load()
    done = await upgrade.recalibrated()
    assert done["progress"] == {"total": 1, "done": 1, "moved": 0, "needs_enrolment": 1, "failed": 0}
    reasons = await upgrade.refused(done["operation"])
    assert list(reasons) == ["ana"]
    assert ("no bridge" if loss is None else "not good enough (loss 2.0%)") in reasons["ana"]
    assert await upgrade.stale() == ["ana"]
    x, _ = tiny_windows(3, rng, OFFSET)
    assert (await upgrade.answers("ana", x))[:2] == ("1", "personal")


async def test_windows_that_are_kept_are_used_first(upgrade, rng):
    for user, retention in (("ana", "inputs"), ("bob", "features")):
        await upgrade.client.put(f"{MODEL}/users/{user}", json={"retention": retention})
        await upgrade.calibrate(user, rng)
    write_upgraded_bundle(upgrade.models, bend=3.0)
    await upgrade.load()
    done = await upgrade.recalibrated(from_version=1)
    assert done["progress"] == {"total": 2, "done": 2, "moved": 1, "needs_enrolment": 1, "failed": 0}
    report = (await upgrade.client.get(f"{MODEL}/users/ana/versions/1")).json()["report"]
    assert (report["by"], report["evidence"]) == ("inputs", "held_out")
    x, _ = tiny_windows(20, rng, OFFSET)
    assert (await upgrade.answers("ana", x))[:2] == ("2", "personal")
    assert (await upgrade.answers("bob", x))[:2] == ("1", "personal")
    # What was kept goes along: a method that needs all features still has them, and another upgrade the windows.
    logistic = await upgrade.calibrate("ana", rng, method="logistic")
    assert logistic["classes"]["rest"]["samples"] == 40
    assert (await upgrade.client.get(f"{MODEL}/users/ana")).json()["retention"] == "inputs"


async def test_a_dry_run_changes_nothing(upgrade, rng):
    await upgrade.calibrate("ana", rng)
    write_bridged_bundle(upgrade.models)
    await upgrade.load()
    done = await upgrade.recalibrated(dry_run=True)
    assert done["dry_run"] is True
    assert done["progress"]["moved"] == 1
    assert await upgrade.refused(done["operation"], "moved") == {"ana": "bridge"}
    assert await upgrade.stale() == ["ana"]


async def test_who_lacks_statistics_or_is_damaged(upgrade, rng):
    for name in ("ana", "bob", "eve"):
        await upgrade.calibrate(name, rng)
    async with upgrade.own.store.transaction(write=True) as c:
        await c.execute(update(versions).where(versions.c.user == "ana").values(statistics=None))
        await c.execute(update(versions).where(versions.c.user == "bob").values(statistics=b"damaged"))
    write_bridged_bundle(upgrade.models)
    await upgrade.load()
    done = await upgrade.recalibrated()
    assert done["progress"] == {"total": 3, "done": 3, "moved": 1, "needs_enrolment": 1, "failed": 1}
    assert "neither windows nor statistics" in (await upgrade.refused(done["operation"]))["ana"]
    assert list(await upgrade.refused(done["operation"], "failed")) == ["bob"]
    assert await upgrade.stale() == ["ana", "bob"]


async def test_one_operation_at_a_time_and_it_can_be_ended(upgrade, rng, monkeypatch):
    monkeypatch.setattr(recalibrate, "RETRY_SECONDS", 0.02)
    for name in ("ana", "bob"):
        await upgrade.calibrate(name, rng)
    write_bridged_bundle(upgrade.models)
    await upgrade.load()
    model = upgrade.own.models.get("tiny")
    async with upgrade.own.calibrator.exclusively(model, "ana"):  # as a calibration that goes on
        operation = await upgrade.begin()
        twice = await upgrade.client.post(f"{MODEL}/users:recalibrate")
        assert twice.status_code == 409
        assert operation in twice.json()["error"]
        while (found := (await upgrade.client.get(f"/v2/operations/{operation}")).json())["progress"]["done"] < 1:
            await asyncio.sleep(0.02)
        assert (found["state"], found["progress"]["moved"]) == ("running", 1)
        ended = (await upgrade.client.delete(f"/v2/operations/{operation}")).json()
        assert ended["state"] == "cancelled"
    assert (await upgrade.client.delete(f"/v2/operations/{operation}")).json()["state"] == "cancelled"
    assert await upgrade.stale() == ["ana"]
    rest = await upgrade.recalibrated()
    assert rest["progress"] == {"total": 1, "done": 1, "moved": 1, "needs_enrolment": 0, "failed": 0}
    listed = (await upgrade.client.get("/v2/operations")).json()["operations"]
    assert [o["state"] for o in listed] == ["done", "cancelled"]


async def test_who_was_erased_meanwhile_does_not_come_back(upgrade, rng, monkeypatch):
    await upgrade.calibrate("ana", rng)
    write_bridged_bundle(upgrade.models)
    await upgrade.load()
    store, refit = upgrade.own.store, refitting.refit

    def late(*arguments):
        """By another service on the same store: not under this one's lock."""
        asyncio.run_coroutine_threadsafe(store.erase("ana", "tiny"), loop).result()
        return refit(*arguments)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(refitting, "refit", late)
    monkeypatch.setattr(recalibrate, "RETRY_SECONDS", 0.02)
    done = await upgrade.recalibrated()
    assert (done["state"], done["progress"]["moved"]) == ("done", 0)
    async with store.transaction() as c:
        assert (await c.execute(select(users))).first() is None
        assert (await c.execute(select(versions))).first() is None


async def test_erasure_takes_them_from_operations_too(upgrade, rng):
    await upgrade.calibrate("ana", rng)
    write_upgraded_bundle(upgrade.models)
    await upgrade.load()
    done = await upgrade.recalibrated()
    assert list(await upgrade.refused(done["operation"])) == ["ana"]
    assert (await upgrade.client.delete("/v2/users/ana")).status_code == 200
    assert await upgrade.refused(done["operation"]) == {}
    assert await upgrade.stale() == []
    assert (await upgrade.client.get(f"{MODEL}/users/ana")).status_code == 404


async def test_refusals(upgrade, rng):
    same = await upgrade.client.post(f"{MODEL}/users:recalibrate", json={"from_version": 1})
    assert same.status_code == 422
    assert "same feature space" in same.json()["error"]
    assert (await upgrade.client.post(f"{MODEL}/users:recalibrate", json={"from_version": 9})).status_code == 404
    assert (await upgrade.client.post(f"{MODEL}/users:recalibrate", json={"nope": 1})).status_code == 400
    assert (await upgrade.client.get(f"/v2/operations/{'0' * 32}")).json()["code"] == "not_found"
    assert (await upgrade.client.delete("/v2/operations/x")).status_code == 400


async def test_states_of_users(upgrade, rng):
    await upgrade.calibrate("old", rng)
    write_bridged_bundle(upgrade.models)
    await upgrade.load()
    await upgrade.calibrate("both", rng)
    await upgrade.calibrate("begun", rng, per_class=1, repetitions=1, activate="never")
    await upgrade.calibrate("old", rng, activate="never")

    async def listed(state):
        answer = (await upgrade.client.get(f"{MODEL}/users", params={"state": state, "page_size": 1})).json()
        return [u["user"] for u in answer["users"]]

    assert [await listed(s) for s in ("calibrated", "enrolling", "stale")] == [["both"], ["begun"], ["old"]]
    states = [(await upgrade.client.get(f"{MODEL}/users/{u}")).json()["state"] for u in ("both", "begun", "old")]
    assert states == ["calibrated", "enrolling", "stale"]
    assert (await upgrade.client.get(f"{MODEL}/users", params={"state": "?"})).status_code == 400


async def test_the_head_is_finite_or_not_moved(upgrade, rng, monkeypatch):
    await upgrade.calibrate("ana", rng)
    write_bridged_bundle(upgrade.models)
    await upgrade.load()
    broken = {"map": lambda stats, prior: Head(np.full((3, 4), np.nan), np.zeros(3))}
    monkeypatch.setattr("models.heads.refit.FITS", broken)
    done = await upgrade.recalibrated()
    assert done["progress"]["needs_enrolment"] == 1


@pytest.mark.parametrize("room", [2, 0])
async def test_labels_of_their_own_go_along_where_there_is_room(tmp_path, rng, room):
    write_tiny_bundle(tmp_path / "models", user_labels=2)
    app = create_app(Settings(models=tmp_path / "models", store=f"sqlite+aiosqlite:///{tmp_path}/headway.db"))
    async with running(app) as client:
        upgrade = Upgrade(app, client, tmp_path / "models")
        sent, pinch = with_pinch(rng, activate="always")
        assert (await client.post(f"{MODEL}/users/ana/calibrations", json=sent)).status_code == 201
        assert (await upgrade.answers("ana", pinch))[2] == ["pinch"] * 20
        write_bridged_bundle(upgrade.models, user_labels=room)
        await upgrade.load()
        done = await upgrade.recalibrated()
        version, head, found = await upgrade.answers("ana", pinch)
        assert (head, found) == ("personal", ["pinch"] * 20)
        assert version == ("2" if room else "1")
        if not room:
            assert "no room for the labels of their own, pinch" in (await upgrade.refused(done["operation"]))["ana"]


async def test_a_label_set_that_is_opened_takes_heads_over_as_they_are(upgrade, rng):
    await upgrade.calibrate("ana", rng)
    x, _ = tiny_windows(30, rng, OFFSET)
    before = await upgrade.answers("ana", x)
    write_tiny_bundle(upgrade.models, version=2, user_labels=2)  # the same backbone, with room for labels
    await upgrade.load()
    assert await upgrade.stale() == ["ana"]
    assert (await upgrade.recalibrated())["progress"]["moved"] == 1
    assert await upgrade.answers("ana", x) == ("2", *before[1:])
    report = (await upgrade.client.get(f"{MODEL}/users/ana/versions/1")).json()["report"]
    assert report["by"] == "statistics"


async def test_who_is_changed_all_the_time_is_given_up(upgrade, rng, monkeypatch):
    monkeypatch.setattr(recalibrate, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(recalibrate, "MOST_PASSES", 3)
    await upgrade.calibrate("ana", rng)
    write_bridged_bundle(upgrade.models)
    await upgrade.load()
    async with upgrade.own.calibrator.exclusively(upgrade.own.models.get("tiny"), "ana"):
        done = await upgrade.recalibrated()
    assert (done["state"], done["progress"]["failed"]) == ("done", 1)
    assert "each time it was their turn" in (await upgrade.refused(done["operation"], "failed"))["ana"]


async def adapt(upgrade, user, rng):
    x, _ = tiny_windows(40, rng, OFFSET + np.array([1.5, -1.0, 1.5, -1.0]))
    sent = {"inputs": x[rng.permutation(len(x))].tolist()}
    made = await upgrade.client.post(f"{MODEL}/users/{user}/adaptations", json=sent)
    assert made.json()["outcome"] == "promoted", made.text
    return made.json()["version"]


async def test_what_is_kept_behind_an_adapted_head_is_used(upgrade, rng):
    await upgrade.client.put(f"{MODEL}/users/ana", json={"retention": "inputs"})
    await upgrade.calibrate("ana", rng)
    assert await adapt(upgrade, "ana", rng) == 2
    write_upgraded_bundle(upgrade.models)
    await upgrade.load()
    done = await upgrade.recalibrated()
    assert done["progress"]["moved"] == 1, await upgrade.refused(done["operation"])
    report = (await upgrade.client.get(f"{MODEL}/users/ana/versions/1")).json()["report"]
    assert (report["by"], report["from"]["version"]) == ("inputs", 2)


@pytest.mark.parametrize("level", ["none", "statistics"])
async def test_who_lets_less_be_kept_meanwhile_is_looked_at_again(upgrade, rng, monkeypatch, level):
    await upgrade.client.put(f"{MODEL}/users/ana", json={"retention": "inputs"})
    await upgrade.calibrate("ana", rng)
    write_upgraded_bundle(upgrade.models)
    await upgrade.load()
    old, fitting = upgrade.own.models.get("tiny", 1), refitting.Refitter.refitted

    async def meanwhile(self, model, *args):
        found = await fitting(self, model, *args)
        # As another service on the same store does it: nothing here holds it back.
        await upgrade.own.calibrator.data.configure(old.scope, "ana", {"retention": level}, {old.scope: (3, 4)})
        return found

    monkeypatch.setattr(refitting.Refitter, "refitted", meanwhile)
    done = await upgrade.recalibrated()
    assert done["progress"]["needs_enrolment"] == 1
    assert await upgrade.own.calibrator.data.retained(upgrade.own.models.get("tiny").scope, "ana", 1) is None


async def test_nothing_is_written_down_of_who_was_erased_meanwhile(upgrade, rng, monkeypatch):
    await upgrade.calibrate("ana", rng)
    write_upgraded_bundle(upgrade.models)
    await upgrade.load()

    async def erased(self, *args):
        await upgrade.own.store.erase("ana", "tiny")  # by another service on the same store
        return "no"

    monkeypatch.setattr(refitting.Refitter, "refitted", erased)
    done = await upgrade.recalibrated()
    assert done["progress"]["needs_enrolment"] == 0
    assert await upgrade.refused(done["operation"]) == {}


@pytest.mark.parametrize("label", [None, "fist"])
@pytest.mark.parametrize("known", [False, True])
async def test_what_is_forgotten_is_forgotten_in_older_spaces_too(upgrade, rng, label, known):
    await upgrade.client.put(f"{MODEL}/users/ana", json={"retention": "inputs"})
    await upgrade.calibrate("ana", rng)
    write_upgraded_bundle(upgrade.models)
    await upgrade.load()
    if known:  # in the new space, too
        await upgrade.client.put(f"{MODEL}/users/ana", json={"adapt": "off"})
    chosen = {} if label is None else {"label": label}
    answer = await upgrade.client.delete(f"{MODEL}/users/ana/samples", params=chosen)
    assert (answer.status_code, answer.json()["forgotten"]) == (200, label or "all")
    old = upgrade.own.models.get("tiny", 1).scope
    left = await upgrade.own.calibrator.data.retained(old, "ana", 1)
    assert left is None if label is None else set(left.y) == {0, 2}
    assert (await upgrade.recalibrated())["progress"]["moved"] == 0
