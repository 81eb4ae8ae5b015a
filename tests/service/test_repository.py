"""Versions come and go while requests are answered; one that is broken changes nothing but what is said of it."""

import asyncio
import gc
import shutil
import threading
import weakref

import httpx
import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from service.app import create_app
from service.commands.process import running_service
from service.config import Settings
from service.engine.statistics import Cell
from tests.conftest import running
from tests.tiny import write_tiny_bundle

X = np.ones((1, 2, 4), np.float32)
INFER = {
    "inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 2, 4], "data": X.ravel().tolist()}],
    "outputs": [{"name": "features"}],
}
INDEX, LOAD, UNLOAD = (f"/v2/repository/{what}" for what in ("index", "models/tiny/load", "models/tiny/unload"))


@pytest.fixture
def models(tmp_path):
    write_tiny_bundle(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
async def app(models, tmp_path):
    return create_app(
        Settings(models=models, store=f"sqlite+aiosqlite:///{tmp_path}/h.db", dispatch="thread", max_body_bytes=1 << 20)
    )


@pytest.fixture
async def client(app):
    async with running(app) as c:
        yield c


async def infer(client, version=None):
    where = "/v2/models/tiny" + ("" if version is None else f"/versions/{version}")
    return await client.post(f"{where}/infer", json=INFER)


async def answered(client, version=None):
    """Which version answered, and the first feature, which tells of its backbone."""
    answer = (await infer(client, version)).raise_for_status().json()
    return answer["model_version"], answer["outputs"][0]["data"][0]


def truncated(models, version):
    backbone = write_tiny_bundle(models, version=version) / "backbone.onnx"
    backbone.write_bytes(backbone.read_bytes()[:-20])


async def states(client, **body):
    return [(e["name"], e["version"], e["state"]) for e in (await client.post(INDEX, json=body)).json()]


async def test_requests_in_flight_end_on_the_version_they_began_on(app, client, models, monkeypatch):
    old = app.state.services.models.get("tiny")
    entered, gate, forward = threading.Event(), threading.Event(), old.scheduler._forward

    def gated(x):
        entered.set()
        assert gate.wait(20)
        return forward(x)

    monkeypatch.setattr(old.scheduler, "_forward", gated)
    began = [asyncio.create_task(answered(client))]
    assert await asyncio.to_thread(entered.wait, 10)
    began += [asyncio.create_task(answered(client)) for _ in range(2)]
    while old.memory.counts[0, Cell.PENDING] < 2:
        await asyncio.sleep(0.001)
    write_tiny_bundle(models, version=2, scale=3.0)
    shutil.rmtree(models / "tiny" / "1")
    loaded = (await client.post(LOAD)).raise_for_status().json()
    assert loaded == {"name": "tiny", "loaded": [2], "unloaded": [1], "serving": [2]}
    assert await answered(client) == ("2", 6.0)
    assert not any(task.done() for task in began)
    gate.set()
    assert await asyncio.gather(*began) == [("1", 2.0)] * 3
    assert (await infer(client, 1)).status_code == 404
    assert await states(client) == [("tiny", "2", "READY")]


async def test_what_is_unloaded_leaves_memory_at_once(app, client, models):
    gc.collect()
    gc.disable()  # a service freezes what is there when it loads: a cycle would never be found
    try:
        for version in range(2, 5):
            assert await answered(client) == (str(version - 1), 2.0)
            old = weakref.ref(app.state.services.models.get("tiny").memory)
            write_tiny_bundle(models, version=version)
            shutil.rmtree(models / "tiny" / str(version - 1))
            (await client.post(LOAD)).raise_for_status()
            await app.state.services.models.retired()
            assert old() is None
        old = weakref.ref(app.state.services.models.get("tiny").memory)
        (await client.post(UNLOAD)).raise_for_status()
        await app.state.services.models.retired()
        assert old() is None
    finally:
        gc.enable()


async def test_both_versions_answer_while_both_are_there(client, models):
    write_tiny_bundle(models, version=2, scale=3.0)
    assert await states(client) == [("tiny", "1", "READY"), ("tiny", "2", "UNAVAILABLE")]
    assert (await client.post(LOAD)).json()["serving"] == [1, 2]
    assert (await client.post(LOAD)).json()["loaded"] == []
    assert [await answered(client, v) for v in (None, 1, 2)] == [("2", 6.0), ("1", 2.0), ("2", 6.0)]


async def test_a_broken_version_leaves_the_old_one_serving_and_says_why(client, models):
    truncated(models, 2)
    refused = await client.post(LOAD)
    assert refused.status_code == 422
    assert "version 2" in refused.json()["error"]
    assert "has been altered" in refused.json()["error"]
    assert "served: 1" in refused.json()["error"]
    assert await states(client) == [("tiny", "1", "READY"), ("tiny", "2", "UNAVAILABLE")]
    assert await states(client, ready=True) == [("tiny", "1", "READY")]
    assert "has been altered" in (await client.post(INDEX)).json()[1]["reason"]
    assert (await client.get("/v2/health/ready")).status_code == 200
    assert await answered(client) == ("1", 2.0)
    assert (await infer(client, 2)).status_code == 503
    shutil.rmtree(models / "tiny" / "2")
    write_tiny_bundle(models, version=2, scale=3.0)
    assert (await client.post(LOAD)).json()["loaded"] == [2]
    assert await answered(client) == ("2", 6.0)


async def test_unloaded_is_404_until_it_is_loaded_again(client, models):
    assert (await client.post(UNLOAD, json={"parameters": {"unload_dependents": True}})).json()["unloaded"] == [1]
    for path in ("/v2/models/tiny", "/v2/models/tiny/ready", "/v2/models/tiny/stats", "/v2/models/tiny/config"):
        assert (await client.get(path)).status_code == 404, path
    assert (await infer(client)).json()["code"] == "unknown_model"
    assert (await client.post(UNLOAD)).status_code == 404
    assert (await client.post(INDEX)).json() == [
        {"name": "tiny", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
    ]
    assert (await client.post(LOAD)).json()["loaded"] == [1]
    assert await answered(client) == ("1", 2.0)
    shutil.rmtree(models / "tiny")
    assert (await client.post(LOAD)).status_code == 404
    assert await answered(client) == ("1", 2.0)
    assert (await client.post(LOAD, json={"parameters": {"config": "{}"}})).status_code == 400


async def test_statistics_count_requests_rows_and_failures(client):
    for _ in range(3):
        await answered(client)
    assert (await client.post("/v2/models/tiny/infer", json={})).status_code == 400
    (found,) = (await client.get("/v2/models/tiny/versions/1/stats")).json()["model_stats"]
    assert (await client.get("/v2/models/stats")).json() == {"model_stats": [found]}
    assert (found["name"], found["version"]) == ("tiny", "1")
    assert (found["inference_count"], found["execution_count"]) == (3, 3)
    assert found["last_inference"] > 0
    stats = found["inference_stats"]
    assert {k: v["count"] for k, v in stats.items()} == {
        "success": 3, "fail": 1, "queue": 3, "compute_input": 3, "compute_infer": 3, "compute_output": 3,
        "cache_hit": 0, "cache_miss": 0,
    }  # fmt: skip
    assert stats["success"]["ns"] >= stats["compute_infer"]["ns"] > 0
    (sizes,) = found["batch_stats"]
    assert (sizes["batch_size"], sizes["compute_infer"]["count"]) == (1, 3)


async def test_configuration_is_in_tritons_words(client):
    config = (await client.get("/v2/models/tiny/config")).json()
    assert (await client.get("/v2/models/tiny/versions/1/config")).json() == config
    assert (config["name"], config["platform"], config["max_batch_size"]) == ("tiny", "onnxruntime_onnx", 64)
    assert config["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": [2, 4]}]
    sizes = {o["name"]: o["dims"] for o in config["output"]}
    assert sizes == {"features": [4], "logits": [3], "probabilities": [3], "label": [1], "labels": [3]}
    assert config["parameters"]["dispatch"] == {"string_value": "thread"}


def test_tritons_client_manages_the_repository_of_a_process(models, tmp_path):
    with running_service(models, tmp_path / "store") as service:
        client = tritonclient.http.InferenceServerClient(service.url.removeprefix("http://"))
        ready = {"name": "tiny", "version": "1", "state": "READY", "reason": ""}
        assert client.get_model_repository_index() == [ready]
        assert client.get_model_config("tiny")["max_batch_size"] == 64
        tensor = tritonclient.http.InferInput("input", [1, 2, 4], "FP32")
        tensor.set_data_from_numpy(X)
        client.infer("tiny", [tensor])
        (found,) = client.get_inference_statistics("tiny", "1")["model_stats"]
        assert found["inference_stats"]["success"]["count"] == 1
        client.unload_model("tiny")
        assert not client.is_model_ready("tiny")
        with pytest.raises(InferenceServerException, match="there is no model 'tiny'"):
            client.infer("tiny", [tensor])
        write_tiny_bundle(models, version=2, scale=3.0)
        client.load_model("tiny")
        result = client.infer("tiny", [tensor], outputs=[tritonclient.http.InferRequestedOutput("features")])
        assert result.as_numpy("features").tolist() == [[6.0] * 4]
        assert result.get_response()["model_version"] == "2"
        truncated(models, 3)
        with pytest.raises(InferenceServerException, match="has been altered"):
            client.load_model("tiny")
        assert [e["state"] for e in client.get_model_repository_index()] == ["READY", "READY", "UNAVAILABLE"]
        assert httpx.get(f"{service.url}/v2/health/ready").status_code == 200
        client.close()
