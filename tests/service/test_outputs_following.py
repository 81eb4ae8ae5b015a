"""Heads of several outputs follow their user without labels: each output by itself, those of targets not at all."""

import asyncio

import httpx
import numpy as np
import pytest

from service.app import create_app
from service.commands.process import running_service
from tests.conftest import running
from tests.service.test_multitask import ANA, MODEL, calibrate_angles, infer, ok, predicted, settings_on
from tests.tiny import tiny_windows
from tests.tiny_outputs import angles, gesture, write_tiny_outputs

OFFSET = np.array((1.0, 1.0, 0.0, 0.0))
MOVED = OFFSET + np.array((1.5, -1.0, 1.5, -1.0))
"""Where the user's features are in a later session."""
FAR = np.array((15.0, -15.0, 15.0, -15.0))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_tiny_outputs(folder, gesture(), angles(), gesture("side"))
    return folder


@pytest.fixture
async def client(models, tmp_path):
    async with running(create_app(settings_on(models, tmp_path))) as c:
        yield c


def labelled(rng, **fields):
    x, labels = tiny_windows(20, rng, OFFSET)
    repetitions = [i % 20 // 10 for i in range(len(x))]
    return {"inputs": x.tolist(), "labels": labels, "repetitions": repetitions, "activate": "always", **fields}


async def calibrated(client, rng, *tasks):
    for task in tasks:
        ok(await client.post(f"{ANA}/calibrations?task={task}", json=labelled(rng)), 201)


async def stream(client, rng, offset=MOVED, rows=30, **query):
    x, _ = tiny_windows(rows, rng, offset)
    return await predicted(client, rng.permutation(x), "ana", **query)


async def adaptation(client, task):
    return ok(await client.get(f"{ANA}?task={task}"))["adaptation"]


async def until(condition, seconds=20.0):
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_every_output_with_labels_follows(client, rng):
    await calibrated(client, rng, "gesture", "side")
    await calibrate_angles(client, rng)
    ok(await client.put(ANA, json={"adapt": "on"}))

    async def moved():
        said = (await stream(client, rng))["outputs"]
        return said["gesture"]["head_version"] == said["side"]["head_version"] == 2

    await until(moved)
    outputs = ok(await client.get(ANA))["outputs"]
    assert {name: o["adaptation"] is not None for name, o in outputs.items()} == {
        "gesture": True, "angles": False, "side": True,
    }  # fmt: skip
    report = ok(await client.get(f"{ANA}/versions/2?task=side"))["report"]
    assert (report["origin"], report["task"], report["anchor"], report["causal"]) == ("adaptation", "side", 1, True)
    assert outputs["angles"]["active"] == 1
    scraped = (await client.get("/metrics")).text
    assert 'headway_feature_drift_count{model="arm",task="gesture"}' in scraped
    assert 'headway_feature_drift_count{model="arm",task="side"}' in scraped
    assert 'headway_feature_drift_count{model="arm",task="angles"}' not in scraped
    assert ok(await client.post(f"{ANA}/rollback?task=side"))["active"] == 1
    assert ok(await client.get(ANA))["outputs"]["gesture"]["active"] == 2


async def test_rows_teach_the_outputs_that_answered_them(client, rng):
    await calibrated(client, rng, "gesture", "side")
    ok(await client.put(ANA, json={"adapt": "suggest"}))

    async def learned():
        await stream(client, rng, task="side")
        return await adaptation(client, "side") is not None

    await until(learned)
    assert await adaptation(client, "gesture") is None
    x, _ = tiny_windows(30, rng, MOVED)
    for _ in range(3):
        ok(await infer(client, x, users=["ana", "bob"] * 45, outputs=["gesture.label"]))

    async def both():
        return await adaptation(client, "gesture") is not None

    await until(both)
    told = await adaptation(client, "side")
    assert (told["anchor"], told["published_version"]) == (1, None)


async def test_a_calibration_is_advised_in_the_output_that_drifts(client, rng):
    await calibrated(client, rng, "side")
    ok(await client.put(ANA, json={"adapt": "suggest"}))

    async def advised():
        said = await stream(client, rng, FAR)
        return said["outputs"]["side"].get("recalibration_advised") is True

    await until(advised)
    await calibrated(client, rng, "gesture")
    said = await stream(client, rng, OFFSET, rows=1)
    assert "recalibration_advised" not in {*said, *said["outputs"]["gesture"], *said["outputs"]["angles"]}
    x, _ = tiny_windows(1, rng)
    told = ok(await infer(client, x, user_id="ana"))["parameters"]
    assert (told.get("recalibration_advised"), told["side.recalibration_advised"]) == (None, True)
    assert (await predicted(client, x, "ana", task="side"))["recalibration_advised"] is True
    assert "recalibration_advised" not in await predicted(client, x, "ana", task="gesture")
    assert "recalibration_advised" not in (await predicted(client, x, "bob"))["outputs"]["side"]
    ok(await client.delete(ANA))
    assert "recalibration_advised" not in (await predicted(client, x, "ana"))["outputs"]["side"]


async def test_windows_without_labels_adapt_every_output_under_its_own_guard(client, rng):
    await calibrated(client, rng, "gesture")
    await calibrate_angles(client, rng)
    x, _ = tiny_windows(60, rng, MOVED)
    body = {"inputs": x.tolist()}
    found = ok(await client.post(f"{ANA}/adaptations", json=body), 201)
    assert (found["model"], found["model_version"]) == ("arm", "1")
    said = found["outputs"]
    assert (said["gesture"]["outcome"], said["gesture"]["task"], said["gesture"]["version"]) == (
        "promoted",
        "gesture",
        2,
    )
    assert said["angles"]["outcome"] == said["side"]["outcome"] == "refused"
    assert "do not tell a sensor that moved from values that did" in said["angles"]["reason"]
    assert "calibrate first" in said["side"]["reason"]
    after = (await predicted(client, x[:2], "ana"))["outputs"]
    assert {name: o["head_version"] for name, o in after.items()} == {"gesture": 2, "angles": 1, "side": 0}

    await calibrated(client, rng, "side")
    few = {"inputs": x[:3].tolist()}
    said = ok(await client.post(f"{ANA}/adaptations", json={**few, "dry_run": True}), 201)["outputs"]
    assert {said[name]["version"] for name in ("gesture", "side")} == {None}
    alone = ok(await client.post(f"{ANA}/adaptations?task=side", json=body), 201)
    assert (alone["outcome"], alone["task"], alone["version"], alone["anchor"]) == ("promoted", "side", 2, 1)
    scraped = (await client.get("/metrics")).text
    for task, counted in (("gesture", 1), ("side", 1)):
        line = f'headway_adaptations_total{{model="arm",outcome="promoted",task="{task}"}} {counted}.0'
        assert line in scraped
    assert 'task="angles"' not in "".join(line for line in scraped.splitlines() if "adaptations_total" in line)


async def test_what_cannot_be_adapted_says_why(client, rng):
    body = {"inputs": tiny_windows(5, rng)[0].tolist()}
    refused = await client.post(f"{ANA}/adaptations?task=angles", json=body)
    assert (refused.status_code, "is a regression of elbow, wrist" in refused.json()["error"]) == (422, True)
    nobody = await client.post(f"{ANA}/adaptations", json=body)
    assert nobody.status_code == 422
    assert "gesture: user 'ana' has no statistics" in nobody.json()["error"]
    keyed = await client.post(f"{ANA}/adaptations", json=body, headers={"Idempotency-Key": "1"})
    assert (keyed.status_code, "name it by task, one of gesture, angles, side" in keyed.json()["error"]) == (400, True)


async def test_only_targets_follow_nobody(tmp_path, rng):
    write_tiny_outputs(tmp_path / "models", angles(), angles("low", ((0, 1),)))
    async with running(create_app(settings_on(tmp_path / "models", tmp_path))) as client:
        for chosen in ({"adapt": "on"}, {"retention": "features"}):
            refused = await client.put(ANA, json=chosen)
            assert (refused.status_code, "is a regression" in refused.json()["error"]) == (422, True)
        assert ok(await client.put(ANA, json={"retention": "none"}))["retention"] == "none"


async def test_labels_behind_targets_follow_too(tmp_path, rng):
    """The first output may be of targets: settings are of the user, not of it."""
    write_tiny_outputs(tmp_path / "models", angles(), gesture())
    async with running(create_app(settings_on(tmp_path / "models", tmp_path))) as client:
        await calibrated(client, rng, "gesture")
        ok(await client.put(ANA, json={"adapt": "suggest"}))

        async def learned():
            await stream(client, rng)
            return await adaptation(client, "gesture") is not None

        await until(learned)


def test_front_ends_hand_over_rows_of_every_output(models, tmp_path, rng):
    with (
        running_service(models, tmp_path / "store", "--frontends", "2") as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        for task in ("gesture", "side"):
            ok(client.post(f"{ANA}/calibrations?task={task}", json=labelled(rng)), 201)
        ok(client.put(ANA, json={"adapt": "suggest"}))
        for _ in range(200):
            x, _ = tiny_windows(30, rng, FAR)
            said = ok(client.post(f"{MODEL}/predict?user_id=ana", json={"inputs": x.tolist()}))["outputs"]
            if all(said[task].get("recalibration_advised") for task in ("gesture", "side")):
                break
        else:
            pytest.fail(str(ok(client.get(ANA))))
        assert "recalibration_advised" not in said["angles"]
