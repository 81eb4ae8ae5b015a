"""The data plane: shapes, heads, formats."""

import io

import numpy as np
import orjson
import pytest

from models.heads.head import softmax
from tests.tiny import LABELS, tiny_prior, tiny_windows

OFFSET = np.array([3.0, 3.0, 0.0, 0.0])


def entry(x, **more):
    return {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.tolist(), **more}


async def infer(client, x, *, outputs=None, parameters=None, extra=(), path="/v2/models/tiny/infer"):
    body = {"inputs": [entry(x), *extra]}
    if outputs:
        body["outputs"] = [{"name": name} for name in outputs]
    if parameters:
        body["parameters"] = parameters
    return await client.post(path, json=body)


def outputs(response):
    assert response.status_code == 200, response.text
    return {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in response.json()["outputs"]}


async def calibrated(client, user, rng, offset=OFFSET):
    x, labels = tiny_windows(20, rng, offset)
    body = {"inputs": x.tolist(), "labels": labels, "repetitions": [i % 2 for i in range(len(x))]}
    response = await client.post(f"/v2/models/tiny/users/{user}/calibrations", json=body)
    assert response.status_code == 201, response.text
    return response.json()


async def test_shared_head_answers_as_the_maths_says(client, rng):
    x, labels = tiny_windows(4, rng)
    got = outputs(await infer(client, x, outputs=["features", "logits", "probabilities", "label", "labels"]))
    z = x.reshape(len(x), 4, 2).sum(2)
    prior = tiny_prior()
    logits = z @ prior.generic_weight.T + prior.generic_bias
    assert np.allclose(got["features"], z, atol=1e-5)
    assert np.allclose(got["logits"], logits, atol=1e-3)
    assert np.allclose(got["probabilities"], softmax(logits), atol=1e-5)
    assert got["label"].tolist() == labels
    assert (got["labels"] == np.array(LABELS)).all()


async def test_default_outputs_id_and_who_answered(client, rng):
    x, _ = tiny_windows(1, rng)
    response = await client.post("/v2/models/tiny/infer", json={"id": "a1", "inputs": [entry(x)]})
    answer = response.json()
    assert [o["name"] for o in answer["outputs"]] == ["probabilities", "label"]
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("a1", "tiny", "1")
    assert answer["parameters"] == {"head": "shared", "head_version": 0}
    assert "total;dur=" in response.headers["server-timing"]
    assert response.headers["x-request-id"]


async def test_binary_in_and_out(client, rng):
    x, _ = tiny_windows(2, rng)
    data = x.tobytes()
    head = entry(x, parameters={"binary_data_size": len(data)})
    del head["data"]
    text = orjson.dumps(
        {"inputs": [head], "outputs": [{"name": "features", "parameters": {"binary_data": True}}, {"name": "label"}]}
    )
    headers = {"Inference-Header-Content-Length": str(len(text))}
    response = await client.post("/v2/models/tiny/infer", content=text + data, headers=headers)
    length = int(response.headers["inference-header-content-length"])
    described = orjson.loads(response.content[:length])["outputs"]
    assert described[0] == {
        "name": "features", "datatype": "FP32", "shape": [6, 4], "parameters": {"binary_data_size": 96},
    }  # fmt: skip
    features = np.frombuffer(response.content[length:], "<f4").reshape(6, 4)
    assert np.allclose(features, x.reshape(6, 4, 2).sum(2), atol=1e-5)
    assert described[1]["data"][0] == "rest"


@pytest.mark.parametrize(("datatype", "dtype"), [("INT8", "i1"), ("UINT8", "u1"), ("INT16", "<i2"), ("FP16", "<f2")])
async def test_datatypes_that_cast_exactly(client, datatype, dtype):
    x = np.arange(8).reshape(1, 2, 4).astype(dtype)
    head = {"name": "input", "datatype": datatype, "shape": [1, 2, 4], "parameters": {"binary_data_size": x.nbytes}}
    text = orjson.dumps({"inputs": [head], "outputs": [{"name": "features"}]})
    headers = {"Inference-Header-Content-Length": str(len(text))}
    response = await client.post("/v2/models/tiny/infer", content=text + x.tobytes(), headers=headers)
    assert outputs(response)["features"].tolist() == [[1, 5, 9, 13]]


async def test_a_batch_that_mixes_users_gives_each_row_its_own_head(client, rng):
    offsets = {"ana": OFFSET, "bo": -OFFSET, "cy": np.array([0.0, 0.0, 3.0, 3.0])}
    for user, offset in offsets.items():
        assert (await calibrated(client, user, rng, offset))["outcome"] == "promoted"
    names = ["ana", "bo", "cy", "nobody"] * 5
    x, _ = tiny_windows(7, rng)
    x = x[: len(names)]
    alone = {}
    for user in {*names}:
        alone[user] = outputs(await infer(client, x, outputs=["logits"], parameters={"user_id": user}))["logits"]
    tensor = {"name": "user_id", "datatype": "BYTES", "shape": [len(names)], "data": names}
    got = outputs(await infer(client, x, outputs=["logits", "head", "head_version"], extra=[tensor]))
    for row, user in enumerate(names):
        assert np.allclose(got["logits"][row], alone[user][row], atol=1e-4)
        assert got["head"][row] == ("shared" if user == "nobody" else "personal")
        assert got["head_version"][row] == (0 if user == "nobody" else 1)


async def test_per_row_users_get_head_tensors_by_default(client, rng):
    x, _ = tiny_windows(1, rng)
    tensor = {"name": "user_id", "datatype": "BYTES", "shape": [3], "data": ["a", "b", "c"]}
    answer = (await infer(client, x, extra=[tensor])).json()
    names = ["probabilities", "label", "head", "head_version", "model_version"]
    assert [o["name"] for o in answer["outputs"]] == names
    assert "parameters" not in answer


async def test_head_versions_can_be_asked_for(client, rng):
    x, _ = tiny_windows(1, rng)
    await calibrated(client, "ana", rng)
    await calibrated(client, "ana", rng)
    for version, kind in ((1, "personal"), (2, "personal"), (0, "shared")):
        answer = (await infer(client, x, parameters={"user_id": "ana", "head_version": version})).json()
        assert answer["parameters"] == {"head": kind, "head_version": version}
    response = await infer(client, x, parameters={"user_id": "ana", "head_version": 9})
    assert response.status_code == 409
    assert "no head version 9" in response.json()["error"]


async def test_features_only_runs_no_head(client, rng):
    x, _ = tiny_windows(1, rng)
    answer = (await infer(client, x, outputs=["features"], parameters={"user_id": "who", "fallback": "error"})).json()
    assert "parameters" not in answer


async def test_versioned_urls(client, rng):
    x, _ = tiny_windows(1, rng)
    assert (await infer(client, x, path="/v2/models/tiny/versions/1/infer")).status_code == 200
    response = await infer(client, x, path="/v2/models/tiny/versions/7/infer")
    assert response.status_code == 404
    assert "it has 1" in response.json()["error"]


async def test_predict_json_one_window_and_a_batch(client, rng):
    x, labels = tiny_windows(2, rng)
    one = (await client.post("/v2/models/tiny/predict", json={"inputs": x[0].tolist()})).json()
    many = (await client.post("/v2/models/tiny/predict", json={"inputs": x.tolist()})).json()
    assert len(one["predictions"]) == 1
    assert [p["label"] for p in many["predictions"]] == labels
    prediction = one["predictions"][0]
    assert prediction["probability"] == max(prediction["probabilities"].values())
    assert abs(sum(prediction["probabilities"].values()) - 1) < 1e-5
    assert (one["model"], one["model_version"], one["head"], one["head_version"]) == ("tiny", "1", "shared", 0)


async def test_predict_and_features_npy(client, rng):
    x, labels = tiny_windows(2, rng)
    buffer = io.BytesIO()
    np.save(buffer, x.astype(np.float64))
    headers = {"content-type": "application/x-npy"}
    answer = (await client.post("/v2/models/tiny/predict", content=buffer.getvalue(), headers=headers)).json()
    assert [p["label"] for p in answer["predictions"]] == labels
    headers["accept"] = "application/x-npy"
    response = await client.post("/v2/models/tiny/features", content=buffer.getvalue(), headers=headers)
    assert np.allclose(np.load(io.BytesIO(response.content)), x.reshape(6, 4, 2).sum(2), atol=1e-5)
    plain = await client.post("/v2/models/tiny/features", json={"inputs": x.tolist()})
    assert np.allclose(plain.json()["features"], x.reshape(6, 4, 2).sum(2), atol=1e-5)


async def test_a_request_larger_than_a_batch_is_split_and_joined_in_order(client, rng):
    x = rng.standard_normal((1000, 2, 4)).astype(np.float32)
    got = outputs(await infer(client, x, outputs=["features"]))["features"]
    assert np.allclose(got, x.reshape(1000, 4, 2).sum(2), atol=1e-5)
