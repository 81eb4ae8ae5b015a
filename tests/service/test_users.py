"""Calibrate, versions, pointer, rollback, erasure."""

import asyncio
import threading

import numpy as np
import orjson
import pytest
import safetensors.numpy

from service.app import create_app
from service.data_plane import DECODED_HERE
from service.protocol import calibration
from tests.conftest import running
from tests.tiny import LABELS, tiny_windows

URL = "/v2/models/tiny/users/ana"
OFFSET = np.array([3.0, 3.0, 0.0, 0.0])


def body(rng, per_class=20, offset=OFFSET, repetitions=2, **fields):
    x, labels = tiny_windows(per_class, rng, offset)
    return {"inputs": x.tolist(), "labels": labels, "repetitions": [i % repetitions for i in range(len(x))], **fields}


async def calibrate(client, rng, url=URL, headers=None, **options):
    response = await client.post(f"{url}/calibrations", json=body(rng, **options), headers=headers)
    assert response.status_code == 201, response.text
    return response.json()


async def who(client, user="ana"):
    x = np.zeros((1, 2, 4)).tolist()
    answer = (await client.post(f"/v2/models/tiny/predict?user_id={user}", json={"inputs": x})).json()
    return answer["head"], answer["head_version"]


async def accuracy(client, rng, user, offset=OFFSET):
    x, labels = tiny_windows(50, rng, offset)
    answer = (await client.post(f"/v2/models/tiny/predict?user_id={user}", json={"inputs": x.tolist()})).json()
    return np.mean([p["label"] == label for p, label in zip(answer["predictions"], labels, strict=True)])


async def test_one_call_and_the_next_request_is_personal(client, rng):
    before = await accuracy(client, rng, "ana")
    report = await calibrate(client, rng)
    assert report["outcome"] == "promoted"
    assert report["evidence"] == "held_out"
    assert report["version"] == report["active_version"] == 1
    assert report["method"] == "map"
    assert set(report["timings_ms"]) == {"features", "fit", "evaluate", "store"}
    assert report["classes"]["fist"] == {"samples": 20, "repetitions": 2, "remaining": 0}
    assert report["metrics"]["candidate"]["accuracy"] > report["metrics"]["shared"]["accuracy"]
    assert await who(client) == ("personal", 1)
    assert await accuracy(client, rng, "ana") > before + 0.2
    assert await who(client, "someone-else") == ("shared", 0)


async def test_binary_calibration_equals_json(client, rng):
    x, labels = tiny_windows(10, rng, OFFSET)
    repetitions = [i % 2 for i in range(len(x))]
    one = (await client.post(f"{URL}/calibrations", json={
        "inputs": x.tolist(), "labels": labels, "repetitions": repetitions, "dry_run": True,
    })).json()  # fmt: skip
    head = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    text = orjson.dumps({"inputs": [head], "labels": labels, "repetitions": repetitions, "dry_run": True})
    two = (await client.post(
        f"{URL}/calibrations", content=text + x.tobytes(), headers={"Inference-Header-Content-Length": str(len(text))}
    )).json()  # fmt: skip
    assert one["metrics"] == two["metrics"]
    assert one["outcome"] == two["outcome"]


@pytest.mark.parametrize("retention", ["statistics", "features"])
async def test_windows_whose_squares_cannot_be_summed_are_refused_and_nothing_is_kept(client, rng, retention):
    await client.put(URL, json={"retention": retention})
    await calibrate(client, rng)
    before = (await client.get(URL)).json()
    given = body(rng)
    given["inputs"][7] = (np.array(given["inputs"][7]) * 1e20).tolist()
    refused = await client.post(f"{URL}/calibrations", json=given)
    assert refused.status_code == 422, refused.text
    assert "window 7 has features up to" in refused.json()["error"]
    enrolled = {k: given[k] for k in ("inputs", "labels", "repetitions")}
    refused = await client.post(f"{URL}/samples", json={**enrolled, "accept": ["off_distribution"]})
    assert refused.status_code == 422, refused.text
    assert "window 7 has features up to" in refused.json()["error"]
    assert (await client.get(f"{URL}/samples")).json()["samples"] == 0
    after = (await client.get(URL)).json()
    assert {k: v for k, v in after.items() if k != "updated"} == {k: v for k, v in before.items() if k != "updated"}
    assert (await calibrate(client, rng))["classes"]["rest"]["samples"] == 40


async def test_updates_add_up_and_replace_begins_anew(client, rng):
    await calibrate(client, rng)
    second = await calibrate(client, rng)
    assert second["classes"]["rest"] == {"samples": 40, "repetitions": 4, "remaining": 0}
    third = await calibrate(client, rng, mode="replace")
    assert third["classes"]["rest"]["samples"] == 20
    assert third["version"] == 3


async def test_streamed_calibration_gives_the_same_head_as_one_call(client, rng):
    x, labels = tiny_windows(20, rng, OFFSET)
    repetition = np.arange(len(x)) % 2
    whole = {"inputs": x.tolist(), "labels": labels, "repetitions": repetition.tolist(), "activate": "always"}
    await client.post("/v2/models/tiny/users/whole/calibrations", json=whole)
    for r in (0, 1):
        part = {
            "inputs": x[repetition == r].tolist(),
            "labels": [label for label, k in zip(labels, repetition, strict=True) if k == r],
            "activate": "always",
        }
        assert (await client.post("/v2/models/tiny/users/parts/calibrations", json=part)).status_code == 201
    heads = []
    for user, version in (("whole", 1), ("parts", 2)):
        blob = (await client.get(f"/v2/models/tiny/users/{user}/versions/{version}/weights")).content
        heads.append(safetensors.numpy.load(blob))
    scale = np.abs(heads[0]["weight"]).max()
    ratio = heads[1]["weight"] / heads[0]["weight"]
    assert np.allclose(ratio, np.median(ratio), atol=1e-3 * scale)  # equal but for the held-out temperature


async def test_mislabelled_windows_are_kept_out_and_not_remembered(client, rng):
    await calibrate(client, rng)
    x, _ = tiny_windows(20, rng, OFFSET)
    wrong = [LABELS[i] for i in rng.integers(0, 3, len(x))]
    report = (await client.post(f"{URL}/calibrations", json={
        "inputs": x.tolist(), "labels": wrong, "repetitions": [i % 2 for i in range(len(x))],
    })).json()  # fmt: skip
    assert report["outcome"] == "kept"
    assert report["active_version"] == 1
    assert await who(client) == ("personal", 1)
    assert (await calibrate(client, rng))["classes"]["rest"]["samples"] == 40


async def test_while_a_large_body_is_decoded_others_are_answered(client, rng, monkeypatch):
    begun, answered = threading.Event(), threading.Event()
    decode = calibration.decode

    def gated(*asked):
        begun.set()
        assert answered.wait(5), "nothing was answered while the body was decoded"
        return decode(*asked)

    monkeypatch.setattr(calibration, "decode", gated)
    payload = orjson.dumps(body(rng, per_class=800))
    assert len(payload) > DECODED_HERE
    call = asyncio.create_task(client.post(f"{URL}/calibrations", content=payload))
    assert await asyncio.to_thread(begun.wait, 5)
    assert (await client.get("/v2/health/live")).status_code == 200
    assert not call.done()
    answered.set()
    assert (await call).status_code == 201


async def test_dry_run_stores_nothing(client, rng):
    report = await calibrate(client, rng, dry_run=True)
    assert report["outcome"] == "promoted"
    assert report["version"] is None
    assert (await client.get(URL)).status_code == 404
    assert await who(client) == ("shared", 0)


async def test_activate_never_and_always(client, rng):
    report = await calibrate(client, rng, activate="never")
    assert (report["version"], report["active_version"]) == (1, 0)
    assert await who(client) == ("shared", 0)
    assert (await client.put(f"{URL}/active", json={"version": 1})).json()["active"] == 1
    assert await who(client) == ("personal", 1)
    x, _ = tiny_windows(20, rng, OFFSET)
    wrong = [LABELS[i] for i in rng.integers(0, 3, len(x))]
    forced = {"inputs": x.tolist(), "labels": wrong, "activate": "always", "mode": "replace"}
    assert (await client.post(f"{URL}/calibrations", json=forced)).json()["outcome"] == "promoted"
    assert await who(client) == ("personal", 2)


async def test_versions_active_and_rollback(client, rng):
    for _ in range(3):
        await calibrate(client, rng)
    listed = (await client.get(f"{URL}/versions")).json()
    assert listed["active"] == 3
    assert [v["version"] for v in listed["versions"]] == [1, 2, 3]
    assert (await client.post(f"{URL}/rollback")).json()["active"] == 2
    assert await who(client) == ("personal", 2)
    assert (await client.post(f"{URL}/rollback")).json()["active"] == 1
    assert (await client.post(f"{URL}/rollback")).json()["active"] == "shared"
    assert await who(client) == ("shared", 0)
    assert (await client.post(f"{URL}/rollback")).status_code == 409
    assert (await client.put(f"{URL}/active", json={"version": 3})).json()["active"] == 3
    assert (await client.put(f"{URL}/active", json={"version": "shared"})).json()["active"] == "shared"
    missing = await client.put(f"{URL}/active", json={"version": 8})
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_version")
    for odd in ({"version": 0}, {"version": "x"}, {}, {"version": 1, "more": 2}):
        assert (await client.put(f"{URL}/active", json=odd)).status_code == 400


async def test_an_update_after_a_rollback_forgets_what_was_rolled_back(client, rng):
    await calibrate(client, rng)
    await calibrate(client, rng)
    await client.post(f"{URL}/rollback")
    report = await calibrate(client, rng)
    assert report["version"] == 3
    assert report["classes"]["rest"]["samples"] == 40


async def test_one_version_its_weights_and_deletion(client, rng):
    await calibrate(client, rng)
    await calibrate(client, rng)
    one = (await client.get(f"{URL}/versions/1")).json()
    assert one["report"]["calibration_id"] == one["calibration_id"]
    weights = await client.get(f"{URL}/versions/1/weights")
    assert weights.headers["etag"] == f'"{one["digest"]}"'
    assert safetensors.numpy.load(weights.content)["weight"].shape == (3, 4)
    assert (await client.delete(f"{URL}/versions/2")).status_code == 409
    assert (await client.delete(f"{URL}/versions/1")).json() == {"deleted": 1, "active": 2}
    for response in (await client.get(f"{URL}/versions/1"), await client.delete(f"{URL}/versions/1")):
        assert response.status_code == 404
    assert (await client.get(f"{URL}/versions/1/weights")).status_code == 404
    assert (await client.post(f"{URL}/rollback")).json()["active"] == "shared"


async def test_state_of_a_user(client, rng):
    assert (await client.get(URL)).status_code == 404
    await calibrate(client, rng)
    state = (await client.get(URL)).json()
    assert (state["state"], state["active"], state["retention"]) == ("calibrated", 1, "statistics")
    assert state["classes"]["open"]["samples"] == 20
    assert state["last_calibration"]["version"] == 1
    await client.post(f"{URL}/rollback")
    assert (await client.get(URL)).json()["state"] == "enrolling"


async def test_users_are_listed_page_by_page(client, rng):
    for name in ("c", "a", "b"):
        await calibrate(client, rng, url=f"/v2/models/tiny/users/{name}")
    page = (await client.get("/v2/models/tiny/users?page_size=2")).json()
    assert [u["user"] for u in page["users"]] == ["a", "b"]
    rest = (await client.get(f"/v2/models/tiny/users?page_token={page['next_page_token']}")).json()
    assert [u["user"] for u in rest["users"]] == ["c"]
    assert "next_page_token" not in rest


async def test_erasure_is_whole_idempotent_and_leaves_no_bytes(settings, rng):
    secret = "patient-4711-secret"
    url = f"/v2/models/tiny/users/{secret}"
    async with running(create_app(settings)) as client:
        await calibrate(client, rng, url=url)
        await calibrate(client, rng, url=url)
        receipt = (await client.delete(url)).json()
        assert receipt["erased"] is True
        assert receipt["rows"] >= 5
        assert (await client.get(url)).status_code == 404
        assert await who(client, secret) == ("shared", 0)
        x = np.zeros((1, 2, 4)).tolist()
        asked = await client.post(f"/v2/models/tiny/predict?user_id={secret}&head_version=1", json={"inputs": x})
        assert asked.status_code == 409
        assert (await client.delete(url)).json()["rows"] == 0
        files = [f for f in settings_folder(settings).iterdir() if f.name.startswith("headway.db")]
        assert files
        assert not any(secret.encode() in f.read_bytes() for f in files)
        again = await calibrate(client, rng, url=url)
        assert again["version"] == 1
        assert (await client.delete(f"/v2/users/{secret}")).json()["model"] == "*"
        assert await who(client, secret) == ("shared", 0)


def settings_folder(settings):
    from pathlib import Path

    return Path(settings.store.removeprefix("sqlite+aiosqlite:///")).parent


async def test_an_erasure_waits_for_no_calibration_and_none_survives_it(settings, rng):
    app = create_app(settings)
    async with running(app) as client:
        await calibrate(client, rng)
        calibrator = app.state.services.calibrator
        model = app.state.services.models.get("tiny")
        async with calibrator.exclusively(model, "ana"):
            for url in (URL, "/v2/users/ana"):
                assert (await client.delete(url)).status_code == 409
        assert (await client.delete("/v2/users/ana")).json()["log_truncated"] is True
        assert (await client.get(URL)).status_code == 404


async def test_the_same_windows_count_once(client, rng):
    payload = body(rng)
    await client.post(f"{URL}/calibrations", json=payload)
    again = (await client.post(f"{URL}/calibrations", json=payload)).json()
    assert again["classes"]["rest"] == {"samples": 20, "repetitions": 2, "remaining": 0}
    assert any("sent before" in w for w in again["warnings"])


async def test_windows_that_are_merged_with_others_count_once_too(client, rng):
    calls = [body(rng, per_class=5, repetitions=1) for _ in range(10)]
    for call in calls:
        made = await client.post(f"{URL}/calibrations", json={**call, "activate": "always"})
    assert made.json()["classes"]["rest"]["samples"] == 50
    for old in (0, 2, 9):  # of ten repetitions the first three are one sum
        answer = await client.post(f"{URL}/calibrations", json={**calls[old], "activate": "always"})
        if old < 3:
            assert answer.status_code == 422
            assert "sent before and are in the statistics already" in answer.json()["error"]
        else:
            assert answer.json()["classes"]["rest"]["samples"] == 50
    fresh = body(rng, per_class=5, repetitions=1)
    both = {
        "inputs": calls[1]["inputs"] + fresh["inputs"],
        "labels": calls[1]["labels"] + fresh["labels"],
        "repetitions": [0] * 15 + [1] * 15,
    }
    report = (await client.post(f"{URL}/calibrations", json={**both, "activate": "always"})).json()
    assert report["classes"]["rest"]["samples"] == 55
    assert "1 of the repetitions were sent before; each counts once" in report["warnings"]
    # A label that is forgotten counts again when it is sent again.
    await client.delete(f"{URL}/samples?label=fist")
    back = (await client.post(f"{URL}/calibrations", json={**calls[0], "activate": "always"})).json()
    assert back["classes"]["fist"]["samples"] == 5


async def test_no_head_is_promoted_before_every_label_was_shown(client, rng):
    x, labels = tiny_windows(20, rng, OFFSET)
    two = [i for i, label in enumerate(labels) if label != "open"]
    payload = {
        "inputs": x[two].tolist(), "labels": [labels[i] for i in two], "repetitions": [i % 2 for i in range(len(two))],
    }  # fmt: skip
    report = (await client.post(f"{URL}/calibrations", json=payload)).json()
    assert report["outcome"] == "insufficient"
    assert "no windows yet of open" in report["reason"]
    rest = [i for i, label in enumerate(labels) if label == "open"]
    payload = {
        "inputs": x[rest].tolist(),
        "labels": ["open"] * len(rest),
        "repetitions": [i % 2 for i in range(len(rest))],
    }
    report = (await client.post(f"{URL}/calibrations", json=payload)).json()
    assert report["classes"]["rest"]["samples"] == report["classes"]["open"]["samples"] == 20


async def test_repetitions_that_share_samples_are_refused(client, rng):
    signal = rng.standard_normal((2, 40)).astype(np.float32)
    x = np.stack([signal[:, at : at + 4] for at in range(0, 36, 2)])
    payload = {"inputs": x.tolist(), "labels": ["rest"] * 9 + ["fist"] * 9, "repetitions": [i % 2 for i in range(18)]}
    response = await client.post(f"{URL}/calibrations", json=payload)
    assert response.status_code == 422
    assert "share samples" in response.json()["error"]


async def test_an_update_that_begins_anew_says_so(client, rng):
    for _ in range(5):
        await calibrate(client, rng, activate="always")
    await client.put(f"{URL}/active", json={"version": 1})
    assert any("begun anew" in w for w in (await calibrate(client, rng))["warnings"])


async def test_a_look_up_ends_while_other_users_change(settings, rng):
    app = create_app(settings)
    async with running(app) as client:
        await calibrate(client, rng)
        resolver, model = app.state.services.resolver, app.state.services.models.get("tiny")
        store = app.state.services.store
        original = store.active

        async def slow(scope, user):
            for other in range(20):
                resolver.point(scope, f"other-{other}", 1)
            return await original(scope, user)

        store.active = slow
        resolver.forget("ana", model)
        assert await asyncio.wait_for(who(client), 5) == ("personal", 1)


async def test_a_second_service_on_the_same_file_is_refused(settings):
    from service.personal.records import StoreError
    from service.personal.store import Store

    async with running(create_app(settings)):
        with pytest.raises(StoreError, match="another service uses the store"):
            await Store.open(settings.store)


async def test_idempotency_key(client, rng):
    payload, headers = body(rng), {"Idempotency-Key": "k1"}
    first = await client.post(f"{URL}/calibrations", json=payload, headers=headers)
    again = await client.post(f"{URL}/calibrations", json=payload, headers=headers)
    assert again.status_code == 201
    assert again.headers["idempotent-replay"] == "true"
    assert again.json()["calibration_id"] == first.json()["calibration_id"]
    assert again.json()["version"] == 1
    other = await client.post(f"{URL}/calibrations", json=body(rng), headers=headers)
    assert other.status_code == 409
    assert len((await client.get(f"{URL}/versions")).json()["versions"]) == 1


async def test_one_calibration_at_a_time_a_user(client, rng):
    payload = body(rng)
    answers = await asyncio.gather(*(client.post(f"{URL}/calibrations", json=payload) for _ in range(5)))
    statuses = sorted(a.status_code for a in answers)
    assert statuses[0] == 201
    assert statuses[-1] == 409
    assert len((await client.get(f"{URL}/versions")).json()["versions"]) == statuses.count(201)


async def test_a_restart_serves_what_was_promoted(settings, rng):
    async with running(create_app(settings)) as client:
        await calibrate(client, rng)
        await calibrate(client, rng)
        await client.post(f"{URL}/rollback")
    async with running(create_app(settings)) as client:
        assert await who(client) == ("personal", 1)
        assert (await client.get(URL)).json()["latest_version"] == 2


async def test_predictions_go_on_while_the_store_is_down(settings, rng):
    app = create_app(settings)
    async with running(app) as client:
        await calibrate(client, rng)
        assert await who(client) == ("personal", 1)
        database = app.state.services.store._database
        engine = database.engine
        await engine.dispose()
        database.engine = _Down()
        assert await who(client) == ("personal", 1)
        refused = await client.post(f"{URL}/calibrations", json=body(rng))
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert "retry-after" in refused.headers
        assert (await client.get(URL)).status_code == 503
        stranger = await client.post("/v2/models/tiny/predict?user_id=new", json={"inputs": np.zeros((2, 4)).tolist()})
        assert stranger.status_code == 503
        database.engine = engine
        assert (await calibrate(client, rng))["version"] == 2


class _Down:
    """A database that cannot be reached."""

    def connect(self):
        raise OSError("disk gone")

    async def dispose(self):
        pass


@pytest.mark.parametrize("value", ["NaN", r'"\ud800"', "1" * 30, "[" * 500 + "]" * 500])
async def test_metadata_that_are_no_json_are_refused(client, value):
    content = f'{{"metadata": {{"a": {value}}}}}'
    answer = await client.put(URL, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == (200 if value == "NaN" else 400)  # NaN is kept as null
    assert (await client.get(URL)).status_code == (200 if value == "NaN" else 404)


async def test_windows_age_where_a_user_drifts(client, rng):
    assert (await client.put(URL, json={"half_life_days": -1})).status_code == 400
    assert (await client.put(URL, json={"half_life_days": 1e-6})).json()["half_life_days"] == 1e-6  # 0.09 s
    other = URL.replace("ana", "bob")
    first = body(rng)
    for url in (URL, other):
        assert (await client.post(f"{url}/calibrations", json=first)).status_code == 201
    await asyncio.sleep(0.3)
    second = body(rng, offset=OFFSET + 1)
    aged, fresh = [(await client.post(f"{url}/calibrations", json=second)).json() for url in (URL, other)]
    assert fresh["classes"]["fist"]["samples"] == 40
    assert 20 <= aged["classes"]["fist"]["samples"] < 25
    assert aged["classes"]["fist"]["repetitions"] == 4
    assert (await client.get(other)).json()["half_life_days"] == 0
