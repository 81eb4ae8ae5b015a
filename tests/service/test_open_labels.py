"""Labels of users' own: added by a calibration, answered to that user only, in one batch with everybody else's."""

import httpx
import numpy as np
import orjson
import pytest
import safetensors.numpy

from service.client import Client
from service.commands.process import running_service
from tests.tiny import LABELS, tiny_windows, write_tiny_bundle

ROOM = 3
OFFSET = np.array([1.0, 0.5, 0.0, 0.0])
PLACES = {
    "wave": (-6.0, -6.0, 3.0, 3.0),
    "pinch": (8.0, 0.0, 8.0, 0.0),
    "tap": (0.0, -8.0, 0.0, 8.0),
    "x": (9, 9, 9, 9),
}


@pytest.fixture(scope="module", params=["1", "2"], ids=["one-process", "front-ends"])
def http(request, tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    write_tiny_bundle(models, user_labels=ROOM)
    store = tmp_path_factory.mktemp("store")
    with (
        running_service(models, store, "--frontends", request.param) as service,
        httpx.Client(base_url=service.url, timeout=20) as client,
    ):
        client.service = service
        yield client


def windows_at(place, count, rng):
    """Windows whose four features are about `place`."""
    z = np.array(place) + 0.3 * rng.standard_normal((count, 4))
    return np.repeat(z.reshape(count, 2, 2) / 2, 2, axis=2).astype(np.float32)


def calibration(rng, *own, base=True, count=20, **fields):
    x, labels = tiny_windows(count, rng, OFFSET) if base else (np.empty((0, 2, 4), np.float32), [])
    for name in own:
        x, labels = np.concatenate([x, windows_at(PLACES[name], count, rng)]), [*labels, *[name] * count]
    return {"inputs": x.tolist(), "labels": labels, "repetitions": [i % 2 for i in range(len(x))], **fields}


def calibrate(http, user, body, status=201):
    answer = http.post(f"/v2/models/tiny/users/{user}/calibrations", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def predict(http, user, x, **query):
    answer = http.post("/v2/models/tiny/predict", params={"user_id": user, **query}, json={"inputs": x.tolist()})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def infer(http, users, x, *outputs):
    message = {
        "inputs": [
            {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()},
            {"name": "user_id", "datatype": "BYTES", "shape": [len(users)], "data": users},
        ],
        "outputs": [{"name": name} for name in outputs],
    }
    answer = http.post("/v2/models/tiny/infer", json=message)
    assert answer.status_code == 200, answer.text
    found = {o["name"]: o for o in answer.json()["outputs"]}
    return {name: np.array(o["data"], object).reshape(o["shape"]) for name, o in found.items()}


def test_a_label_is_added_and_answered_to_its_user_only(http):
    rng = np.random.default_rng(1)
    report = calibrate(http, "ana", calibration(rng, "wave"))
    assert report["outcome"] == "promoted", report
    assert list(report["classes"]) == [*LABELS, "wave"]
    assert report["classes"]["wave"]["samples"] == 20
    assert report["metrics"]["candidate"]["accuracy"] > 0.95
    x = windows_at(PLACES["wave"], 10, rng)
    rows = predict(http, "ana", x)
    assert {row["label"] for row in rows} == {"wave"}
    assert set(rows[0]["probabilities"]) == {*LABELS, "wave"}
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    others = predict(http, "somebody", x)
    assert set(others[0]["probabilities"]) == set(LABELS)
    old, names = tiny_windows(30, rng, OFFSET)
    assert np.mean([r["label"] == n for r, n in zip(predict(http, "ana", old), names, strict=True)]) > 0.95


def test_a_second_label_later_leaves_the_first_in_its_place(http):
    rng = np.random.default_rng(2)
    calibrate(http, "bob", calibration(rng, "wave"))
    report = calibrate(http, "bob", calibration(rng, "pinch", base=False))
    assert list(report["classes"]) == [*LABELS, "wave", "pinch"]
    assert report["outcome"] == "promoted", report
    for name in ("wave", "pinch"):
        assert {row["label"] for row in predict(http, "bob", windows_at(PLACES[name], 10, rng))} == {name}
    weights = [
        safetensors.numpy.load(http.get(f"/v2/models/tiny/users/bob/versions/{v}/weights").content) for v in (1, 2)
    ]
    assert [w["weight"].shape for w in weights] == [(4, 4), (5, 4)]
    assert list(http.get("/v2/models/tiny/users/bob").json()["classes"]) == [*LABELS, "wave", "pinch"]


def test_a_batch_of_users_with_different_labels(http):
    rng = np.random.default_rng(3)
    calibrate(http, "cleo", calibration(rng, "wave"))
    calibrate(http, "dan", calibration(rng, "pinch", "tap"))
    users = ["cleo", "dan", "stranger", "dan"]
    x = np.concatenate([windows_at(PLACES[p], 1, rng) for p in ("wave", "tap", "wave", "pinch")])
    out = infer(http, users, x, "label", "labels", "probabilities", "logits")
    assert out["label"].tolist()[:2] == ["wave", "tap"]
    assert out["label"][2] in LABELS
    assert out["label"][3] == "pinch"
    assert out["labels"].tolist() == [
        [*LABELS, "wave", ""], [*LABELS, "pinch", "tap"], [*LABELS, "", ""], [*LABELS, "pinch", "tap"],
    ]  # fmt: skip
    p = out["probabilities"].astype(float)
    assert p.shape == (4, 5)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert p[0, 4] == p[2, 3] == p[2, 4] == 0
    # The same users alone, and the binary answers, agree with the batch.
    assert predict(http, "dan", x[1:2])[0]["probability"] == pytest.approx(p[1].max(), abs=1e-5)
    with Client(http.service.url) as client:
        binary, _ = client.infer("tiny", x[1:2], user="dan")
        again, _ = client.infer("tiny", x[1:2], user="stranger")
    np.testing.assert_allclose(binary[0], p[1], atol=1e-5)
    assert again.shape == (1, 3)


def test_classification_and_sets_name_own_labels(http):
    rng = np.random.default_rng(4)
    calibrate(http, "eve", calibration(rng, "wave"))
    x = windows_at(PLACES["wave"], 3, rng)
    message = {
        "parameters": {"user_id": "eve"},
        "inputs": [{"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 1}}],
    }
    (output,) = http.post("/v2/models/tiny/infer", json=message).json()["outputs"]
    assert [text.split(":", 2)[1:] for text in output["data"]] == [["3", "wave"]] * 3
    assert all("wave" in row["set"] for row in predict(http, "eve", x, coverage=0.9))


def test_there_is_room_for_so_many_and_what_is_refused_leaves_nothing(http):
    rng = np.random.default_rng(5)
    refused = calibrate(http, "fay", calibration(rng, "wave", "pinch", "tap", "x"), 422)
    assert "room for 3" in refused["error"]
    assert http.get("/v2/models/tiny/users/fay").status_code == 404
    assert calibrate(http, "fay", {**calibration(rng, "wave"), "dry_run": True})["version"] is None
    for name in ("", "  ", "a\nb", "n" * 65):
        body = calibration(rng)
        body["labels"][-1] = name
        assert "cannot be a label" in calibrate(http, "fay", body, 422)["error"]
    # The dry run took no place.
    report = calibrate(http, "fay", calibration(rng, "pinch", "tap", "x"))
    assert list(report["classes"]) == [*LABELS, "pinch", "tap", "x"]


def test_enrolled_bit_by_bit_evaluated_corrected_and_forgotten(http):
    rng = np.random.default_rng(6)
    url = "/v2/models/tiny/users/gus"
    x = windows_at(PLACES["wave"], 10, rng)
    options = {"accept": ["off_distribution"], "repetitions": [i % 2 for i in range(10)]}
    made = http.post(f"{url}/samples", json={"inputs": x.tolist(), "labels": ["wave"] * 10, **options})
    assert made.status_code == 201, made.text
    assert made.json()["classes"]["wave"]["enrolled"] == 10
    assert calibrate(http, "gus", calibration(rng))["outcome"] == "promoted"
    report = calibrate(http, "gus", {})
    assert report["classes"]["wave"]["samples"] == 10
    scored = http.post(
        f"{url}/evaluations", json={"inputs": x.tolist(), "labels": ["wave"] * 10, "versions": ["shared", 1, 2]}
    ).json()
    assert scored["labels"] == [*LABELS, "wave"]
    assert [v["accuracy"] for v in scored["versions"]] == [0.0, 0.0, 1.0]
    assert all(np.shape(v["confusion"]) == (4, 4) for v in scored["versions"])
    gone = http.delete(f"{url}/samples", params={"label": "wave"})
    assert gone.json()["classes"]["wave"] == {"enrolled": 0, "repetitions": 0, "calibrated": 0, "remaining": 5}
    calibrate(http, "gus", calibration(rng))
    assert "wave" not in {row["label"] for row in predict(http, "gus", x)}
    assert http.delete(url).json()["erased"]
    assert set(predict(http, "gus", x)[0]["probabilities"]) == set(LABELS)


def test_among_shown_only_what_was_shown_is_answered(http):
    rng = np.random.default_rng(7)
    body = calibration(rng, "wave", "pinch", base=False)
    x, labels = tiny_windows(20, rng, OFFSET)
    body["inputs"] += x[:20].tolist()
    body["labels"] += labels[:20]
    body["repetitions"] += [i % 2 for i in range(20)]
    kept = calibrate(http, "hal", body)
    assert kept["outcome"] == "insufficient"
    report = calibrate(http, "hal", {**body, "mode": "replace", "among": "shown"})
    assert report["outcome"] == "promoted", report
    assert report["among"] == "shown"
    rows = predict(http, "hal", np.concatenate([x, windows_at(PLACES["wave"], 5, rng)]))
    assert {row["label"] for row in rows} <= {"rest", "wave", "pinch"}
    assert all(row["probabilities"]["fist"] == row["probabilities"]["open"] == 0 for row in rows)


def test_metadata_says_that_labels_may_be_added(http):
    found = http.get("/v2/models/tiny").json()
    assert (found["parameters"]["label_set"], found["parameters"]["user_labels"]) == ("open", ROOM)
    shapes = {o["name"]: o["shape"] for o in found["outputs"]}
    assert shapes["probabilities"] == [-1, -1]


def test_labels_reach_heads_through_the_binary_layout(http):
    rng = np.random.default_rng(8)
    body = calibration(rng, "tap")
    x = np.array(body.pop("inputs"), np.float32)
    with Client(http.service.url) as client:
        report = client.calibrate("tiny", "ida", x, body["labels"], body["repetitions"])
    assert list(report["classes"]) == [*LABELS, "tap"]
    raw = http.get(f"/v2/models/tiny/users/ida/versions/{report['version']}/weights").content
    header = orjson.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert orjson.loads(header["__metadata__"]["own_labels"]) == ["tap"]
