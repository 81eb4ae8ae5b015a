"""Adapting a head to windows without labels over HTTP: a version like any other."""

import asyncio

import numpy as np
import orjson
import pytest
import safetensors.numpy

from service.app import create_app
from tests.conftest import running
from tests.service.test_users import OFFSET, accuracy, calibrate, who
from tests.tiny import tiny_windows

URL = "/v2/models/tiny/users/ana"
MOVED = OFFSET + np.array([1.5, -1.0, 1.5, -1.0])
"""Where the user's features are in a later session."""


def unlabelled(rng, per_class=60, offset=MOVED):
    return tiny_windows(per_class, rng, offset)[0].tolist()


async def adapt(client, inputs, **fields):
    response = await client.post(f"{URL}/adaptations", json={"inputs": inputs, **fields})
    assert response.status_code == 201, response.text
    return response.json()


async def test_a_moved_session_is_followed_and_the_version_is_like_any_other(client, rng):
    await calibrate(client, rng)
    report = await adapt(client, unlabelled(rng))
    assert (report["outcome"], report["origin"], report["anchor"]) == ("promoted", "adaptation", 1)
    assert report["version"] == report["active_version"] == 2
    assert report["metrics"]["candidate"]["log_likelihood"] > report["metrics"]["previous"]["log_likelihood"]
    assert await who(client) == ("personal", 2)
    listed = (await client.get(f"{URL}/versions")).json()
    assert [v["version"] for v in listed["versions"]] == [1, 2]
    assert listed["versions"][1]["metrics"] == report["metrics"]
    state = (await client.get(URL)).json()
    assert state["classes"]["fist"]["samples"] == 20, "labelled windows, not those learned from without labels"
    assert (await client.post(f"{URL}/rollback")).json()["active"] == 1
    assert await who(client) == ("personal", 1)


async def test_a_calibration_after_an_adaptation_adds_to_labelled_windows_only(client, rng):
    await calibrate(client, rng)
    await adapt(client, unlabelled(rng))
    again = await calibrate(client, rng)
    assert again["classes"]["rest"] == {"samples": 40, "repetitions": 4, "remaining": 0}


async def test_an_adaptation_begins_at_the_calibrated_head_however_often_it_is_repeated(client, rng):
    await calibrate(client, rng)
    inputs = unlabelled(rng)
    one, two = await adapt(client, inputs), await adapt(client, inputs)
    assert one["anchor"] == two["anchor"] == 1
    assert one["metrics"] == two["metrics"]
    blobs = [(await client.get(f"{URL}/versions/{n}/weights")).content for n in (2, 3)]
    two, three = (safetensors.numpy.load(blob) for blob in blobs)
    np.testing.assert_array_equal(two["weight"], three["weight"])


async def test_windows_of_some_classes_only_change_nothing(client, rng):
    await calibrate(client, rng)
    x, labels = tiny_windows(60, rng, MOVED)
    report = await adapt(client, [w.tolist() for w, name in zip(x, labels, strict=True) if name != "open"])
    assert report["outcome"] == "insufficient"
    assert "open" in report["reason"]
    assert report["version"] == 2
    assert await who(client) == ("personal", 1)


async def test_dry_run_and_never_leave_what_is_served(client, rng):
    await calibrate(client, rng)
    inputs = unlabelled(rng)
    dry = await adapt(client, inputs, dry_run=True)
    assert (dry["outcome"], dry["version"]) == ("promoted", None)
    assert len((await client.get(f"{URL}/versions")).json()["versions"]) == 1
    written = await adapt(client, inputs, activate="never")
    assert (written["outcome"], written["version"], written["active_version"]) == ("kept", 2, 1)
    assert await who(client) == ("personal", 1)
    await client.put(f"{URL}/active", json={"version": 2})
    assert await who(client) == ("personal", 2)
    again = await calibrate(client, rng)
    assert again["classes"]["rest"]["samples"] == 40, "the adapted version carries the labelled statistics"


async def test_binary_adaptation_equals_json(client, rng):
    await calibrate(client, rng)
    x = np.asarray(unlabelled(rng), np.float32)
    head = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    text = orjson.dumps({"inputs": [head], "dry_run": True})
    response = await client.post(
        f"{URL}/adaptations",
        content=text + x.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(text))},
    )
    assert response.json()["metrics"] == (await adapt(client, x.tolist(), dry_run=True))["metrics"]


async def test_without_statistics_or_a_personal_head_it_is_a_422(client, rng):
    inputs = unlabelled(rng, 5)
    refused = await client.post(f"{URL}/adaptations", json={"inputs": inputs})
    assert refused.status_code == 422
    assert "calibrate first" in refused.json()["error"]
    await calibrate(client, rng)
    await client.put(f"{URL}/active", json={"version": "shared"})
    refused = await client.post(f"{URL}/adaptations", json={"inputs": inputs})
    assert refused.status_code == 422


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"labels": ["rest"]}, 400),
        ({"inputs": None}, 400),
        ({"inputs": [[[1.0]]]}, 400),
        ({"activate": "always"}, 400),
        ({"dry_run": 1}, 400),
    ],
)
async def test_malformed_requests_are_refused(client, rng, fields, status):
    body = {"inputs": unlabelled(rng, 2), **fields}
    response = await client.post(f"{URL}/adaptations", json={k: v for k, v in body.items() if v is not None})
    assert response.status_code == status
    assert set(response.json()) == {"error", "code", "request_id"}


async def test_one_at_a_time_and_a_repeated_key_answers_the_same(client, rng):
    await calibrate(client, rng)
    inputs = unlabelled(rng)
    both = await asyncio.gather(*(client.post(f"{URL}/adaptations", json={"inputs": inputs}) for _ in range(2)))
    assert sorted(r.status_code for r in both) == [201, 409]
    headers = {"Idempotency-Key": "k1"}
    one = await client.post(f"{URL}/adaptations", json={"inputs": inputs}, headers=headers)
    two = await client.post(f"{URL}/adaptations", json={"inputs": inputs}, headers=headers)
    assert two.headers["Idempotent-Replay"] == "true"
    assert two.json()["version"] == one.json()["version"]
    other = await client.post(f"{URL}/adaptations", json={"inputs": inputs[:50]}, headers=headers)
    assert other.status_code == 409


async def test_it_is_audited_and_counted(settings, rng):
    app = create_app(settings)
    async with running(app) as client:
        await calibrate(client, rng)
        await adapt(client, unlabelled(rng))
        text = (await client.get("/metrics")).text
        assert 'headway_adaptations_total{model="tiny",outcome="promoted",task=""} 1.0' in text
        assert await accuracy(client, rng, "ana", MOVED) > 0.9


async def test_updates_add_to_what_an_adapted_version_came_from(client, rng):
    await client.put(URL, json={"retention": "features"})
    await calibrate(client, rng)
    for _ in range(3):
        x, _ = tiny_windows(40, rng, MOVED)
        made = await client.post(f"{URL}/adaptations", json={"inputs": x[rng.permutation(len(x))].tolist()})
        assert made.json()["outcome"] == "promoted"
    assert (await client.post(f"{URL}/rollback")).json()["active"] == 3
    report = await calibrate(client, rng, method="logistic")  # needs the features of all windows before
    assert report["classes"]["fist"]["samples"] == 40
