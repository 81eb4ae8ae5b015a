"""Batches of many users while versions change over: each row by the version in which its user has a head."""

import asyncio

import numpy as np
import pytest

from service.app import create_app
from service.config import Settings
from tests.conftest import running
from tests.service.test_recalibrate import with_pinch
from tests.service.test_users import body
from tests.tiny import tiny_windows, write_tiny_bundle
from tests.upgraded import write_upgraded_bundle

MODEL = "/v2/models/tiny"
OFFSET = np.array([1.0, 1.0, 0.0, 0.0])
OUTPUTS = ("logits", "probabilities", "label", "head", "head_version", "model_version")


@pytest.fixture
async def client(tmp_path, rng):
    """A service on two versions; `old` has a head in the first, `new` in the second."""
    write_tiny_bundle(tmp_path / "models")
    app = create_app(Settings(models=tmp_path / "models", store=f"sqlite+aiosqlite:///{tmp_path}/headway.db"))
    async with running(app) as c:
        sent = body(rng, offset=OFFSET, repetitions=3)
        assert (await c.post(f"{MODEL}/users/old/calibrations", json=sent)).json()["outcome"] == "promoted"
        write_upgraded_bundle(tmp_path / "models")
        assert (await c.post("/v2/repository/models/tiny/load")).status_code == 200
        assert (await c.post(f"{MODEL}/users/new/calibrations", json=sent)).json()["outcome"] == "promoted"
        yield c


async def infer(client, x, users, outputs=OUTPUTS, path="infer", **parameters):
    tensors = [{"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}]
    if isinstance(users, list):
        tensors.append({"name": "user_id", "datatype": "BYTES", "shape": [len(users)], "data": users})
    else:
        parameters = {**parameters, "user_id": users}
    message = {"inputs": tensors, "parameters": parameters, "id": "7"}
    if outputs is not None:
        message["outputs"] = [{"name": name} for name in outputs]
    return await client.post(f"{MODEL}/{path}", json=message)


def tensors(answer):
    return {o["name"]: np.reshape(o["data"], o["shape"]) for o in answer.json()["outputs"]}


async def test_each_row_is_answered_as_alone(client, rng):
    x, _ = tiny_windows(4, rng, OFFSET)
    users = ["old", "new", "nobody", "old", "new", "old", "nobody", "new", "old", "new", "old", "nobody"]
    answer = await infer(client, x, users)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_version"] == "2"
    assert answer.json()["id"] == "7"
    assert "total;dur=" in answer.headers["server-timing"]
    found = tensors(answer)
    assert found["model_version"].tolist() == [1 if user == "old" else 2 for user in users]
    assert found["head"].tolist() == ["shared" if user == "nobody" else "personal" for user in users]
    assert found["head_version"].tolist() == [0 if user == "nobody" else 1 for user in users]
    for i, user in enumerate(users):
        alone = await infer(client, x[i : i + 1], user, OUTPUTS[:3])
        assert alone.json()["model_version"] == str(found["model_version"][i])
        one = tensors(alone)
        for name in OUTPUTS[:2]:
            assert np.allclose(one[name][0], found[name][i], atol=1e-5)
        assert one["label"][0] == found["label"][i]


async def test_usual_outputs_binary_answers_and_thresholds(client, rng):
    x, _ = tiny_windows(1, rng, OFFSET)
    usual = tensors(await infer(client, x, ["old", "new", "old"], None))
    assert list(usual) == ["probabilities", "label", "head", "head_version", "model_version"]
    assert usual["model_version"].tolist() == [1, 2, 1]
    answer = await infer(client, x, ["old", "new", "old"], None, threshold=1.0)
    assert answer.json()["parameters"]["rejected"] == int(tensors(answer)["rejected"].sum())
    raw = await infer(client, x, ["old", "new", "old"], ("probabilities",), binary_data_output=True)
    length = int(raw.headers["inference-header-content-length"])
    data = np.frombuffer(raw.content[length:], "<f4").reshape(3, 3)
    assert np.allclose(data, usual["probabilities"], atol=1e-6)


async def test_one_version_for_all_is_one_call(client, rng):
    x, _ = tiny_windows(1, rng, OFFSET)
    for user, version in (("old", "1"), ("new", "2"), ("nobody", "2")):
        answer = await infer(client, x, [user] * 3)
        assert answer.json()["model_version"] == version
        assert set(tensors(answer)["model_version"].tolist()) == {int(version)}
    named = tensors(await infer(client, x, ["old", "new", "old"], path="versions/2/infer"))
    assert named["model_version"].tolist() == [2, 2, 2]
    assert named["head"].tolist() == ["shared", "personal", "shared"]


async def test_refusals_of_one_part_are_those_of_the_whole(client, rng):
    x, _ = tiny_windows(1, rng, OFFSET)
    mixed = await infer(client, x, ["old", "new", "old"], ("features", "label"))
    assert mixed.status_code == 409
    assert "versions 1, 2" in mixed.json()["error"]
    missing = await infer(client, x, ["old", "new", "nobody"], fallback="error")
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_user")
    late = await infer(client, x, ["old", "new", "old"], timeout=1)
    assert late.status_code == 504
    wrong = await infer(client, x[:, :1], ["old", "new", "old"])
    assert wrong.status_code == 400
    stats = (await client.get("/v2/models/stats")).json()["model_stats"]
    assert len(stats) == 2
    assert (await infer(client, x, ["old", "new", "old"])).status_code == 200


async def test_many_at_once(client, rng):
    x, _ = tiny_windows(1, rng, OFFSET)
    users = [[str(u) for u in rng.choice(["old", "new", "nobody"], 3)] for _ in range(60)]
    answers = await asyncio.gather(*(infer(client, x, u) for u in users))
    for asked, answer in zip(users, answers, strict=True):
        assert tensors(answer)["model_version"].tolist() == [1 if user == "old" else 2 for user in asked]


async def test_users_with_labels_of_their_own(tmp_path, rng):
    write_tiny_bundle(tmp_path / "models", user_labels=2)
    app = create_app(Settings(models=tmp_path / "models", store=f"sqlite+aiosqlite:///{tmp_path}/headway.db"))
    async with running(app) as client:
        sent, pinch = with_pinch(rng, activate="always")
        assert (await client.post(f"{MODEL}/users/old/calibrations", json=sent)).status_code == 201
        write_upgraded_bundle(tmp_path / "models")
        assert (await client.post("/v2/repository/models/tiny/load")).status_code == 200
        x = pinch.astype(np.float32)[:3]
        found = tensors(await infer(client, x, ["nobody", "old", "nobody"], (*OUTPUTS[:3], "labels", "model_version")))
    assert found["model_version"].tolist() == [2, 1, 2]
    assert found["label"][1] == "pinch"
    assert found["labels"][:, 3].tolist() == ["", "pinch", ""]
    assert found["probabilities"].shape == (3, 4)
    assert found["probabilities"][[0, 2], 3].tolist() == [0, 0]
    assert np.allclose(found["probabilities"].sum(1), 1, atol=1e-5)
    assert (found["logits"].argmax(1) == found["probabilities"].argmax(1)).all()
