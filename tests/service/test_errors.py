"""Every refusal has its status, its code and a sentence that names what was wrong; and the service goes on."""

import functools
import io
import pickle

import numpy as np
import orjson
import pytest

from tests.tiny import tiny_windows

URL = "/v2/models/tiny"
GOOD = {"name": "input", "datatype": "FP32", "shape": [1, 2, 4], "data": [0.0] * 8}


def infer(**change):
    return {"inputs": [{**GOOD, **change}]}


def calibration(**change):
    x, labels = tiny_windows(2, np.random.default_rng(0))
    return {"inputs": x.tolist(), "labels": labels, **change}


def nan_binary():
    data = np.full((1, 2, 4), np.nan, np.float32).tobytes()
    head = {"name": "input", "datatype": "FP32", "shape": [1, 2, 4], "parameters": {"binary_data_size": 32}}
    text = orjson.dumps({"inputs": [head]})
    return {"content": text + data, "headers": {"Inference-Header-Content-Length": str(len(text))}}


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return {"content": buffer.getvalue(), "headers": {"content-type": "application/x-npy"}}


DEEP = functools.reduce(lambda inner, _: [inner], range(20), "a")

CASES = {
    "wrong shape": (f"{URL}/infer", {"json": infer(shape=[1, 4, 2])}, 400, "must have shape [rows, 2, 4], not [1, 4, 2]"),
    "no batch": (f"{URL}/infer", {"json": infer(shape=[2, 4])}, 400, "must have shape [rows, 2, 4]"),
    "no rows": (f"{URL}/infer", {"json": infer(shape=[0, 2, 4], data=[])}, 400, "has no rows"),
    "wrong datatype": (f"{URL}/infer", {"json": infer(datatype="BOOL", data=[True] * 8)}, 400, "must be FP32"),
    "wrong name": (f"{URL}/infer", {"json": infer(name="emg")}, 400, "called 'input', not 'emg'"),
    "two inputs": (f"{URL}/infer", {"json": {"inputs": [GOOD, {**GOOD, "name": "b"}]}}, 400, "one input tensor"),
    "NaN": (f"{URL}/infer", nan_binary(), 422, "NaN"),
    "a parameter in the body": (f"{URL}/predict", {"json": {"inputs": [[1] * 4] * 2, "tta": 8}}, 400, "'tta': beside inputs"),
    "texts among numbers": (f"{URL}/predict", {"json": {"inputs": ["a" * 60_000, *"b" * 3000]}}, 400, "numbers only"),
    "numbers as texts": (f"{URL}/predict", {"json": {"inputs": [["1.5"] * 4] * 2}}, 400, "numbers only"),
    "an integer of 400 digits": (f"{URL}/predict", {"json": {"inputs": [[10.0] * 4, [10**308, 1, 1, 1]]}}, 422, "beyond float32"),
    "beyond float32": (f"{URL}/predict", {"json": {"inputs": [[1e300] * 4] * 2}}, 422, "beyond float32"),
    "empty body": (f"{URL}/infer", {"content": b""}, 400, "empty"),
    "empty body, predict": (f"{URL}/predict", {"content": b""}, 400, "empty"),
    "empty body, calibrate": (f"{URL}/users/u/calibrations", {"content": b""}, 400, "empty"),
    "not JSON": (f"{URL}/infer", {"content": b"{oops"}, 400, "not JSON"),
    "too large": (f"{URL}/infer", {"content": b" " * (5 * 1024 * 1024)}, 413, "at most 4,194,304"),
    "unknown model": ("/v2/models/nope/infer", {"json": infer()}, 404, "there are tiny"),
    "unknown version": (f"{URL}/versions/2/infer", {"json": infer()}, 404, "no version 2"),
    "unknown path": ("/v2/nothing", {"json": {}}, 404, "nothing at POST /v2/nothing"),
    "unknown query parameter": (f"{URL}/users/u/calibrations?dry=1", {"json": calibration()}, 400, "'dry'; known are: task"),
    "misspelt query parameter": (f"{URL}/users/u/import?replce=true", {"content": b""}, 400, "known are: model_version, replace"),
    "wrong verb": ("/v2/health/live", {"json": {}}, 405, "does not answer POST"),
    "unknown user": (
        f"{URL}/infer",
        {"json": {**infer(), "parameters": {"user_id": "who", "fallback": "error"}}},
        404,
        "user 'who' has no head",
    ),
    "unknown user, predict": (f"{URL}/predict?user_id=who&fallback=error", {"json": {"inputs": [[0] * 4] * 2}}, 404, "no head"),
    "bad fallback": (f"{URL}/predict?user_id=who&fallback=x", {"json": {"inputs": [[0] * 4] * 2}}, 400, "shared or error"),
    "bad user": (f"{URL}/infer", {"json": {**infer(), "parameters": {"user_id": 5}}}, 400, "user_id must be"),
    "unknown parameter": (f"{URL}/infer", {"json": {**infer(), "parameters": {"usr": "x"}}}, 400, "unknown parameter 'usr'"),
    "unknown output": (f"{URL}/infer", {"json": {**infer(), "outputs": [{"name": "y"}]}}, 400, "no output 'y'"),
    "user twice": (
        f"{URL}/infer",
        {
            "json": {
                "inputs": [GOOD, {"name": "user_id", "datatype": "BYTES", "shape": [1], "data": ["a"]}],
                "parameters": {"user_id": "b"},
            }
        },
        400,
        "named twice",
    ),
    "users too few": (
        f"{URL}/infer",
        {"json": {"inputs": [GOOD, {"name": "user_id", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}]}},
        400,
        "one user a row",
    ),
    "media type": (f"{URL}/predict", {"content": b"x", "headers": {"content-type": "image/png"}}, 415, "does not read image/png"),
    "ragged": (f"{URL}/predict", {"json": {"inputs": [[0, 0], [0]]}}, 400, "equal lengths"),
    "strings": (f"{URL}/predict", {"json": {"inputs": [["a"] * 4] * 2}}, 400, "numbers only"),
    "no inputs": (f"{URL}/predict", {"json": {}}, 400, 'no "inputs"'),
    "not npy": (f"{URL}/predict", {"content": b"xx", "headers": {"content-type": "application/x-npy"}}, 400, "not a .npy file"),
    "pickle": (f"{URL}/predict", npy(np.array([{}], object), allow_pickle=True), 400, "holds object"),
    "bare pickle": (
        f"{URL}/predict", {"content": pickle.dumps({}), "headers": {"content-type": "application/x-npy"}}, 400, "not a .npy file",
    ),
    "unknown label": (f"{URL}/users/u/calibrations", {"json": calibration(labels=["rest"] * 5 + ["wave"])}, 422, "unknown label 'wave'"),
    "one class": (f"{URL}/users/u/calibrations", {"json": calibration(labels=["rest"] * 6)}, 422, "at least two classes"),
    "labels missing": (f"{URL}/users/u/calibrations", {"json": {"inputs": [[[0] * 4] * 2]}}, 400, "no 'labels'"),
    "labels short": (f"{URL}/users/u/calibrations", {"json": calibration(labels=["rest"])}, 400, "6 windows and 1 labels"),
    "labels odd": (f"{URL}/users/u/calibrations", {"json": calibration(labels=[1] * 6)}, 400, "list of label names"),
    "repetitions short": (f"{URL}/users/u/calibrations", {"json": calibration(repetitions=[1])}, 400, "6 windows and 1 repetitions"),
    "repetitions odd": (f"{URL}/users/u/calibrations", {"json": calibration(repetitions=["a"] * 6)}, 400, "list of integers"),
    "bad mode": (f"{URL}/users/u/calibrations", {"json": calibration(mode="x")}, 400, "update, replace"),
    "bad method": (f"{URL}/users/u/calibrations", {"json": calibration(method="x")}, 400, "map"),
    "bad activate": (f"{URL}/users/u/calibrations", {"json": calibration(activate="x")}, 400, "if_better"),
    "bad dry_run": (f"{URL}/users/u/calibrations", {"json": calibration(dry_run="yes")}, 400, "dry_run must be"),
    "unknown field": (f"{URL}/users/u/calibrations", {"json": calibration(label=[])}, 400, "unknown field 'label'"),
    "calibration shape": (f"{URL}/users/u/calibrations", {"json": calibration(inputs=[[0, 1]], labels=["rest"])}, 400, "must have shape"),
    "calibration model": ("/v2/models/nope/users/u/calibrations", {"json": calibration()}, 404, "there are tiny"),
    "huge head version": (f"{URL}/infer", {"json": {**infer(), "parameters": {"user_id": "u", "head_version": 2**63}}}, 400, "head_version"),
    "huge head version, predict": (f"{URL}/predict?user_id=u&head_version={10**20}", {"json": {"inputs": [[0] * 4] * 2}}, 400, "head_version"),
    "endless version": (f"{URL}/versions/{'9' * 5000}/infer", {"json": infer()}, 404, "no version"),
    "endless header length": (f"{URL}/infer", {"content": b"{}", "headers": {"Inference-Header-Content-Length": "9" * 5000}}, 400, "not a length"),
    "many dimensions": (f"{URL}/infer", {"json": infer(shape=[1] * 70 + [8])}, 400, "at most 8"),
    "huge dimensions": (f"{URL}/infer", {"json": infer(shape=[2**63 - 1] * 50000)}, 400, "at most 8"),
    "empty and huge": (f"{URL}/infer", {"json": infer(shape=[0, 2**31 - 1, 2**31 - 1], data=[])}, 400, "shape"),
    "deep strings": (f"{URL}/infer", {"json": {"inputs": [GOOD, {"name": "user_id", "datatype": "BYTES", "shape": [1], "data": DEEP}]}}, 400, "nested more than"),
    "npy that claims much": (f"{URL}/predict", {"content": npy(np.zeros(4))["content"].replace(b"(4,)", b"(9999999999,)"), "headers": {"content-type": "application/x-npy"}}, 400, ".npy"),
    "output twice": (f"{URL}/infer", {"json": {**infer(), "outputs": [{"name": "label"}] * 2}}, 400, "asked for twice"),
    "misspelt query": (f"{URL}/predict?user=u", {"json": {"inputs": [[0] * 4] * 2}}, 400, "unknown query parameter 'user'"),
    "user not UTF-8": (f"{URL}/predict?user_id=%FF", {"json": {"inputs": [[0] * 4] * 2}}, 400, "UTF-8"),
    "user not UTF-8, path": (f"{URL}/users/%FF/calibrations", {"json": calibration()}, 404, "UTF-8"),
    "endless repetitions": (f"{URL}/users/u/calibrations", {"json": {"inputs": [[[0] * 4] * 2] * 70, "labels": ["rest", "fist"] * 35, "repetitions": list(range(70))}}, 422, "at most 64"),
    "rollback of nobody": (f"{URL}/users/u/rollback", {}, 404, "not known"),
    "odd user in path": (f"{URL}/users/{'x' * 300}/rollback", {}, 404, "1 to 256"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
async def test_refusal(client, name):
    path, options, status, text = CASES[name]
    response = await client.post(path, **options)
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error", "code", "request_id"}
    assert text in body["error"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    again = await client.post(f"{URL}/infer", json=infer())
    assert again.status_code == 200


async def test_a_body_without_a_length_is_cut_off_at_the_limit(client):
    async def endless():
        for _ in range(100):
            yield b" " * 100_000

    response = await client.post(f"{URL}/infer", content=endless())
    assert response.status_code == 413
    assert response.json()["code"] == "body_too_large"


async def test_an_internal_error_says_nothing_but_its_request_id(settings, caplog):
    from service.app import create_app
    from tests.conftest import running

    app = create_app(settings)

    @app.get("/break")
    async def fail() -> None:
        raise KeyError("secret")

    async with running(app) as client:
        response = await client.get("/break", headers={"X-Request-ID": "req-1"})
    assert response.status_code == 500
    assert response.json()["request_id"] == "req-1"
    assert "secret" not in response.text
    assert "req-1" in caplog.text


async def test_deadline_and_full_queue(settings):
    import asyncio
    import threading

    from service.app import create_app
    from tests.conftest import running

    app = create_app(settings.model_copy(update={"queue_rows": 4, "dispatch": "thread"}))
    async with running(app) as client:
        model = app.state.services.models.get("tiny")
        gate = threading.Event()
        forward = model.scheduler._forward
        model.scheduler._forward = lambda x: (gate.wait(10), forward(x))[1]
        first = asyncio.create_task(client.post(f"{URL}/infer", json=infer()))
        await asyncio.sleep(0.1)
        four = {"inputs": [{**GOOD, "shape": [4, 2, 4], "data": [0.0] * 32}]}
        late = asyncio.create_task(client.post(f"{URL}/infer", json={**four, "parameters": {"timeout": 1000}}))
        await asyncio.sleep(0.1)
        refused = await client.post(f"{URL}/infer", json=infer())
        gate.set()
        assert (await first).status_code == 200
        answer = await late
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
