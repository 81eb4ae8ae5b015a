"""Fused models through HTTP: parts by name, missing ones, personal heads, and what is refused."""

import asyncio
import base64
import io
import json
import shutil

import numpy as np
import onnxruntime
import orjson
import pytest

from exporters import bundle as bundles
from models.data.parts import pack
from service.app import create_app
from service.config import Settings
from tests import tiny_fused
from tests.conftest import running

MODEL = "/v2/models/fused"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fused")
    tiny_fused.write_sensors(folder / "models")
    return folder / "models"


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    pytest.importorskip("tokenizers")
    pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("captioned") / "models"
    tiny_fused.write_captioned(folder)
    return folder


def serving(models, tmp_path, **changes):
    # `members` is a folder without versions: no model.
    return running(create_app(Settings(models=models, store=f"sqlite+aiosqlite:///{tmp_path}/h.db", **changes)))


@pytest.fixture
async def client(models, tmp_path):
    async with serving(models, tmp_path) as c:
        yield c


def binary(parts, message=None):
    """A body in the binary layout, and its headers."""
    blobs = [np.ascontiguousarray(x) for x in parts.values()]
    names = {np.dtype("f4"): "FP32", np.dtype("i8"): "INT64", np.dtype("u1"): "UINT8"}
    entries = [
        {"name": n, "datatype": names[x.dtype], "shape": x.shape, "parameters": {"binary_data_size": x.nbytes}}
        for n, x in zip(parts, blobs, strict=True)
    ]
    text = orjson.dumps({**(message or {}), "inputs": entries})
    return {"content": text + b"".join(x.tobytes() for x in blobs), "headers": {LENGTH: str(len(text))}}


async def inferred(client, parts, user=None):
    """Probabilities of an infer request, and the answer's parameters."""
    asked = {"outputs": [{"name": "probabilities"}], "parameters": {} if user is None else {"user_id": user}}
    answer = await client.post(f"{MODEL}/infer", **binary(parts, asked))
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    return np.array(output["data"]).reshape(output["shape"]), answer.json()["parameters"]


async def predicted(client, parts, user=None, model=MODEL):
    """Labels of a predict request."""
    inputs = {n: x.tolist() if isinstance(x, np.ndarray) else x for n, x in parts.items()}
    answer = await client.post(f"{model}/predict{f'?user_id={user}' if user else ''}", json={"inputs": inputs})
    assert answer.status_code == 200, answer.text
    return [row["label"] for row in answer.json()["predictions"]]


def windows(each=4, seed=3, offset=0.0):
    arm, watch, labels = tiny_fused.sensor_windows(each, np.random.default_rng(seed), offset)
    return {"arm": arm, "watch": watch}, labels


async def test_parts_in_binary_and_in_json_answer_alike_together_and_alone(client):
    both, labels = windows()
    for parts in (both, {"arm": both["arm"]}, {"watch": both["watch"]}, dict(reversed(both.items()))):
        found, _ = await inferred(client, parts)
        entries = [
            {"name": n, "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()} for n, x in parts.items()
        ]
        answer = await client.post(f"{MODEL}/infer", json={"inputs": entries, "outputs": [{"name": "probabilities"}]})
        np.testing.assert_allclose(np.array(answer.json()["outputs"][0]["data"]).reshape(found.shape), found, atol=1e-6)
        assert await predicted(client, parts) == labels


async def test_one_window_needs_no_batch(client):
    both, labels = windows()
    one = {name: x[0] for name, x in both.items()}
    assert await predicted(client, one) == labels[:1]


async def test_features_come_of_parts_too(client):
    both, _ = windows()
    answer = await client.post(f"{MODEL}/features", json={"inputs": {n: x.tolist() for n, x in both.items()}})
    assert np.array(answer.json()["features"]).shape == (12, 8 + 3)


async def test_batches_of_users_and_of_requests_with_other_parts_missing_answer_as_each_alone(client):
    both, _labels = windows(8)
    asked = [{n: x[i : i + 2] for n, x in both.items() if (i + 1) & bit} for bit in (1, 2) for i in range(0, 20, 3)]
    asked = [parts or {"arm": both["arm"][:1]} for parts in asked]
    alone = [(await inferred(client, parts))[0] for parts in asked]
    together = await asyncio.gather(*(inferred(client, parts) for parts in asked))
    for one, (found, _) in zip(alone, together, strict=True):
        np.testing.assert_allclose(found, one, atol=1e-6)


# A user whose features are off the population's: the shared head takes their `rest` for something else.
OWN = np.array([3.0, 3.0, 0.0, 0.0])


async def calibrated(client, user, as_json=False):
    both, labels = windows(12, 11, OWN)
    order = np.argsort(np.tile(np.arange(12), 3), kind="stable")
    parts = {n: x[order] for n, x in both.items()}
    names, repetitions = [labels[i] for i in order], (np.arange(36) // 12).tolist()
    message = {"labels": names, "repetitions": repetitions}
    path = f"{MODEL}/users/{user}/calibrations"
    if as_json:
        return await client.post(path, json={**message, "inputs": {n: x.tolist() for n, x in parts.items()}})
    return await client.post(path, **binary(parts, message))


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_user_calibrated_with_all_parts_is_served_by_their_head_with_any(client, as_json):
    answer = await calibrated(client, "ana", as_json)
    assert answer.status_code == 201, answer.text
    assert answer.json()["outcome"] == "promoted"
    both, labels = windows(20, 12, OWN)
    y = np.array([tiny_fused.tiny_prior().labels.index(name) for name in labels])
    scores = {}
    for parts in (both, {"arm": both["arm"]}, {"watch": both["watch"]}):
        own, told = await inferred(client, parts, "ana")
        shared, _ = await inferred(client, parts)
        assert (told["head"], told["head_version"]) == ("personal", 1)
        scores[tuple(parts)] = (own.argmax(1) == y).mean(), (shared.argmax(1) == y).mean()
    assert scores["arm", "watch"][0] > 0.95
    assert all(own > max(0.8, shared) for own, shared in scores.values()), scores


async def test_rows_of_one_batch_may_be_of_many_users(client):
    await calibrated(client, "ana")
    both, _ = windows(2, 12, OWN)
    rows = len(both["arm"])
    names = [b"ana" if i % 2 else b"ben" for i in range(rows)]
    users = {"name": "user_id", "datatype": "BYTES", "shape": [rows], "data": [n.decode() for n in names]}
    entries = [{"name": n, "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()} for n, x in both.items()]
    answer = await client.post(f"{MODEL}/infer", json={"inputs": [users, *entries]})
    outputs = {o["name"]: o for o in answer.json()["outputs"]}
    assert outputs["head"]["data"] == ["personal" if i % 2 else "shared" for i in range(rows)]


async def test_samples_evaluations_and_adaptations_take_parts(client):
    both, labels = windows(6, 11, OWN)
    inputs = {n: x.tolist() for n, x in both.items()}
    await client.put(f"{MODEL}/users/eva", json={"retention": "inputs"})
    added = await client.post(f"{MODEL}/users/eva/samples", json={"inputs": inputs, "labels": labels})
    assert added.status_code == 201, added.text
    assert added.json()["accepted"] > 0
    scored = await client.post(
        f"{MODEL}/users/eva/evaluations", json={"inputs": {"arm": inputs["arm"]}, "labels": labels}
    )
    assert scored.status_code == 200, scored.text
    assert scored.json()["windows"] == len(labels)
    await calibrated(client, "eva")
    adapted = await client.post(f"{MODEL}/users/eva/adaptations", json={"inputs": inputs, "dry_run": True})
    assert adapted.status_code in (200, 201), adapted.text


async def test_a_head_as_one_onnx_file_takes_packed_rows(client, models):
    await calibrated(client, "ana")
    both, _ = windows(4, 12, OWN)
    file = await client.get(f"{MODEL}/users/ana/versions/1/onnx")
    session = onnxruntime.InferenceSession(file.content)
    spec = bundles.read_manifest(models / "fused" / "1")[0].input
    for parts in (both, {"watch": both["watch"]}):
        found, _ = await inferred(client, parts, "ana")
        alone = session.run(["probabilities"], {session.get_inputs()[0].name: pack(spec, parts)})[0]
        np.testing.assert_allclose(alone, found, atol=1e-5)


async def test_repetitions_that_share_samples_of_one_part_are_refused(client):
    signal = np.random.default_rng(0).normal(size=(4, 40)).astype(np.float32)
    watch = np.stack([signal[:, 3 * i : 3 * i + 6] for i in range(8)])
    arm = np.random.default_rng(1).normal(size=(8, 2, 4)).astype(np.float32)
    message = {"labels": ["rest"] * 4 + ["fist"] * 4, "repetitions": [0, 0, 1, 1, 0, 0, 1, 1]}
    answer = await client.post(f"{MODEL}/users/bo/calibrations", **binary({"arm": arm, "watch": watch}, message))
    assert answer.status_code == 422
    assert "share samples" in answer.json()["error"]


async def test_a_model_of_one_input_and_a_fused_one_do_not_take_each_others_requests(models, tmp_path):
    folder = tmp_path / "models"
    shutil.copytree(models / "fused", folder / "fused")
    shutil.copytree(models / "members" / "arm", folder / "arm")
    both, _labels = windows(2)
    async with serving(folder, tmp_path) as client:
        # The same header to a model that has no such input, and so remembered: it says nothing of the fused one.
        for _ in range(3):
            answer = await client.post("/v2/models/arm/infer", **binary({"arm": both["arm"]}))
            assert answer.status_code == 400
            assert "called 'input', not 'arm'" in answer.json()["error"]
            found, _ = await inferred(client, {"arm": both["arm"]})
            assert (found.argmax(1) == np.repeat([0, 1, 2], 2)).all()
            answer = await client.post(f"{MODEL}/infer", **binary({"arm": both["arm"]}))
            assert answer.status_code == 200, answer.text
        answer = await client.post("/v2/models/arm/infer", **binary(both))
        assert answer.status_code == 400
        assert "one input tensor was expected" in answer.json()["error"]


async def test_a_user_of_a_version_of_one_input_gets_the_fused_one_and_the_old_one_says_what_it_takes(models, tmp_path):
    folder = tmp_path / "models"
    shutil.copytree(models / "members" / "arm" / "1", folder / "fused" / "1")
    manifest = json.loads((folder / "fused" / "1" / "manifest.json").read_text())
    (folder / "fused" / "1" / "manifest.json").write_text(json.dumps({**manifest, "name": "fused"}))
    both, labels = windows(12, 11, OWN)
    async with serving(folder, tmp_path) as client:
        order = np.argsort(np.tile(np.arange(12), 3), kind="stable")
        message = {"labels": [labels[i] for i in order], "repetitions": (np.arange(36) // 12).tolist()}
        made = await client.post(f"{MODEL}/users/ana/calibrations", **binary({"input": both["arm"][order]}, message))
        assert made.json()["active_version"] == 1, made.text
        shutil.copytree(models / "fused" / "1", folder / "fused" / "2")
        manifest = json.loads((folder / "fused" / "2" / "manifest.json").read_text())
        (folder / "fused" / "2" / "manifest.json").write_text(json.dumps({**manifest, "version": 2}))
        loaded = await client.post("/v2/repository/models/fused/load")
        assert loaded.status_code == 200, loaded.text
        for user in ("ana", "ben"):
            answer = await client.post(f"{MODEL}/infer", **binary(both, {"parameters": {"user_id": user}}))
            assert answer.json()["model_version"] == "2"
        answer = await client.post(f"{MODEL}/versions/1/infer", **binary(both, {"parameters": {"user_id": "ana"}}))
        assert answer.status_code == 400
        assert "one input tensor was expected" in answer.json()["error"]


ARM, WATCH = [[0.0] * 4] * 2, [[0.0] * 6] * 4


@pytest.mark.parametrize(
    ("inputs", "status", "said"),
    [
        ({}, 400, "no input is given; one or more of 'arm' (FP32 [rows, 2, 4]), 'watch'"),
        ([[0.0] * 4] * 2, 400, "an object with one or more of 'arm'"),
        ("rest", 400, "an object with one or more of 'arm'"),
        ({"leg": ARM}, 400, "there is no input 'leg'; one or more of 'arm'"),
        ({"arm": WATCH}, 400, "input 'arm' must have shape [rows, 2, 4]"),
        ({"arm": [ARM, ARM], "watch": [WATCH]}, 400, "there are arm 2, watch 1"),
        ({"arm": []}, 400, "input 'arm'"),
        ({"arm": None}, 400, "not NoneType"),
        ({"arm": [[1e39] * 4] * 2}, 422, "input 'arm' holds"),
        ({"arm": "aGVsbG8="}, 400, "not str"),
        ({"arm": {"arm": ARM}}, 400, "not dict"),
    ],
)
async def test_predictions_of_something_else_say_what_is_expected(client, inputs, status, said):
    answer = await client.post(f"{MODEL}/predict", json={"inputs": inputs})
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]
    assert answer.json()["code"]
    assert answer.json()["request_id"]


async def test_tensors_of_something_else_say_what_is_expected(client):
    both, _labels = windows(1)
    packed = np.zeros((1, 34), np.float32)
    for parts in ({"input": packed}, {"input": packed, "arm": both["arm"]}):
        answer = await client.post(f"{MODEL}/infer", **binary(parts))
        assert answer.status_code == 400
        assert "no input 'input'; one or more of 'arm'" in answer.json()["error"]
    raw = await client.post(f"{MODEL}/infer", content=packed.tobytes(), headers={LENGTH: "0"})
    assert raw.status_code == 400
    assert "one or more of 'arm'" in raw.json()["error"]
    flat = await client.post(f"{MODEL}/infer", **binary({"arm": np.zeros((3, 8), np.float32)}))
    assert flat.status_code == 400
    assert "shape [rows, 2, 4]" in flat.json()["error"]
    nothing = {"name": "user_id", "datatype": "BYTES", "shape": [1], "data": ["ana"]}
    answer = await client.post(f"{MODEL}/infer", json={"inputs": [nothing]})
    assert answer.status_code == 400
    assert "no input is given" in answer.json()["error"]
    npy = io.BytesIO()
    np.save(npy, packed)
    for kind in ("application/x-npy", "image/png"):
        answer = await client.post(f"{MODEL}/predict", content=npy.getvalue(), headers={"content-type": kind})
        assert answer.status_code == 415
        assert "application/json" in answer.json()["error"]
    answer = await client.post(f"{MODEL}/users/x/calibrations", json={"inputs": [[0.0]], "labels": ["rest"]})
    assert answer.status_code == 400
    assert "an object with one or more" in answer.json()["error"]


async def test_views_of_each_part_are_averaged_and_a_missing_one_stays_missing(client):
    both, _ = windows(3, 21, 0.6 * OWN)  # of which the shared head is not sure
    for parts in (both, {"watch": both["watch"]}):
        inputs = {n: x.tolist() for n, x in parts.items()}
        plain = (await client.post(f"{MODEL}/predict", json={"inputs": inputs})).json()["predictions"]
        answer = await client.post(f"{MODEL}/predict?tta=4", json={"inputs": inputs})
        assert answer.status_code == 200, answer.text
        found = answer.json()["predictions"]
        assert [row["probabilities"] for row in found] != [row["probabilities"] for row in plain]
        assert np.mean([a["label"] == b["label"] for a, b in zip(found, plain, strict=True)]) > 0.7


async def test_texts_have_no_views_and_are_the_same_in_all_of_a_picture(captioned, tmp_path):
    async with serving(captioned, tmp_path) as other:
        texts = {"inputs": {"caption": ["sky", "leaf"]}}
        for query in ("", "?tta=3"):
            answer = await other.post(f"/v2/models/captioned/predict{query}", json=texts)
            assert [row["label"] for row in answer.json()["predictions"]] == ["blue", "green"]


async def test_raw_bytes_are_told_what_the_model_takes_however_long_they_are(client):
    for size in (0, 7, 136):
        answer = await client.post(f"{MODEL}/infer", content=b"x" * size, headers={LENGTH: "0"})
        assert answer.status_code == 400
        assert "is of one input, and this model has several; send JSON" in answer.json()["error"]


async def test_a_window_that_is_not_finite_is_left_out_of_samples_and_the_others_are_enrolled(client):
    both, labels = windows(4, 11)
    both["watch"][5, 2, 0] = np.nan
    message = {"labels": labels}
    answer = await client.post(f"{MODEL}/users/nan/samples", **binary(both, message))
    assert answer.status_code == 201, answer.text
    told = answer.json()["verdicts"]
    assert [v["verdict"] for v in told].count("non_finite") == 1
    assert told[5] == {"verdict": "non_finite", "enrolled": False, "channels": [2 + 2]}
    assert "channel 4 (2 of watch)" in answer.json()["warnings"][0]
    refused = await client.post(f"{MODEL}/users/nan/calibrations", **binary(both, message))
    assert refused.status_code == 422
    assert "input 'watch' holds NaN" in refused.json()["error"]


async def test_what_was_sent_counts_once_without_a_part_and_under_other_numbers(client):
    await calibrated(client, "eve")
    both, labels = windows(12, 11, OWN)
    samples = (await client.get(f"{MODEL}/users/eve/versions/1")).json()["report"]["classes"]
    for parts in (both, {"arm": both["arm"]}, {"watch": both["watch"]}):
        message = {"labels": labels, "repetitions": (np.arange(36) % 5).tolist()}
        answer = await client.post(f"{MODEL}/users/eve/calibrations", **binary(parts, message))
        if len(parts) == 1:
            assert answer.status_code == 422
            assert "none is new" in answer.json()["error"]
            continue
        assert answer.status_code == 201, answer.text
        found = answer.json()["classes"]
        assert {n: c["samples"] for n, c in found.items()} == {n: c["samples"] for n, c in samples.items()}


async def test_metadata_and_configuration_name_the_parts(client):
    told = (await client.get(MODEL)).json()
    assert told["inputs"] == [
        {"name": "arm", "datatype": "FP32", "shape": [-1, 2, 4]},
        {"name": "watch", "datatype": "FP32", "shape": [-1, 4, 6]},
    ]
    parts = told["parameters"]["parts"]
    assert [(p["name"], p["unit"], p["sample_rate"]) for p in parts] == [("arm", "counts", 100.0), ("watch", "g", 50.0)]
    config = (await client.get(f"{MODEL}/config")).json()
    assert [(i["name"], i["optional"]) for i in config["input"]] == [("arm", True), ("watch", True)]


def png(colour):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((30, 20, 3), colour, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


async def test_a_picture_with_its_caption_raw_in_one_request(captioned, tmp_path):
    red, green = png((220, 20, 20)), png((20, 220, 20))
    async with serving(captioned, tmp_path) as client:
        model = "/v2/models/captioned"
        coded = [base64.b64encode(p).decode() for p in (red, green)]
        assert await predicted(client, {"picture": coded, "caption": ["a rose", "the leaf"]}, None, model) == [
            "red",
            "green",
        ]
        assert await predicted(client, {"caption": "sky"}, None, model) == ["blue"]
        assert await predicted(client, {"picture": coded[1]}, None, model) == ["green"]
        tokens = np.array([[4, 0, 0], [2, 3, 1]])
        found = await client.post(f"{model}/infer", **binary({"caption": tokens[:1]}))
        assert next(o for o in found.json()["outputs"] if o["name"] == "label")["data"] == ["blue"]
        as_bytes = [{"name": "picture", "datatype": "BYTES", "shape": [1], "data": ["not a picture"]}]
        answer = await client.post(f"{model}/infer", json={"inputs": as_bytes})
        assert answer.status_code == 422
        assert "neither a JPEG" in answer.json()["error"]
        answer = await client.post(f"{model}/predict", json={"inputs": {"picture": coded, "caption": ["rose"]}})
        assert answer.status_code == 400
        assert "picture 2, caption 1" in answer.json()["error"]


async def test_rows_count_with_the_parts_that_are_missing(captioned, tmp_path):
    row = 4 * (2 + 8 * 8 * 3 + 6)
    async with serving(captioned, tmp_path, max_body_bytes=10 * row) as client:
        for texts, status in ((10, 200), (11, 413)):
            answer = await client.post("/v2/models/captioned/predict", json={"inputs": {"caption": ["sky"] * texts}})
            assert answer.status_code == status, answer.text
        tokens = np.full((11, 1), 4)
        answer = await client.post("/v2/models/captioned/infer", **binary({"caption": tokens}))
        assert answer.status_code == 413
        assert "at most 10" in answer.json()["error"]
