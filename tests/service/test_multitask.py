"""Several outputs of one model: one forward, and to each its own heads, guard and versions."""

import asyncio

import httpx
import numpy as np
import orjson
import pytest

from exporters.tasks import add_task
from service.app import create_app
from service.client import Client
from service.commands.process import running_service
from service.config import Settings
from tests import tiny_regression
from tests.conftest import running
from tests.tiny import LABELS, tiny_windows, write_tiny_bundle
from tests.tiny_outputs import angles, gesture, write_tiny_outputs
from tests.tiny_regression import NAMES, person, recorded

MODEL = "/v2/models/arm"
ANA = f"{MODEL}/users/ana"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_tiny_outputs(folder)
    write_tiny_bundle(folder)
    return folder


def settings_on(models, folder, **more):
    return Settings(models=models, store=f"sqlite+aiosqlite:///{folder}/headway.db", **more)


@pytest.fixture
async def client(models, tmp_path):
    async with running(create_app(settings_on(models, tmp_path))) as c:
        yield c


@pytest.fixture
def x(rng):
    return rng.standard_normal((5, 2, 4)).astype(np.float32)


def ok(answer, status=200):
    assert answer.status_code == status, answer.text
    return answer.json()


async def predicted(client, x, user=None, url=MODEL, **query):
    params = {**({"user_id": user} if user else {}), **query}
    return ok(await client.post(f"{url}/predict", params=params, json={"inputs": x.tolist()}))


async def calibrate_gesture(client, rng, user="ana", offset=(3.0, 0, 0, -3.0), url=MODEL, **fields):
    parts = [tiny_windows(6, rng, np.array(offset)) for _ in range(2)]
    body = {
        "inputs": np.concatenate([w for w, _ in parts]).tolist(),
        "labels": [label for _, labels in parts for label in labels],
        "repetitions": np.repeat([0, 1], len(parts[0][0])).tolist(),
        **fields,
    }
    return ok(await client.post(f"{url}/users/{user}/calibrations?task=gesture", json=body), 201)


async def calibrate_angles(client, rng, user="ana", who=None, url=MODEL, **fields):
    who = who or person(rng, 2.0)
    parts = [recorded(rng, who, 40) for _ in range(2)]
    body = {
        "inputs": np.concatenate([w for w, _ in parts]).tolist(),
        "targets": np.concatenate([t for _, t in parts]).tolist(),
        "repetitions": np.repeat([0, 1], 40).tolist(),
        **fields,
    }
    return ok(await client.post(f"{url}/users/{user}/calibrations?task=angles", json=body), 201)


def message(x, users=None, outputs=None, **parameters):
    inputs = [{"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}]
    if users is not None:
        inputs.append({"name": "user_id", "datatype": "BYTES", "shape": [len(users)], "data": users})
    made = {"inputs": inputs, "parameters": parameters}
    return made if outputs is None else {**made, "outputs": [{"name": name} for name in outputs]}


async def infer(client, *args, url=MODEL, **kwargs):
    return await client.post(f"{url}/infer", json=message(*args, **kwargs))


def tensors(answer):
    return {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in ok(answer)["outputs"]}


async def test_one_request_is_answered_by_every_output(client, x):
    answer = await predicted(client, x)
    assert set(answer["outputs"]) == {"gesture", "angles"}
    said = answer["outputs"]["gesture"]
    assert (said["head"], said["head_version"], len(said["predictions"])) == ("shared", 0, 5)
    assert set(said["predictions"][0]["probabilities"]) == set(LABELS)
    assert set(answer["outputs"]["angles"]["predictions"][0]["values"]) == set(NAMES)
    first = {k: v for k, v in answer.items() if k != "outputs"}
    assert first == {**said, "model": "arm", "model_version": "1"}
    assert first == await predicted(client, x, task="gesture")
    alone = await predicted(client, x, task="angles")
    assert alone == {**answer["outputs"]["angles"], "model": "arm", "model_version": "1"}


async def test_the_labels_are_those_of_a_model_of_them_alone(client, x):
    alone = await predicted(client, x, url="/v2/models/tiny")
    assert alone["predictions"] == (await predicted(client, x))["predictions"]


async def test_one_forward_serves_all_outputs(client, x):
    await asyncio.gather(*(predicted(client, x) for _ in range(8)))
    (stats,) = ok(await client.get(f"{MODEL}/stats"))["model_stats"]
    assert stats["inference_count"] == 40


async def test_each_output_is_calibrated_and_the_others_stay_as_they_were(client, rng, x):
    before = await predicted(client, x, "ana")
    report = await calibrate_angles(client, rng)
    assert (report["task"], report["outcome"], report["version"]) == ("angles", "promoted", 1)
    after = await predicted(client, x, "ana")
    assert after["outputs"]["gesture"] == before["outputs"]["gesture"]
    assert after["predictions"] == before["predictions"]
    assert (after["outputs"]["angles"]["head"], after["outputs"]["angles"]["head_version"]) == ("personal", 1)
    assert after["outputs"]["angles"]["predictions"] != before["outputs"]["angles"]["predictions"]

    report = await calibrate_gesture(client, rng)
    assert (report["task"], report["outcome"], report["version"]) == ("gesture", "promoted", 1)
    both = await predicted(client, x, "ana")
    assert both["outputs"]["angles"] == after["outputs"]["angles"]
    assert (both["head"], both["outputs"]["gesture"]["head"]) == ("personal", "personal")
    assert both["predictions"] != before["predictions"]
    assert (await predicted(client, x, "bob"))["outputs"] == before["outputs"]


async def test_heads_are_as_good_as_those_of_a_model_of_one_output(client, rng, x):
    seed = rng.bit_generator.state
    alone = await client.post(
        "/v2/models/tiny/users/ana/calibrations",
        json={"inputs": (parts := tiny_windows(6, rng, 1.5))[0].tolist(), "labels": parts[1]},
    )
    rng.bit_generator.state = seed
    windows, labels = tiny_windows(6, rng, 1.5)
    here = await client.post(f"{ANA}/calibrations?task=gesture", json={"inputs": windows.tolist(), "labels": labels})
    unlike = {"calibration_id", "timings_ms", "model", "task"}
    assert {k: v for k, v in ok(here, 201).items() if k not in unlike} == {
        k: v for k, v in ok(alone, 201).items() if k not in unlike
    }
    assert (await predicted(client, x, "ana"))["predictions"] == (
        await predicted(client, x, "ana", url="/v2/models/tiny")
    )["predictions"]


async def test_infer_answers_tensors_by_name(client, rng, x):
    await calibrate_angles(client, rng)
    usual = ok(await infer(client, x, user_id="ana"))
    assert [o["name"] for o in usual["outputs"]] == ["probabilities", "label", "angles.value"]
    assert usual["parameters"] == {
        "head": "shared", "head_version": 0, "angles.head": "personal", "angles.head_version": 1,
    }  # fmt: skip
    some = ok(await infer(client, x, user_id="ana", outputs=["angles.value", "features", "gesture.label", "label"]))
    got = {o["name"]: o["data"] for o in some["outputs"]}
    assert list(got) == ["angles.value", "features", "gesture.label", "label"]
    assert got["gesture.label"] == got["label"]
    rows = (await predicted(client, x, "ana", task="angles"))["predictions"]
    assert np.allclose(np.array(got["angles.value"]).reshape(5, 2), [[r["values"][n] for n in NAMES] for r in rows])
    alone = ok(await infer(client, x, user_id="ana", outputs=["angles.value"]))
    assert alone["parameters"] == {"angles.head": "personal", "angles.head_version": 1}
    by_task = ok(await infer(client, x, user_id="ana", task="angles"))
    assert by_task["outputs"] == alone["outputs"]
    assert [o["name"] for o in ok(await infer(client, x, outputs=["features"]))["outputs"]] == ["features"]


async def test_a_batch_mixes_users_of_every_output(client, rng, x):
    await calibrate_gesture(client, rng, "ana")
    await calibrate_angles(client, rng, "bob")
    await calibrate_gesture(client, rng, "cleo", (0, 2.0, -2.0, 0))
    await calibrate_angles(client, rng, "cleo")
    users = ["ana", "bob", "cleo", "dora", "ana"]
    got = tensors(await infer(client, x, users))
    assert got["head"].tolist() == ["personal", "shared", "personal", "shared", "personal"]
    assert got["angles.head"].tolist() == ["shared", "personal", "personal", "shared", "shared"]
    assert got["angles.head_version"].tolist() == [0, 1, 1, 0, 0]
    assert got["model_version"].tolist() == [1] * 5
    for i, user in enumerate(users):
        alone = tensors(await infer(client, x[i : i + 1], user_id=user))
        for name in ("probabilities", "angles.value"):
            assert np.allclose(got[name][i], alone[name][0], rtol=1e-5, atol=1e-5), (user, name)


async def test_a_header_that_comes_again_asks_for_the_same(client, rng, x):
    await calibrate_angles(client, rng)

    async def said(user):
        inputs = [
            {"name": "input", "datatype": "FP32", "shape": [5, 2, 4], "parameters": {"binary_data_size": x.nbytes}}
        ]
        outputs = [{"name": "angles.value", "parameters": {"binary_data": True}}]
        head = orjson.dumps({"parameters": {"user_id": user}, "inputs": inputs, "outputs": outputs})
        headers = {"Inference-Header-Content-Length": str(len(head))}
        answer = await client.post(f"{MODEL}/infer", content=head + x.tobytes(), headers=headers)
        return orjson.loads(answer.content[: int(answer.headers["inference-header-content-length"])])["parameters"]

    for _ in range(2):
        assert await said("ana") == {"angles.head": "personal", "angles.head_version": 1}
        assert await said("bob") == {"angles.head": "shared", "angles.head_version": 0}
    scraped = (await client.get("/metrics")).text
    assert 'headway_predictions_total{head="personal",model="arm",task="angles"} 10.0' in scraped
    assert 'headway_predictions_total{head="shared",model="arm",task="angles"} 10.0' in scraped
    assert 'headway_predictions_total{head="shared",model="arm",task="gesture"} 0.0' in scraped


async def test_raw_binary_and_parameters_of_one_output(client, rng, x):
    await calibrate_gesture(client, rng)
    raw = {"headers": {"Inference-Header-Content-Length": "0"}, "content": x.tobytes()}
    answer = await client.post(f"{MODEL}/infer?task=angles&user_id=ana", **raw)
    at = int(answer.headers["inference-header-content-length"])
    assert [o["name"] for o in orjson.loads(answer.content[:at])["outputs"]] == ["angles.value"]
    strict = await predicted(client, x, "ana", task="gesture", threshold=1.0, coverage=0.9, head_version=1)
    assert strict["rejected"] == sum(row["probability"] < 1.0 for row in strict["predictions"]) > 0
    assert all(row["set"] for row in strict["predictions"])
    listed = ok(await infer(client, x, user_id="ana", task="gesture", threshold=1.0))
    assert [o["name"] for o in listed["outputs"]] == ["probabilities", "label", "rejected"]
    assert (await predicted(client, x, "ana", head_version=0))["head"] == "shared"


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ({"task": "force"}, 400, "no output 'force'; it has gesture, angles"),
        ({"head_version": 1, "user_id": "ana"}, 400, "head_version is about one output"),
        ({"threshold": 0.0}, 400, "threshold is about one output"),
        ({"feedback": "true", "user_id": "ana"}, 400, "feedback is about one output"),
        ({"task": "angles", "threshold": 0.5}, 400, "is a regression"),
        ({"user_id": "ana", "fallback": "error"}, 404, "no head"),
    ],
)
async def test_what_is_about_one_output_says_so(client, x, query, status, says):
    answer = await client.post(f"{MODEL}/predict", params=query, json={"inputs": x.tolist()})
    assert (answer.status_code, says in answer.json()["error"]) == (status, True), answer.text


async def test_fallback_is_of_the_outputs_that_are_asked_for(client, rng, x):
    await calibrate_angles(client, rng)
    body = {"inputs": x.tolist()}
    both = await client.post(f"{MODEL}/predict?user_id=ana&fallback=error", json=body)
    assert both.status_code == 404
    one = await client.post(f"{MODEL}/predict?user_id=ana&fallback=error&task=angles", json=body)
    assert ok(one)["head"] == "personal"


@pytest.mark.parametrize(
    ("outputs", "parameters", "says"),
    [
        (["angles.label"], {}, "there is no output 'angles.label'"),
        (["force.value"], {}, "there is no output 'force.value'"),
        (["label"], {"task": "gesture"}, "not both"),
        (None, {"task": "force"}, "no output 'force'; it has gesture, angles"),
        (None, {"task": 3}, "must be the name of an output"),
    ],
)
async def test_a_tensor_that_is_not_there_is_refused(client, x, outputs, parameters, says):
    answer = await infer(client, x, outputs=outputs, **parameters)
    assert (answer.status_code, says in answer.json()["error"]) == (400, True), answer.text


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("POST", "users/ana/calibrations"),
        ("POST", "users/ana/samples"),
        ("GET", "users/ana/samples"),
        ("POST", "users/ana/evaluations"),
        ("GET", "users/ana/versions"),
        ("PUT", "users/ana/active"),
        ("POST", "users/ana/rollback"),
        ("GET", "users/ana/versions/1/weights"),
        ("GET", "users"),
    ],
)
async def test_a_change_says_of_which_output_it_is(client, verb, path):
    body = {} if verb == "GET" else {"json": {"version": "shared"}}
    for query, says in (
        ("", "model 'arm' has several outputs: name one by task, one of gesture, angles"),
        ("?task=force", "model 'arm' has no output 'force'; it has gesture, angles"),
    ):
        answer = await client.request(verb, f"{MODEL}/{path}{query}", **body)
        assert (answer.status_code, answer.json()["error"]) == (400, says)
    answer = await client.request(verb, f"/v2/models/tiny/{path}?task=force", **body)
    assert answer.status_code == 400
    assert "has one output, which has no name" in answer.json()["error"]


async def test_one_output_is_rolled_back_alone(client, rng, x):
    await calibrate_gesture(client, rng)
    await calibrate_angles(client, rng)
    before = (await predicted(client, x, "ana"))["outputs"]
    await calibrate_angles(client, rng, mode="replace", activate="always")
    assert (await predicted(client, x, "ana"))["outputs"]["angles"]["head_version"] == 2
    assert ok(await client.post(f"{ANA}/rollback?task=angles"))["active"] == 1
    assert (await predicted(client, x, "ana"))["outputs"] == before
    listed = ok(await client.get(f"{ANA}/versions?task=angles"))
    assert [v["version"] for v in listed["versions"]] == [1, 2]
    assert len(ok(await client.get(f"{ANA}/versions?task=gesture"))["versions"]) == 1
    ok(await client.put(f"{ANA}/active?task=gesture", json={"version": "shared"}))
    after = (await predicted(client, x, "ana"))["outputs"]
    assert (after["gesture"]["head"], after["angles"]) == ("shared", before["angles"])


async def test_a_user_is_told_by_output_and_erased_from_all(client, rng, x):
    assert (await client.get(ANA)).status_code == 404
    shared = await predicted(client, x)
    await calibrate_angles(client, rng)
    about = ok(await client.get(ANA))
    assert (about["user"], set(about["outputs"])) == ("ana", {"angles"})
    assert about["outputs"]["angles"]["state"] == "calibrated"
    assert (await client.get(f"{ANA}?task=gesture")).status_code == 404, "nobody is stale for another output's head"
    await calibrate_gesture(client, rng)
    assert {o["active"] for o in ok(await client.get(ANA))["outputs"].values()} == {1}
    assert [u["user"] for u in ok(await client.get(f"{MODEL}/users?task=gesture"))["users"]] == ["ana"]
    assert ok(await client.get(f"{MODEL}/users?task=gesture&state=stale"))["users"] == []
    receipt = ok(await client.delete(ANA))
    assert receipt["rows"] >= 4
    assert (await predicted(client, x, "ana"))["outputs"] == shared["outputs"]
    assert (await client.get(ANA)).status_code == 404
    for task in ("gesture", "angles"):
        assert ok(await client.get(f"{ANA}/versions?task={task}"))["versions"] == []


async def test_samples_are_enrolled_and_forgotten_by_output(client, rng):
    windows, labels = tiny_windows(6, rng, 1.0)
    body = {"inputs": windows.tolist(), "labels": labels}
    ok(await client.post(f"{ANA}/samples?task=gesture", json=body), 201)
    await calibrate_angles(client, rng)
    refused = await client.post(f"{ANA}/samples?task=angles", json=body)
    assert refused.status_code == 422
    assert "(output 'angles') is a regression" in refused.json()["error"]
    left = ok(await client.delete(f"{ANA}/samples?task=gesture"))
    assert left["samples"] == 0
    again = await calibrate_angles(client, rng)
    assert again["windows"] == 160, "statistics of the other output are still there"


async def test_lower_retention_reaches_every_output(models, tmp_path, rng):
    write_tiny_outputs(tmp_path / "models", gesture(), gesture("side"), angles())
    async with running(create_app(settings_on(tmp_path / "models", tmp_path))) as client:
        ok(await client.put(ANA, json={"retention": "features"}))
        windows, labels = tiny_windows(6, rng, 1.0)
        for task in ("gesture", "side"):
            body = {"inputs": windows.tolist(), "labels": labels}
            ok(await client.post(f"{ANA}/samples?task={task}", json=body), 201)
        ok(await client.put(ANA, json={"retention": "statistics"}))
        for task in ("gesture", "side"):
            assert ok(await client.get(f"{ANA}/samples?task={task}"))["samples"] == len(windows)
        await calibrate_angles(client, rng)
        ok(await client.put(ANA, json={"retention": "none"}))
        assert ok(await client.get(f"{ANA}/samples?task=side"))["samples"] == 0
        assert (await calibrate_angles(client, rng))["windows"] == 80


async def test_evaluations_and_feedback_are_of_one_output(client, rng, x):
    windows, labels = tiny_windows(4, rng)
    body = {"inputs": windows.tolist(), "labels": labels}
    scored = ok(await client.post(f"{ANA}/evaluations?task=gesture", json=body))
    assert scored["versions"][0]["accuracy"] > 0.9
    w, t = recorded(rng, tiny_regression.TRUTH, 20)
    body = {"inputs": w.tolist(), "targets": t.tolist()}
    assert set(ok(await client.post(f"{ANA}/evaluations?task=angles", json=body))["versions"][0]["rmse"]) == set(NAMES)
    told = await predicted(client, windows[:1], "ana", task="gesture", feedback=True)
    answer = {"prediction_id": told["prediction_id"], "label": "fist"}
    assert ok(await client.post(f"{ANA}/feedback?task=gesture", json=answer), 201)["accepted"] == 1


async def test_a_correction_is_of_the_output_that_answered(tmp_path, rng):
    write_tiny_outputs(tmp_path / "models", gesture(), gesture("side"))
    async with running(create_app(settings_on(tmp_path / "models", tmp_path))) as client:
        windows, _ = tiny_windows(1, rng)
        told = await predicted(client, windows[:1], "ana", task="side", feedback=True)
        answer = {"prediction_id": told["prediction_id"], "label": "fist"}
        wrong = await client.post(f"{ANA}/feedback?task=gesture", json=answer)
        assert (wrong.status_code, "is of the output 'side'" in wrong.json()["error"]) == (409, True)
        assert ok(await client.post(f"{ANA}/feedback?task=side", json=answer), 201)["accepted"] == 1
        assert (await client.get(f"{ANA}/samples?task=gesture")).status_code == 404


async def test_a_user_is_taken_along_with_all_outputs(client, models, tmp_path, rng, x):
    await calibrate_gesture(client, rng)
    await calibrate_angles(client, rng)
    before = await predicted(client, x, "ana")
    file = (await client.get(f"{ANA}/export")).content
    assert (await client.get(f"{ANA}/export")).content == file
    one = (await client.get(f"{ANA}/export?task=angles")).content
    (tmp_path / "other").mkdir()
    async with running(create_app(settings_on(models, tmp_path / "other"))) as other:
        ben = f"{MODEL}/users/ben"
        restored = ok(await other.post(f"{ben}/import", content=file), 201)
        assert {name: o["active"] for name, o in restored["outputs"].items()} == {"gesture": 1, "angles": 1}
        assert (await predicted(other, x, "ben")) == before
        assert (await other.post(f"{ben}/import", content=file)).status_code == 409
        ok(await other.delete(ben))
        assert ok(await other.post(f"{ben}/import?task=angles", content=one), 201)["active"] == 1
        assert (await predicted(other, x, "ben"))["outputs"]["angles"] == before["outputs"]["angles"]
        wrong = await other.post(f"{MODEL}/users/cleo/import?task=gesture", content=one)
        assert wrong.status_code == 409
        assert "belongs to feature space" in wrong.json()["error"]
        flipped = bytearray(file)
        flipped[file.rindex(b"weight") + 200] ^= 1
        refused = (one, 400, "by task"), (file[:-30], 422, "damaged"), (bytes(flipped), 422, "damaged")
        for content, status, says in refused:
            answer = await other.post(f"{MODEL}/users/dora/import", content=content)
            assert (answer.status_code, says in answer.json()["error"]) == (status, True), answer.text
        assert (await other.get(f"{MODEL}/users/dora")).status_code == 404


async def test_a_file_of_one_output_leaves_what_is_enrolled_for_another(tmp_path, rng):
    write_tiny_outputs(tmp_path / "models", gesture(), gesture("side"))
    async with running(create_app(settings_on(tmp_path / "models", tmp_path))) as client:
        await calibrate_gesture(client, rng, "ben")
        file = (await client.get(f"{MODEL}/users/ben/export?task=gesture")).content
        ok(await client.put(ANA, json={"retention": "features"}))
        windows, labels = tiny_windows(6, rng, 1.0)
        ok(await client.post(f"{ANA}/samples?task=side", json={"inputs": windows.tolist(), "labels": labels}), 201)
        told = ok(await client.post(f"{ANA}/import?task=gesture&replace=true", content=file), 201)
        assert (told["retention"], told["active"]) == ("statistics", 1)
        assert ok(await client.get(f"{ANA}/samples?task=side"))["samples"] == len(windows)


async def test_a_head_is_taken_along_to_its_own_output_only(client, rng):
    await calibrate_gesture(client, rng)
    file = (await client.get(f"{ANA}/versions/1/weights?task=gesture")).content
    made = await client.post(f"{MODEL}/users/ben/versions?task=gesture&activate=always", content=file)
    assert ok(made, 201)["active_version"] == 1
    assert (await client.post(f"{MODEL}/users/ben/versions?task=angles", content=file)).status_code == 422
    onnx = await client.get(f"{ANA}/versions/1/onnx?task=gesture")
    assert onnx.status_code == 200


async def test_what_is_offered_is_said(client):
    about = ok(await client.get(MODEL))
    names = [o["name"] for o in about["outputs"]]
    assert names == ["features", "logits", "probabilities", "label", "labels", "angles.value"]
    outputs = about["parameters"]["outputs"]
    assert {name: o["task"] for name, o in outputs.items()} == {"gesture": "classification", "angles": "regression"}
    assert outputs["gesture"]["feature_space"] == about["parameters"]["feature_space"]
    assert outputs["angles"]["feature_space"].endswith("/angles")
    config = ok(await client.get(f"{MODEL}/config"))
    assert config["output"][-1] == {"name": "angles.value", "data_type": "TYPE_FP32", "dims": [2]}
    assert "outputs" not in ok(await client.get("/v2/models/tiny"))["parameters"]


async def test_views_are_averaged_in_every_output(client, x):
    many = await predicted(client, x, tta=4)
    assert len(many["outputs"]["angles"]["predictions"]) == 5
    probabilities = [sum(r["probabilities"].values()) for r in many["predictions"]]
    assert np.allclose(probabilities, 1, atol=1e-5)
    assert many["predictions"] == (await predicted(client, x, tta=4, task="gesture"))["predictions"]


async def test_outputs_read_the_features_that_they_name(tmp_path, rng, x):
    tasks = gesture("side"), gesture(), angles("low", ((0, 1), (3, 4)))
    write_tiny_outputs(tmp_path / "models", *tasks)
    async with running(create_app(settings_on(tmp_path / "models", tmp_path))) as client:
        same = x.copy()
        same[:, 0, 2:] += 5.0  # the second of four features, which `low` does not read
        one, two = await predicted(client, x), await predicted(client, same)
        assert one["outputs"]["low"] == two["outputs"]["low"]
        assert one["outputs"]["side"] != two["outputs"]["side"]
        assert one["outputs"]["side"]["predictions"] == one["outputs"]["gesture"]["predictions"]
        w, t = recorded(rng, person(rng, 2.0), 60)
        body = {"inputs": w.tolist(), "targets": t.tolist(), "activate": "always"}
        ok(await client.post(f"{ANA}/calibrations?task=low", json=body), 201)
        one, two = await predicted(client, x, "ana"), await predicted(client, same, "ana")
        assert one["outputs"]["low"] == two["outputs"]["low"]
        assert one["outputs"]["low"]["head"] == "personal"


async def test_an_output_is_added_while_users_keep_their_heads(tmp_path, rng, x):
    folder = tmp_path / "models"
    first = write_tiny_bundle(folder, "arm")
    async with running(create_app(settings_on(folder, tmp_path))) as client:
        windows, labels = tiny_windows(6, rng, 1.5)
        body = {"inputs": [*windows.tolist()] * 2, "labels": labels * 2, "repetitions": [0] * 18 + [1] * 18}
        ok(await client.post(f"{ANA}/calibrations", json={**body, "activate": "always"}), 201)
        before = await predicted(client, x, "ana")
        add_task(first, folder, angles(), called="gesture")
        ok(await client.post("/v2/repository/models/arm/load"))
        after = await predicted(client, x, "ana")
        assert after["model_version"] == "2"
        assert (after["predictions"], after["head_version"]) == (before["predictions"], 1)
        assert after["outputs"]["angles"]["head"] == "shared"
        old = ok(await client.post(f"{MODEL}/versions/1/infer", json=message(x, user_id="ana")))
        assert [o["name"] for o in old["outputs"]] == ["probabilities", "label"]


async def test_an_unversioned_request_goes_where_the_user_has_a_head(tmp_path, rng, x):
    """While the backbone changes with the outputs, who has a head in the older version is answered by it."""
    folder = tmp_path / "models"
    write_tiny_bundle(folder, "arm")
    async with running(create_app(settings_on(folder, tmp_path))) as client:
        windows, labels = tiny_windows(6, rng, 1.5)
        body = {"inputs": windows.tolist(), "labels": labels, "activate": "always"}
        ok(await client.post(f"{ANA}/calibrations", json=body), 201)
        write_tiny_outputs(folder, scale=2.0)
        ok(await client.post("/v2/repository/models/arm/load"))
        ana = await predicted(client, x, "ana")
        assert (ana["model_version"], ana["head"]) == ("1", "personal")
        assert "outputs" not in ana
        asked = await predicted(client, x, "ana", task="gesture")
        assert (asked["model_version"], asked["predictions"]) == ("1", ana["predictions"])
        listed = ok(await infer(client, x, user_id="ana", outputs=["gesture.label", "probabilities"]))
        assert (listed["model_version"], [o["name"] for o in listed["outputs"]]) == (
            "1", ["gesture.label", "probabilities"],
        )  # fmt: skip
        asked = await predicted(client, x, "ana", task="angles")
        assert (asked["model_version"], asked["head"]) == ("2", "shared")
        usual = ok(await infer(client, x, user_id="ana"))
        assert (usual["model_version"], len(usual["outputs"])) == ("1", 2)
        assert ok(await client.get(f"{ANA}?task=gesture"))["state"] == "stale"
        assert (await client.get(f"{ANA}?task=angles")).status_code == 404
        await calibrate_angles(client, rng)
        ana = await predicted(client, x, "ana")
        assert (ana["model_version"], ana["outputs"]["angles"]["head"]) == ("2", "personal")
        got = tensors(await infer(client, x[:2], ["ana", "bob"]))
        assert got["model_version"].tolist() == [2, 2]


async def test_users_of_an_output_are_moved_to_another_backbone(tmp_path, rng, x):
    folder = tmp_path / "models"
    write_tiny_bundle(folder, "arm")
    async with running(create_app(settings_on(folder, tmp_path))) as client:
        ok(await client.put(ANA, json={"retention": "inputs"}))
        parts = [tiny_windows(6, rng, 1.5) for _ in range(2)]
        body = {
            "inputs": np.concatenate([w for w, _ in parts]).tolist(),
            "labels": [label for _, labels in parts for label in labels],
            "repetitions": np.repeat([0, 1], 18).tolist(),
        }
        ok(await client.post(f"{ANA}/calibrations", json=body), 201)
        write_tiny_outputs(folder)
        write_tiny_outputs(folder, scale=1.25)
        ok(await client.post("/v2/repository/models/arm/load"))
        assert (await client.post(f"{MODEL}/users:recalibrate", json={})).status_code == 400
        assert (await client.post(f"{MODEL}/users:recalibrate?task=angles", json={})).status_code == 422
        begun = ok(await client.post(f"{MODEL}/users:recalibrate?task=gesture", json={}), 202)
        assert begun["progress"]["total"] == 1
        async with asyncio.timeout(20):
            while (found := ok(await client.get(f"/v2/operations/{begun['operation']}")))["state"] != "done":
                await asyncio.sleep(0.02)
        assert found["progress"]["moved"] == 1, found
        answer = await predicted(client, x, "ana")
        assert (answer["model_version"], answer["head"]) == ("3", "personal")
        assert answer["outputs"]["angles"]["head"] == "shared"


async def test_outputs_are_added_and_not_taken_away(tmp_path):
    folder = tmp_path / "models"
    write_tiny_outputs(folder)
    write_tiny_bundle(folder, "arm", version=2)
    async with running(create_app(settings_on(folder, tmp_path))) as client:
        listed = (await client.post("/v2/repository/index")).json()
        reasons = {entry["version"]: entry["reason"] for entry in listed}
        assert "may add outputs to those of the versions before it" in reasons["2"]
        assert "version 1 the outputs gesture, angles" in reasons["2"]


def test_front_ends_answer_every_output(models, tmp_path, rng, x):
    with (
        running_service(models, tmp_path / "store", "--frontends", "2") as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):

        def said(user):
            answer = client.post(f"{MODEL}/predict?user_id={user}", json={"inputs": x.tolist()})
            return ok(answer)["outputs"]

        shared = [said("ana") for _ in range(4)]
        who = person(rng, 2.0)
        w, t = recorded(rng, who, 60)
        body = {"inputs": w.tolist(), "targets": t.tolist(), "activate": "always"}
        ok(client.post(f"{ANA}/calibrations?task=angles", json=body), 201)
        for _ in range(4):
            outputs = said("ana")
            assert outputs["gesture"] == shared[0]["gesture"]
            assert (outputs["angles"]["head"], outputs["angles"]["head_version"]) == ("personal", 1)
        ok(client.delete(ANA))
        assert [said("ana") for _ in range(4)] == shared
        with Client(service.url) as python:
            windows, labels = tiny_windows(6, rng, 1.5)
            report = python.calibrate("arm", "ben", windows, labels, task="gesture", activate="always")
            assert (report["task"], report["version"]) == ("gesture", 1)
            values, who = python.infer("arm", x, user="ben", output="angles.value")
            assert (values.shape, who) == ((5, 2), {"angles.head": "shared", "angles.head_version": 0})


async def test_a_label_that_a_row_does_not_have_is_never_in_a_batch_over_versions(tmp_path, rng):
    models = tmp_path / "models"
    write_tiny_outputs(models, angles(), gesture("grip", user_labels=3))
    async with running(create_app(settings_on(models, tmp_path))) as client:
        x, labels = tiny_windows(8, rng, np.array([3.0, 0, 0, -3]))
        repetitions = [(i % 8) // 4 for i in range(len(labels))]
        body = {"inputs": x.tolist(), "labels": labels, "repetitions": repetitions, "activate": "always"}
        ok(await client.post(f"{ANA}/calibrations?task=grip", json=body), 201)
        write_tiny_outputs(models, angles(), gesture("grip", user_labels=3), scale=2.0)
        ok(await client.post("/v2/repository/models/arm/load"))
        own = {"inputs": np.concatenate([x, x[:8] + 4]).tolist(), "labels": [*labels, *["pinch"] * 8]}
        body = {**body, **own, "repetitions": repetitions + repetitions[:8]}
        ok(await client.post(f"{MODEL}/users/bob/calibrations?task=grip", json=body), 201)
        answer = ok(await infer(client, x[:2], ["ana", "bob"], ["grip.logits", "grip.probabilities"]))
        logits, probabilities = (np.array(o["data"]).reshape(o["shape"]) for o in answer["outputs"])
    assert logits.shape == (2, 4)
    assert logits[0, 3] < logits[0, :3].min()
    assert probabilities[0, 3] == 0
