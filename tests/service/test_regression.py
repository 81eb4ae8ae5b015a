"""A regression, end to end: values instead of labels, calibrated by targets, everything else served or refused."""

import asyncio

import httpx
import numpy as np
import orjson
import pytest
import safetensors.numpy

from service.app import create_app
from service.client import Client
from service.commands.process import running_service
from service.config import Settings
from service.personal.imports import metadata_of
from tests.conftest import running
from tests.tiny import tiny_windows, write_tiny_bundle
from tests.tiny_regression import NAMES, TRUTH, person, raw, recorded, write_tiny_regression

MODEL = "/v2/models/angles"
URL = f"{MODEL}/users/ana"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a regression, `angles`, beside a classification, `tiny`."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_regression(folder)
    write_tiny_bundle(folder)
    return folder


def settings_on(models, folder):
    return Settings(models=models, store=f"sqlite+aiosqlite:///{folder}/headway.db")


@pytest.fixture
async def client(models, tmp_path):
    async with running(create_app(settings_on(models, tmp_path))) as c:
        yield c


@pytest.fixture
def ana(rng):
    """How the angles of one person follow from the features."""
    return person(rng, 2.0)


def body(rng, who, repetitions=2, windows=40, **fields):
    parts = [recorded(rng, who, windows) for _ in range(repetitions)]
    return {
        "inputs": np.concatenate([x for x, _ in parts]).tolist(),
        "targets": np.concatenate([t for _, t in parts]).tolist(),
        "repetitions": np.repeat(np.arange(repetitions), windows).tolist(),
        **fields,
    }


async def calibrate(client, rng, who, url=URL, **fields):
    answer = await client.post(f"{url}/calibrations", json=body(rng, who, **fields))
    assert answer.status_code == 201, answer.text
    return answer.json()


async def predicted(client, x, user=None, **query):
    params = {**({"user_id": user} if user else {}), **query}
    answer = await client.post(f"{MODEL}/predict", params=params, json={"inputs": x.tolist()})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def said(client, x, user=None):
    rows = (await predicted(client, x, user))["predictions"]
    return np.array([[row["values"][name] for name in NAMES] for row in rows])


async def error(client, rng, who, user=None):
    """Root mean squared error of predictions, over both angles."""
    x, t = recorded(rng, who, 100, noise=0.0)
    return float(np.sqrt(np.mean((await said(client, x, user) - t) ** 2)))


def entry(x, name="input", **more):
    return {"name": name, "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist(), **more}


async def infer(client, x, *, outputs=None, extra=(), url=MODEL, **fields):
    message = {"inputs": [entry(x), *extra], **fields}
    if outputs is not None:
        message["outputs"] = [{"name": name} for name in outputs]
    return await client.post(f"{url}/infer", json=message)


def tensors(answer):
    assert answer.status_code == 200, answer.text
    return {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in answer.json()["outputs"]}


async def test_one_call_and_the_next_request_is_personal(client, rng, ana):
    before = await error(client, rng, ana, "ana")
    report = await calibrate(client, rng, ana)
    assert (report["outcome"], report["evidence"], report["method"]) == ("promoted", "held_out", "ridge"), report
    assert report["version"] == report["active_version"] == 1
    assert (report["windows"], report["repetitions"], report["remembered"]) == (80, 2, True)
    assert set(report["timings_ms"]) == {"features", "fit", "evaluate", "store"}
    assert report["transfer"]["gain"] > 0
    metrics = report["metrics"]
    assert metrics["previous"] is None
    assert metrics["candidate"]["n"] == 80
    assert metrics["candidate"]["r2"] > metrics["shared"]["r2"]
    assert set(metrics["candidate"]["rmse"]) == set(NAMES)
    assert await error(client, rng, ana, "ana") < 0.3 * before
    x, _ = recorded(rng, ana, 1)
    answer = await predicted(client, x, "ana")
    assert (answer["head"], answer["head_version"], answer["model"]) == ("personal", 1, "angles")
    assert set(answer["predictions"][0]) == {"values"}
    assert (await predicted(client, x, "somebody"))["head"] == "shared"
    assert (await predicted(client, x, "ana", head_version=0))["head"] == "shared"


async def test_the_shared_head_says_what_the_population_does(client, rng):
    z = rng.standard_normal((5, 4))
    got = tensors(await infer(client, raw(z), outputs=["features", "value"]))
    assert np.allclose(got["features"], z, atol=1e-5)
    assert np.abs(got["value"] - TRUTH.logits(z)).max() < 10
    usual = (await infer(client, raw(z))).json()
    assert [(o["name"], o["datatype"], o["shape"]) for o in usual["outputs"]] == [("value", "FP32", [5, 2])]
    assert usual["parameters"] == {"head": "shared", "head_version": 0}


async def test_what_is_offered_is_said(client):
    about = (await client.get(MODEL)).json()
    assert about["outputs"] == [
        {"name": "features", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "value", "datatype": "FP32", "shape": [-1, 2]},
    ]
    assert about["parameters"]["task"] == "regression"
    assert about["parameters"]["targets"] == [{"name": "elbow", "unit": "deg"}, {"name": "wrist", "unit": "deg"}]
    assert about["parameters"]["labels"] == []
    config = (await client.get(f"{MODEL}/config")).json()
    assert [o["name"] for o in config["output"]] == ["features", "value"]
    assert (await client.get("/v2/models/tiny")).json()["parameters"]["task"] == "classification"
    described = (await client.get("/openapi.json")).json()
    schema = described["paths"]["/v2/models/{model}/users/{user}/calibrations"]["post"]["requestBody"]
    assert "targets" in schema["content"]["application/json"]["schema"]["properties"]


def with_binary(message, *arrays):
    text = orjson.dumps(message)
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return {"content": text + b"".join(a.tobytes() for a in arrays), "headers": headers}


def binary_entry(x, name="input", datatype="FP32"):
    size = {"binary_data_size": x.nbytes}
    return {"name": name, "datatype": datatype, "shape": list(x.shape), "parameters": size}


async def test_the_same_header_asks_each_model_for_its_own_answers(client, rng):
    """Headers are known again by their bytes; the usual outputs are those of the model's task."""
    x = raw(rng.standard_normal((2, 4)))
    sent = with_binary({"inputs": [binary_entry(x)]}, x)
    for _ in range(2):
        for model, names in (("angles", ["value"]), ("tiny", ["probabilities", "label"])):
            answer = await client.post(f"/v2/models/{model}/infer", **sent)
            assert [o["name"] for o in answer.json()["outputs"]] == names


async def test_binary_values(client, rng):
    x = raw(rng.standard_normal((3, 4)))
    wanted = tensors(await infer(client, x))["value"]
    outputs = [{"name": "value", "parameters": {"binary_data": True}}]
    sent = [with_binary({"inputs": [binary_entry(x)], "outputs": outputs}, x)] * 3  # later its JSON is known
    sent.append({"content": x.tobytes(), "headers": {"Inference-Header-Content-Length": "0"}})
    for each in sent:
        answer = await client.post(f"{MODEL}/infer", **each)
        length = int(answer.headers["inference-header-content-length"])
        assert np.allclose(np.frombuffer(answer.content[length:], "<f4").reshape(3, 2), wanted, atol=1e-4)


async def test_a_batch_that_mixes_users_gives_each_row_its_own_head(client, rng):
    people = {name: person(rng, 2.0) for name in ("ana", "bo", "cy")}
    for user, who in people.items():
        await calibrate(client, rng, who, f"{MODEL}/users/{user}", activate="always")
    names = [*people, "nobody"] * 4
    x, _ = recorded(rng, TRUTH, len(names))
    alone = {u: tensors(await infer(client, x, parameters={"user_id": u}))["value"] for u in {*names}}
    tensor = {"name": "user_id", "datatype": "BYTES", "shape": [len(names)], "data": names}
    got = tensors(await infer(client, x, extra=[tensor]))
    assert list(got) == ["value", "head", "head_version", "model_version"]
    for row, user in enumerate(names):
        assert np.allclose(got["value"][row], alone[user][row], atol=1e-3)
        assert got["head"][row] == ("shared" if user == "nobody" else "personal")
    assert len({tuple(np.round(alone[u][0], 3)) for u in {*names}}) == len({*names})


async def test_binary_targets_equal_json(client, rng, ana):
    given = body(rng, ana, dry_run=True)
    one = (await client.post(f"{URL}/calibrations", json=given)).json()
    x, t = np.array(given["inputs"], np.float32), np.array(given["targets"])
    apart = {**given, "inputs": [binary_entry(x)]}
    together = {**apart, "targets": [binary_entry(t, "targets", "FP64")]}
    for sent in (with_binary(apart, x), with_binary(together, x, t)):
        two = (await client.post(f"{URL}/calibrations", **sent)).json()
        assert two["metrics"] == one["metrics"], two
    cut = {**sent, "content": sent["content"][:-8]}
    assert (await client.post(f"{URL}/calibrations", **cut)).status_code == 400
    assert (await client.get(URL)).status_code == 404  # a dry run stores nothing


async def test_updates_add_up_replace_begins_anew_and_what_is_sent_again_counts_once(client, rng, ana):
    given = body(rng, ana)
    await client.post(f"{URL}/calibrations", json=given)
    again = (await client.post(f"{URL}/calibrations", json={**given, "activate": "always"})).json()
    assert (again["windows"], again["repetitions"]) == (80, 2)
    assert "2 of the repetitions were sent before" in " ".join(again["warnings"])
    second = await calibrate(client, rng, ana, activate="always")
    assert (second["windows"], second["repetitions"]) == (160, 4)
    assert second["metrics"]["previous"]["n"] == 80
    third = await calibrate(client, rng, ana, mode="replace")
    assert (third["windows"], third["repetitions"], third["version"]) == (80, 2, 4)


async def test_what_was_merged_and_is_sent_again_counts_once_too(client, rng, ana):
    given = body(rng, ana, repetitions=12, windows=10, activate="always")
    await client.post(f"{URL}/calibrations", json=given)
    again = (await client.post(f"{URL}/calibrations", json=given)).json()
    assert (again["windows"], again["repetitions"]) == (120, 8)
    assert "12 of the repetitions were sent before" in " ".join(again["warnings"])
    merged = {name: given[name][:20] for name in ("inputs", "targets", "repetitions")}
    nothing = (await client.post(f"{URL}/calibrations", json=merged)).json()
    assert (nothing["outcome"], nothing["evidence"], nothing["remembered"]) == ("insufficient", "none", False)
    assert "sent before" in nothing["reason"]
    assert nothing["active_version"] == again["active_version"]
    assert (await calibrate(client, rng, ana, activate="always"))["windows"] == 200


async def test_windows_whose_sums_cannot_be_kept_are_refused_and_updates_go_on(client, rng, ana):
    await calibrate(client, rng, ana)
    given = body(rng, ana)
    given["inputs"][0][0][0] = 1e20
    answer = await client.post(f"{URL}/calibrations", json=given)
    assert answer.status_code == 422, answer.text
    assert "features squared" in answer.json()["error"]
    assert (await calibrate(client, rng, ana, activate="always"))["windows"] == 160


async def test_statistics_that_are_no_sums_are_not_imported(client, rng, ana):
    await calibrate(client, rng, ana)
    file = (await client.get(f"{URL}/versions/1/weights?statistics=true")).content
    tensors = safetensors.numpy.load(file)
    tensors["statistics.count"] = tensors["statistics.count"] * 2
    sent = safetensors.numpy.save(tensors, metadata_of(file))
    answer = await client.post(f"{MODEL}/users/bob/versions", content=sent)
    assert answer.status_code == 422, answer.text
    assert "as many windows" in answer.json()["error"]


async def test_streamed_calibration_gives_the_same_head_as_one_call(client, rng, ana):
    given = body(rng, ana, repetitions=3, activate="always")
    await client.post(f"{MODEL}/users/whole/calibrations", json=given)
    for r in range(3):
        part = slice(40 * r, 40 * (r + 1))
        some = {"inputs": given["inputs"][part], "targets": given["targets"][part], "activate": "always"}
        assert (await client.post(f"{MODEL}/users/parts/calibrations", json=some)).status_code == 201
    heads = []
    for user, version in (("whole", 1), ("parts", 3)):
        answer = await client.get(f"{MODEL}/users/{user}/versions/{version}/weights")
        heads.append(safetensors.numpy.load(answer.content))
    assert heads[0]["weight"].shape == (2, 4)
    for name in ("weight", "bias"):
        assert np.allclose(heads[0][name], heads[1][name], rtol=1e-4, atol=1e-4)


async def test_a_target_that_was_not_measured_is_named(client, rng, ana):
    given = body(rng, ana)
    given["targets"][4][1] = None
    refused = await client.post(CALIBRATIONS, json=given)
    assert refused.status_code == 400
    assert "row 4 has null for wrist; leave out windows whose targets were not all measured" in refused.json()["error"]
    given["targets"][4] = None
    refused = await client.post(CALIBRATIONS, json=given)
    assert "row 4 is null; leave out" in refused.json()["error"]


async def test_targets_that_do_not_follow_the_windows_are_not_served(client, rng, ana):
    given = body(rng, ana)
    given["targets"] = rng.permutation(np.array(given["targets"])).tolist()
    report = (await client.post(f"{URL}/calibrations", json=given)).json()
    assert (report["outcome"], report["active_version"], report["remembered"]) == ("kept", 0, False), report
    assert "do not follow the windows" in report["reason"]
    assert (await predicted(client, raw(np.zeros((1, 4))), "ana"))["head"] == "shared"


async def test_few_windows_go_by_the_population(client, rng, ana):
    few = await calibrate(client, rng, ana, repetitions=1, windows=5)
    assert (few["outcome"], few["evidence"]) == ("promoted", "population"), few
    assert few["transfer"]["claim"].startswith("expected from 8 other people")
    one = await calibrate(client, rng, ana, f"{MODEL}/users/one", repetitions=1, windows=1)
    assert (one["outcome"], one["evidence"]) == ("insufficient", "population")
    wrong = body(rng, ana, repetitions=1, windows=5)
    wrong["targets"] = (np.array(wrong["targets"]) * 60).tolist()  # in minutes of arc
    odd = (await client.post(f"{MODEL}/users/odd/calibrations", json=wrong)).json()
    assert odd["outcome"] == "insufficient"
    assert "units" in odd["warnings"][0]


async def test_retention_none_begins_anew_and_statistics_age(client, rng, ana):
    assert (await client.put(URL, json={"retention": "none"})).status_code == 200
    await calibrate(client, rng, ana)
    second = await calibrate(client, rng, ana)
    assert (second["windows"], second["remembered"], second["retention"]) == (80, False, "none")
    assert "begun anew" in second["warnings"][0]
    assert (await client.put(URL, json={"retention": "statistics", "half_life_days": 1e-9})).status_code == 200
    await calibrate(client, rng, ana, mode="replace", activate="always")
    await asyncio.sleep(0.05)
    assert (await calibrate(client, rng, ana, activate="always"))["windows"] == 80
    lowered = await client.put(URL, json={"retention": "none"})
    assert lowered.json()["deleted"] is True


async def test_versions_pointer_rollback_and_erasure(client, rng, ana):
    await calibrate(client, rng, ana)
    await calibrate(client, rng, ana, activate="always")
    listed = (await client.get(f"{URL}/versions")).json()
    assert [v["version"] for v in listed["versions"]] == [1, 2]
    assert (await client.get(f"{URL}/versions/1")).json()["report"]["method"] == "ridge"
    state = (await client.get(URL)).json()
    assert (state["state"], state["active"], state["classes"]) == ("calibrated", 2, {})
    assert (await client.post(f"{URL}/rollback")).json()["active"] == 1
    assert (await client.put(f"{URL}/active", json={"version": "shared"})).json()["active"] == "shared"
    assert (await client.put(f"{URL}/active", json={"version": 2})).json()["active"] == 2
    assert (await client.delete(f"{URL}/versions/1")).status_code == 200
    assert [u["user"] for u in (await client.get(f"{MODEL}/users")).json()["users"]] == ["ana"]
    assert (await client.delete(URL)).json()["erased"]
    assert (await client.get(URL)).status_code == 404
    assert (await predicted(client, raw(np.zeros((1, 4))), "ana"))["head"] == "shared"


async def test_an_idempotency_key_answers_the_same(client, rng, ana):
    given, headers = body(rng, ana), {"Idempotency-Key": "k"}
    one = await client.post(f"{URL}/calibrations", json=given, headers=headers)
    two = await client.post(f"{URL}/calibrations", json=given, headers=headers)
    assert two.headers["idempotent-replay"] == "true"
    assert two.json()["calibration_id"] == one.json()["calibration_id"]


async def test_heads_and_users_leave_and_come_back(client, rng, ana):
    await calibrate(client, rng, ana)
    file = (await client.get(f"{URL}/versions/1/weights?statistics=true")).content
    bob = await client.post(f"{MODEL}/users/bob/versions", content=file)
    assert bob.status_code == 201, bob.text
    assert (bob.json()["outcome"], bob.json()["windows"], bob.json()["repetitions"]) == ("promoted", 80, 2)
    assert (await calibrate(client, rng, ana, f"{MODEL}/users/bob", activate="always"))["windows"] == 160
    bare = (await client.get(f"{URL}/versions/1/weights")).content
    kept = await client.post(f"{MODEL}/users/cy/versions", content=bare)
    assert (kept.json()["outcome"], kept.json()["active_version"]) == ("kept", "shared")
    assert (await client.get(f"{MODEL}/users/cy")).status_code == 200
    elsewhere = await client.post("/v2/models/tiny/users/cy/versions", content=bare)
    assert elsewhere.status_code == 422
    assert "feature_space and labels" in elsewhere.json()["error"]
    wrong = safetensors.numpy.save(safetensors.numpy.load(bare), {"feature_space": "fs-other", "targets": "[]"})
    assert (await client.post(f"{MODEL}/users/cy/versions", content=wrong)).status_code == 409
    user = await client.get(f"{URL}/export")
    restored = await client.post(f"{MODEL}/users/dee/import", content=user.content)
    assert restored.status_code == 201, restored.text
    assert (restored.json()["active"], restored.json()["statistics"]) == (1, 1)
    x, _ = recorded(rng, ana, 3)
    assert np.array_equal(await said(client, x, "ana"), await said(client, x, "dee"))
    assert (await calibrate(client, rng, ana, f"{MODEL}/users/dee", activate="always"))["windows"] == 160


async def test_versions_are_scored_on_measured_targets(client, rng, ana):
    await calibrate(client, rng, ana)
    x, t = recorded(rng, ana, 50)
    given = {"inputs": x.tolist(), "targets": t.tolist(), "versions": ["shared", 1, "active"]}
    answer = (await client.post(f"{URL}/evaluations", json=given)).json()
    assert (answer["windows"], answer["targets"]) == (50, list(NAMES))
    assert [v["version"] for v in answer["versions"]] == ["shared", 1]
    for found, user in zip(answer["versions"], (None, "ana"), strict=True):
        rmse = np.sqrt(np.mean((await said(client, x, user) - t) ** 2, 0))
        assert list(found["rmse"].values()) == pytest.approx(rmse.tolist(), rel=1e-4)
    assert answer["versions"][1]["r2"] > answer["versions"][0]["r2"]
    same = await client.post(f"{URL}/evaluations", json={"inputs": x.tolist(), "targets": [[1.0, 2.0]] * 50})
    assert same.json()["versions"][0]["r2"] is None


X = raw(np.zeros((3, 4))).tolist()
T = [[1.0, 2.0]] * 3
GOOD = {"inputs": X, "targets": T}
CALIBRATIONS = f"{URL}/calibrations"
WITHOUT_DATA = {"name": "t", "datatype": "FP32", "shape": [3, 2], "parameters": {"binary_data_size": 24}}
REFUSED = {
    "labels": (CALIBRATIONS, {"inputs": X, "labels": ["rest"] * 3}, 400, "give 'targets'"),
    "targets of labels": ("/v2/models/tiny/users/ana/calibrations", GOOD, 400, "give 'labels'"),
    "no targets": (CALIBRATIONS, {"inputs": X}, 400, "no 'targets'"),
    "nothing": (CALIBRATIONS, {}, 400, "no 'inputs'"),
    "a method": (CALIBRATIONS, {**GOOD, "method": "map"}, 400, "unknown field 'method'"),
    "too few targets": (CALIBRATIONS, {**GOOD, "targets": T[:2]}, 400, "[3, 2], one row of elbow, wrist a window"),
    "too narrow": (CALIBRATIONS, {**GOOD, "targets": [[1.0]] * 3}, 400, "[3, 2]"),
    "flat": (CALIBRATIONS, {**GOOD, "targets": [1.0, 2.0, 3.0]}, 400, "[3, 2]"),
    "ragged": (CALIBRATIONS, {**GOOD, "targets": [[1.0, 2.0], [1.0]]}, 400, "equal lengths"),
    "words": (CALIBRATIONS, {**GOOD, "targets": [["a", "b"]] * 3}, 400, "numbers"),
    "null": (CALIBRATIONS, {**GOOD, "targets": [[1.0, None]] * 3}, 400, "numbers"),
    "huge": (CALIBRATIONS, {**GOOD, "targets": [[1.0, 2.0], [1e300, 2.0], [1.0, 2.0]]}, 422, "first in row 1"),
    "two tensors": (CALIBRATIONS, {**GOOD, "targets": [entry(np.zeros((3, 2)), n) for n in "ab"]}, 400, "one tensor"),
    "no data": (CALIBRATIONS, {**GOOD, "targets": [WITHOUT_DATA]}, 400, "binary_data_size 24"),
    "repetitions short": (CALIBRATIONS, {**GOOD, "repetitions": [0]}, 400, "3 windows and 1 repetitions"),
    "evaluated by labels": (f"{URL}/evaluations", {"inputs": X, "labels": ["rest"] * 3}, 400, "give 'targets'"),
    "samples": (f"{URL}/samples", {"inputs": X, "labels": ["rest"] * 3}, 422, "a regression of elbow, wrist"),
    "adaptations": (f"{URL}/adaptations", {"inputs": X}, 422, "a regression of elbow, wrist"),
    "feedback": (f"{URL}/feedback", {"prediction_id": "0-1", "label": "a"}, 422, "models of labels only"),
    "recalibrate": (f"{MODEL}/users:recalibrate", {}, 422, "models of labels only"),
    "threshold": (f"{MODEL}/predict?threshold=0.5", {"inputs": X}, 400, "threshold, coverage and feedback"),
    "coverage": (f"{MODEL}/predict?coverage=0.9", {"inputs": X}, 400, "no labels to reject"),
    "to be corrected": (f"{MODEL}/predict?feedback=true&user_id=a", {"inputs": X}, 400, "regression"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_a_regression_does_not_take_is_refused_in_a_sentence(client, name):
    url, given, status, text = REFUSED[name]
    answer = await client.post(url, json=given)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "code", "request_id"}
    assert text in answer.json()["error"]


@pytest.mark.parametrize("output", ["label", "labels", "probabilities", "logits", "set", "rejected"])
async def test_outputs_of_labels_are_refused_and_the_others_named(client, output):
    x = raw(np.zeros((1, 4)))
    answer = await infer(client, x, outputs=[output])
    assert answer.status_code == 400
    assert "the outputs are features, value, head, head_version, model_version" in answer.json()["error"]
    value = await infer(client, x, outputs=["value"], url="/v2/models/tiny")
    assert (value.status_code, "no output 'value'" in value.json()["error"]) == (400, True)


async def test_parameters_of_labels_are_refused_in_infer_too(client):
    x = raw(np.zeros((1, 4)))
    for given in ({"threshold": 0.5}, {"coverage": 0.9}, {"feedback": True, "user_id": "ana"}):
        answer = await infer(client, x, parameters=given)
        assert (answer.status_code, "this model is a regression" in answer.json()["error"]) == (400, True)
    outputs = [{"name": "value", "parameters": {"classification": 1}}]
    top = await client.post(f"{MODEL}/infer", json={"inputs": [entry(x)], "outputs": outputs})
    assert top.status_code == 400


async def test_settings_and_files_that_need_labels_are_refused(client, rng, ana):
    for given in ({"retention": "features"}, {"retention": "inputs"}, {"adapt": "on"}, {"adapt": "suggest"}):
        answer = await client.put(URL, json=given)
        assert (answer.status_code, "is a regression" in answer.json()["error"]) == (422, True)
    await calibrate(client, rng, ana)
    answer = await client.get(f"{URL}/samples")
    assert (answer.status_code, answer.json()["code"]) == (422, "unprocessable")
    assert (await client.delete(f"{URL}/samples")).status_code == 422


async def test_versions_of_a_model_are_of_one_task(tmp_path, rng):
    models = tmp_path / "models"
    write_tiny_bundle(models, name="angles")
    write_tiny_regression(models)
    async with running(create_app(settings_on(models, tmp_path))) as client:
        index = (await client.post("/v2/repository/index")).json()
        assert [entry["state"] for entry in index] == ["READY", "UNAVAILABLE"]
        assert "versions of a model are of one task" in index[1]["reason"]
        x, _ = tiny_windows(1, rng)
        assert (await client.post(f"{MODEL}/predict", json={"inputs": x.tolist()})).status_code == 200


async def test_while_versions_change_over_each_row_goes_to_its_users_head(tmp_path, rng, ana):
    models = tmp_path / "models"
    write_tiny_regression(models)
    async with running(create_app(settings_on(models, tmp_path))) as client:
        await calibrate(client, rng, ana)
        write_tiny_regression(models, scale=2.0)
        assert (await client.post("/v2/repository/models/angles/load")).json()["serving"] == [1, 2]
        x, _ = recorded(rng, ana, 4)
        tensor = {"name": "user_id", "datatype": "BYTES", "shape": [4], "data": ["ana", "x", "ana", "x"]}
        got = tensors(await infer(client, x, extra=[tensor]))
        assert got["model_version"].tolist() == [1, 2, 1, 2]
        assert got["head"].tolist() == ["personal", "shared", "personal", "shared"]
        alone = tensors(await infer(client, x, parameters={"user_id": "ana"}))["value"]
        assert np.allclose(got["value"][::2], alone[::2], atol=1e-3)
        assert (await client.get(URL)).json()["state"] == "stale"


def test_front_ends_and_the_client_serve_it_too(models, tmp_path, rng, ana):
    with (
        running_service(models, tmp_path / "store", "--frontends", "2") as service,
        httpx.Client(base_url=service.url, timeout=20) as http,
        Client(service.url) as client,
    ):
        report = http.post(f"{URL}/calibrations", json=body(rng, ana)).json()
        assert report["outcome"] == "promoted", report
        x, t = recorded(rng, ana, 50, noise=0.0)
        errors = {}
        for user in ("ana", "nobody"):
            value, parameters = client.infer("angles", x, user=user, output="value")
            errors[user] = np.sqrt(np.mean((value - t) ** 2))
            assert parameters["head"] == ("personal" if user == "ana" else "shared")
        assert errors["ana"] < 0.3 * errors["nobody"]
        assert http.delete(URL).status_code == 200
        assert client.infer("angles", x, user="ana", output="value")[1]["head"] == "shared"
