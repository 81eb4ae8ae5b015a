"""`tta`: a window answered by the mean over its views, when it is predicted, enrolled, calibrated with and scored."""

import httpx
import numpy as np
import orjson
import pytest

from exporters import bundle as bundles
from models.data.views import averaged, views
from models.heads.head import softmax
from service.commands.process import running_service
from service.engine.runtime import Runtime
from tests.tiny import LABELS, tiny_windows

MODEL = "/v2/models/tiny"
ANA = f"{MODEL}/users/ana"
OFFSET = np.array([1.0, 1.0, 0.0, 0.0])


@pytest.fixture(scope="module", params=["1", "2"], ids=["one-process", "front-ends"])
def http(request, tiny_models, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    with (
        running_service(tiny_models, store, "--frontends", request.param) as service,
        httpx.Client(base_url=service.url, timeout=30) as client,
    ):
        x, labels = tiny_windows(30, np.random.default_rng(3), OFFSET, noise=1.2)
        sent = {"inputs": x.tolist(), "labels": labels, "activate": "always"}
        assert client.post(f"{ANA}/calibrations", json=sent).status_code == 201
        yield client


@pytest.fixture(scope="module")
def bundle(tiny_models):
    return bundles.load(bundles.resolve(tiny_models / "tiny"))


def windows(n=9, seed=11):
    return tiny_windows(n, np.random.default_rng(seed), OFFSET, noise=1.2)


def infer(http, x, outputs=None, **parameters):
    tensor = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    message = {"inputs": [tensor], "parameters": parameters}
    if outputs:
        message["outputs"] = [{"name": name} for name in outputs]
    return http.post(f"{MODEL}/infer", json=message)


def tensors(answer):
    assert answer.status_code == 200, answer.text
    return {o["name"]: np.reshape(o["data"], o["shape"]) for o in answer.json()["outputs"]}


def test_features_and_logits_are_means_over_the_views(http, bundle):
    x, _ = windows()
    of_views = Runtime(bundle.backbone).run(views(x, bundle.manifest.input, 5))
    wanted = averaged(of_views, 5)
    plain = tensors(infer(http, x, ["features", "logits"], user_id="ana"))
    found = tensors(infer(http, x, ["features", "logits", "probabilities"], user_id="ana", tta=5))
    np.testing.assert_allclose(found["features"], wanted, atol=1e-4)
    assert np.abs(found["features"] - plain["features"]).max() > 1e-3
    np.testing.assert_allclose(found["probabilities"], softmax(found["logits"]), atol=1e-5)
    # A head is affine: the mean of the logits is the logits of the mean.
    step = np.linalg.lstsq(np.c_[plain["features"], np.ones(len(x))], plain["logits"], rcond=None)[0]
    np.testing.assert_allclose(np.c_[found["features"], np.ones(len(x))] @ step, found["logits"], atol=1e-2)
    np.testing.assert_allclose(tensors(infer(http, x, ["features"], tta=5))["features"], wanted, atol=1e-4)


def test_one_view_is_the_window(http):
    x, _ = windows()
    plain, one = (infer(http, x, user_id="ana", **more).json() for more in ({}, {"tta": 1}))
    assert plain == one


def test_everybody_asks_for_it_in_his_way(http):
    x, _ = windows(1)
    wanted = tensors(infer(http, x, ["probabilities"], user_id="ana", tta=4))["probabilities"]
    said = http.post(f"{MODEL}/predict", params={"user_id": "ana", "tta": 4}, json={"inputs": x.tolist()}).json()
    found = [[p["probabilities"][label] for label in LABELS] for p in said["predictions"]]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    raw = http.post(f"{MODEL}/infer?tta=4&user_id=ana", content=x[:1].astype("<f4").tobytes(), headers=headers)
    assert raw.status_code == 200, raw.text
    data = raw.content[int(raw.headers["inference-header-content-length"]) :]
    np.testing.assert_allclose(np.frombuffer(data[: 4 * len(LABELS)], "<f4"), wanted[0], atol=1e-5)
    users = {"name": "user_id", "datatype": "BYTES", "shape": [3], "data": ["ana", "nobody", "ana"]}
    tensor = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    mixed = tensors(http.post(f"{MODEL}/infer", json={"inputs": [tensor, users], "parameters": {"tta": 4}}))
    assert mixed["head"].tolist() == ["personal", "shared", "personal"]
    np.testing.assert_allclose(mixed["probabilities"][[0, 2]], wanted[[0, 2]], atol=1e-5)


def test_a_calibration_is_fitted_on_the_means(http, bundle):
    """As with logistic regression on features given: what is sent with tta is what the means of its views are."""
    x, labels = windows(12, seed=5)
    sent = {"labels": labels, "mode": "replace", "activate": "always"}
    with_views = http.post(f"{MODEL}/users/v/calibrations", json={**sent, "inputs": x.tolist(), "tta": 6}).json()
    without = http.post(f"{MODEL}/users/w/calibrations", json={**sent, "inputs": x.tolist()}).json()
    assert with_views["classes"] == without["classes"]  # views are not windows
    found = [http.get(f"{MODEL}/users/{u}/versions/1/weights").content for u in ("v", "w")]
    assert found[0] != found[1]
    both = {"labels": labels, "inputs": x.tolist(), "versions": ["active"]}
    scores = [http.post(f"{MODEL}/users/v/evaluations", json={**both, "tta": k}).json() for k in (1, 6)]
    assert scores[0]["windows"] == scores[1]["windows"] == len(x)
    assert scores[0]["versions"][0]["log_loss"] != scores[1]["versions"][0]["log_loss"]
    enrolled = http.post(f"{MODEL}/users/e/samples", json={"labels": labels, "inputs": x.tolist(), "tta": 6})
    assert enrolled.status_code == 201, enrolled.text


@pytest.mark.parametrize("value", [0, 33, 2.5, "many", True])
def test_a_number_of_views_that_cannot_be(http, value):
    x, labels = windows(3)
    said = infer(http, x, tta=value)
    assert (said.status_code, said.json()["code"]) == (400, "invalid_request")
    assert "tta must be a number of views from 1 to 32" in said.json()["error"]
    said = http.post(f"{ANA}/calibrations", json={"inputs": x.tolist(), "labels": labels, "tta": value})
    assert said.status_code == 400
    assert "tta must be" in said.json()["error"]


def test_too_many_views_for_a_request(tiny_models, tmp_path):
    with running_service(tiny_models, tmp_path, "--frontends", "1", "--max-body-bytes", "100000") as service:
        x = np.zeros((100, *windows(1)[0].shape[1:]), np.float32)
        said = httpx.post(
            f"{service.url}{MODEL}/predict?tta=32",
            content=orjson.dumps({"inputs": x.tolist()}),
            headers={"Content-Type": "application/json"},
        )
        assert said.status_code == 413, said.text
        assert "with tta 32 at most" in said.json()["error"]
