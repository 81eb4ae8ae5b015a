"""Where fused inputs meet several outputs and versions of another form."""

import shutil

import numpy as np

from exporters import bundle as bundles
from exporters.regression import Population
from exporters.tasks import Task, add_task
from service.app import create_app
from service.config import Settings
from tests import tiny_fused
from tests.conftest import running
from tests.tiny import write_tiny_bundle

MODEL = "/v2/models/fused"
RELOAD = "/v2/repository/models/fused/load"


def shown(rng):
    """Windows of both sensors of someone, their labels, and a repetition each."""
    arm, watch, labels = tiny_fused.sensor_windows(8, rng, np.array([3.0, 0, 0, -3]))
    return {"arm": arm, "watch": watch}, labels, [(i % 8) // 4 for i in range(len(labels))]


def as_json(parts):
    return {name: x.tolist() for name, x in parts.items()}


def with_grip(models, rng):
    """Add an output `grip` to a fused bundle, in the next version."""
    path = tiny_fused.write_sensors(models, "concatenated")
    spec = bundles.load(path).manifest.input
    rows, y, users, repetitions = [], [], [], []
    for user in range(6):
        for repetition in range(2):
            arm, watch, labels = tiny_fused.sensor_windows(8, rng, rng.normal(0, 0.5, 4))
            rows.append(tiny_fused.pack(spec, {"arm": arm, "watch": watch}))
            y += [0 if label == "rest" else 1 for label in labels]
            users += [user] * len(labels)
            repetitions += [repetition] * len(labels)
    people = Population(np.concatenate(rows), np.array(y), np.array(users), np.array(repetitions))
    add_task(path, models, Task("grip", labels=("open", "shut"), population=people), called="gesture")
    shutil.rmtree(path)


async def test_infer_of_a_fused_model_is_answered_by_a_version_that_has_the_output_asked_for(tmp_path):
    models, rng = tmp_path / "models", np.random.default_rng(0)
    tiny_fused.write_sensors(models, "late")
    async with running(create_app(Settings(models=models, store=f"sqlite+aiosqlite:///{tmp_path}/h.db"))) as client:
        parts, labels, repetitions = shown(rng)
        body = {"inputs": as_json(parts), "labels": labels, "repetitions": repetitions, "activate": "always"}
        assert (await client.post(f"{MODEL}/users/ana/calibrations", json=body)).status_code == 201
        shutil.rmtree(models / "members")
        with_grip(models, rng)
        assert (await client.post(RELOAD)).status_code == 200
        inputs = [
            {"name": name, "datatype": "FP32", "shape": [1, *x.shape[1:]], "data": x[0].ravel().tolist()}
            for name, x in parts.items()
        ]
        message = {"inputs": inputs, "parameters": {"user_id": "ana"}}
        asked = {**message, "outputs": [{"name": "grip.label"}]}
        answer = (await client.post(f"{MODEL}/infer", json=asked)).json()
        assert [o["name"] for o in answer["outputs"]] == ["grip.label"]
        assert answer["outputs"][0]["data"][0] in ("open", "shut")
        old = (await client.post(f"{MODEL}/infer", json={**message, "outputs": [{"name": "label"}]})).json()
        assert old["model_version"] == "1", "her head is in the old version, which has that output"


async def test_a_user_of_a_plain_version_is_answered_by_the_fused_one_that_follows(tmp_path):
    models, rng = tmp_path / "models", np.random.default_rng(0)
    write_tiny_bundle(models, "fused")
    async with running(create_app(Settings(models=models, store=f"sqlite+aiosqlite:///{tmp_path}/h.db"))) as client:
        parts, labels, repetitions = shown(rng)
        body = {"inputs": parts["arm"].tolist(), "labels": labels, "repetitions": repetitions, "activate": "always"}
        assert (await client.post(f"{MODEL}/users/ana/calibrations", json=body)).status_code == 201
        tiny_fused.write_sensors(models, "late")
        shutil.rmtree(models / "members")
        assert (await client.post(RELOAD)).status_code == 200
        answer = await client.post(f"{MODEL}/predict?user_id=ana", json={"inputs": as_json(parts)})
        assert answer.status_code == 200, answer.text
        assert answer.json()["model_version"] == "2"
