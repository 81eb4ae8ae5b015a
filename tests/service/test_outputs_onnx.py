"""A user's heads as one ONNX file, of every output or of one: the answers of the service to 1e-5."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from service.app import create_app
from tests.conftest import running
from tests.service.test_multitask import (
    ANA,
    MODEL,
    calibrate_angles,
    calibrate_gesture,
    infer,
    ok,
    settings_on,
    tensors,
)
from tests.tiny import LABELS, tiny_windows
from tests.tiny_outputs import angles, gesture, write_tiny_outputs
from tests.tiny_regression import NAMES, person, recorded, write_tiny_regression


@pytest.fixture
async def arm(tmp_path):
    write_tiny_outputs(tmp_path / "models", gesture(), angles(), angles("low", ((0, 1), (3, 4))))
    async with running(create_app(settings_on(tmp_path / "models", tmp_path))) as client:
        yield client


async def graph_of(client, x, path, **query):
    """What an ONNX file computes of windows, and its properties."""
    answer = await client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    onnx.checker.check_model(onnx.load_from_string(answer.content), full_check=True)
    session = ort.InferenceSession(answer.content, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    told = {key.removeprefix("headway."): v for key, v in session.get_modelmeta().custom_metadata_map.items()}
    return dict(zip(names, session.run(None, {"input": x}), strict=True)), told


def agrees(found, served):
    for name, values in found.items():
        if name == "label":
            assert [LABELS[i] for i in values] == served[name].tolist()
        else:
            assert np.abs(values - served[name]).max() < 1e-5 * max(1, np.abs(values).max()), name


async def test_heads_of_all_outputs_stand_behind_one_graph(arm, rng):
    x = rng.standard_normal((7, 2, 4)).astype(np.float32)
    await calibrate_angles(arm, rng)
    names = ["features", "logits", "probabilities", "label", "angles.value", "low.value"]
    found, told = await graph_of(arm, x, f"{ANA}/versions/active/onnx")
    assert list(found) == names
    agrees(found, tensors(await infer(arm, x, user_id="ana", outputs=names)))
    each = json.loads(told["outputs"])
    assert {name: o["head"] for name, o in each.items()} == {"gesture": "shared", "angles": "personal", "low": "shared"}
    assert (each["angles"]["head_version"], each["angles"]["targets"]) == ("1", ["elbow [deg]", "wrist [deg]"])
    assert (told["head"], json.loads(told["labels"])) == ("shared", list(LABELS))

    await calibrate_gesture(arm, rng)
    found, told = await graph_of(arm, x, f"{ANA}/versions/active/onnx")
    agrees(found, tensors(await infer(arm, x, user_id="ana", outputs=names)))
    assert (told["head"], told["head_version"]) == ("personal", "1")
    found, told = await graph_of(arm, x, f"{ANA}/versions/shared/onnx")
    agrees(found, tensors(await infer(arm, x, outputs=names)))
    assert {o["head"] for o in json.loads(told["outputs"]).values()} == {"shared"}


async def test_one_output_alone_has_plain_names(arm, rng):
    x = rng.standard_normal((4, 2, 4)).astype(np.float32)
    w, t = recorded(rng, person(rng, 2.0), 60)
    body = {"inputs": w.tolist(), "targets": t.tolist(), "activate": "always"}
    ok(await arm.post(f"{ANA}/calibrations?task=low", json=body), 201)
    for number in ("1", "active"):
        found, told = await graph_of(arm, x, f"{ANA}/versions/{number}/onnx", task="low")
        served = tensors(await infer(arm, x, user_id="ana", outputs=["low.value"]))
        assert list(found) == ["features", "value"]
        agrees({"low.value": found["value"]}, served)
        assert (told["output"], told["head_version"]) == ("low", "1")
        assert "outputs" not in told
    assert (await arm.get(f"{ANA}/versions/active/onnx?task=gesture")).status_code == 404, "not known to this output"
    found, _ = await graph_of(arm, x, f"{ANA}/versions/shared/onnx", task="gesture")
    assert list(found) == ["features", "logits", "probabilities", "label"]


async def test_what_is_not_there_is_said(arm, rng):
    missing = await arm.get(f"{ANA}/versions/active/onnx")
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_user")
    await calibrate_gesture(arm, rng)
    number = await arm.get(f"{ANA}/versions/1/onnx")
    assert (number.status_code, "name one by task" in number.json()["error"]) == (400, True)
    assert (await arm.get(f"{ANA}/versions/active/onnx?task=force")).status_code == 400
    assert (await arm.get(f"{ANA}/versions/2/onnx?task=gesture")).json()["code"] == "unknown_version"
    assert (await arm.get(f"{MODEL}/users/ben/versions/active/onnx?task=angles")).status_code == 404


async def test_a_model_of_targets_alone(tmp_path, rng):
    write_tiny_regression(tmp_path / "models")
    async with running(create_app(settings_on(tmp_path / "models", tmp_path))) as client:
        url = "/v2/models/angles"
        w, t = recorded(rng, person(rng, 2.0), 60)
        body = {"inputs": w.tolist(), "targets": t.tolist(), "activate": "always"}
        ok(await client.post(f"{url}/users/ana/calibrations", json=body), 201)
        x, _ = tiny_windows(3, rng)
        for number, user in (("active", {"user_id": "ana"}), ("shared", {})):
            found, told = await graph_of(client, x, f"{url}/users/ana/versions/{number}/onnx")
            agrees(found, tensors(await infer(client, x, outputs=["features", "value"], url=url, **user)))
            assert [name.partition(" ")[0] for name in json.loads(told["targets"])] == list(NAMES)
