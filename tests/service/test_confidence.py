"""Rejected rows, sets of labels with a coverage, and corrections, in one process and across front ends."""

import httpx
import numpy as np
import orjson
import pytest

from exporters import bundle as bundles
from models.heads import prior as priors
from models.heads.confidence import LEVELS
from service.app import create_app
from service.commands.process import running_service
from service.config import Settings
from tests.conftest import running
from tests.service.test_users import OFFSET
from tests.tiny import LABELS, tiny_graph, tiny_manifest, tiny_prior, tiny_windows

MODEL = "/v2/models/tiny"
ANA = f"{MODEL}/users/ana"


@pytest.fixture(scope="module", params=["1", "2"], ids=["one-process", "front-ends"])
def http(request, tiny_models, tmp_path_factory):
    """A client of a service on which `ana` and `eve` are calibrated and nobody else."""
    store = tmp_path_factory.mktemp("store")
    with (
        running_service(tiny_models, store, "--frontends", request.param) as service,
        httpx.Client(base_url=service.url, timeout=30) as client,
    ):
        rng = np.random.default_rng(3)
        for user, offset in (("ana", OFFSET), ("eve", -OFFSET)):
            # Noisy enough that probabilities differ, and enough windows that 0.99 has a quantile.
            x, labels = tiny_windows(60, rng, offset, noise=1.2)
            payload = {"inputs": x.tolist(), "labels": labels, "repetitions": [i % 4 for i in range(len(x))]}
            answer = client.post(f"{MODEL}/users/{user}/calibrations", json={**payload, "activate": "always"})
            assert answer.status_code == 201, answer.text
        yield client


def windows(n=40, noise=1.2, offset=OFFSET, seed=11):
    return tiny_windows(n, np.random.default_rng(seed), offset, noise=noise)


def predict(http, x, **query):
    answer = http.post(f"{MODEL}/predict", params=query, json={"inputs": x.tolist()})
    assert answer.status_code == 200, answer.text
    return answer.json()


def infer(http, x, parameters=None, **fields):
    tensor = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    message = {"inputs": [tensor, *fields.pop("more", [])], "parameters": parameters or {}, **fields}
    return http.post(f"{MODEL}/infer", json=message)


def outputs(answer):
    assert answer.status_code == 200, answer.text
    return {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in answer.json()["outputs"]}


def test_rows_below_the_threshold_are_rejected(http):
    x, _ = windows()
    plain = predict(http, x, user_id="ana")["predictions"]
    answer = predict(http, x, user_id="ana", threshold=0.8)
    rejected = [p["probability"] < 0.8 for p in plain]
    assert 0 < sum(rejected) < len(rejected)
    assert [p["rejected"] for p in answer["predictions"]] == rejected
    assert [p["label"] for p in answer["predictions"]] == [
        None if r else p["label"] for p, r in zip(plain, rejected, strict=True)
    ]
    assert [p["probabilities"] for p in answer["predictions"]] == [p["probabilities"] for p in plain]
    assert answer["rejected"] == sum(rejected)
    assert "rejected" not in plain[0]
    found = infer(http, x, {"user_id": "ana", "threshold": 0.8})
    assert found.json()["parameters"]["rejected"] == sum(rejected)
    got = outputs(found)
    assert got["rejected"].tolist() == rejected
    assert got["label"].tolist() == [p["label"] or "" for p in answer["predictions"]]


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_hold_the_true_label_as_often_as_asked(http, coverage):
    x, labels = windows(200, seed=5)
    answer = predict(http, x, user_id="ana", coverage=coverage)
    sets = [p["set"] for p in answer["predictions"]]
    held = np.mean([label in s for label, s in zip(labels, sets, strict=True)])
    assert held > coverage - 0.05
    assert answer["coverage_calibrated_on"] == "held_out"
    for p in answer["predictions"]:
        assert p["set"][0] == p["label"]
        ranked = [p["probabilities"][label] for label in p["set"]]
        assert ranked == sorted(ranked, reverse=True)


def test_more_coverage_never_takes_a_label_out(http):
    x, _ = windows()
    smaller = np.zeros((len(x), len(LABELS)), bool)
    for coverage in (0.1, 0.5, 0.77, 0.8, 0.93, 0.99):
        mask = outputs(infer(http, x, {"user_id": "ana", "coverage": coverage}))["set"]
        assert (mask >= smaller).all()
        smaller = mask


def test_rows_of_several_users_have_each_their_own(http):
    x, _ = windows()
    users = ["ana" if i % 2 else "eve" for i in range(len(x))]
    tensor = {"name": "user_id", "datatype": "BYTES", "shape": [len(x)], "data": users}
    together = infer(http, x, {"coverage": 0.9}, more=[tensor])
    both = outputs(together)["set"]
    assert together.json()["parameters"] == {"coverage_calibrated_on": "held_out"}
    for user in ("ana", "eve"):
        own = outputs(infer(http, x, {"user_id": user, "coverage": 0.9}))["set"]
        mine = [u == user for u in users]
        assert (both[mine] == own[mine]).all()


def test_a_head_that_is_not_calibrated_for_sets_says_what_to_do(http):
    x, _ = windows(2)
    for query in ({}, {"user_id": "nobody"}, {"user_id": "ana", "head_version": 0}):
        answer = http.post(f"{MODEL}/predict", params={**query, "coverage": 0.9}, json={"inputs": x.tolist()})
        assert (answer.status_code, answer.json()["code"]) == (422, "unprocessable")
        assert "two repetitions" in answer.json()["error"]


def test_in_raw_binary_and_by_name_and_in_binary(http):
    x, _ = windows(4)
    headers = {"Inference-Header-Content-Length": "0"}
    query = {"user_id": "ana", "threshold": "0.8", "coverage": "0.9", "binary_data_output": "false"}
    raw = http.post(f"{MODEL}/infer", params=query, content=x.tobytes(), headers=headers)
    asked = {"user_id": "ana", "threshold": 0.8, "coverage": 0.9}
    assert raw.json() == infer(http, x, asked).json()
    named = [{"name": "set", "parameters": {"binary_data": True}}, {"name": "rejected"}]
    answer = infer(http, x, asked, outputs=named)
    length = int(answer.headers["inference-header-content-length"])
    mask = np.frombuffer(answer.content[length:], bool).reshape(len(x), 3)
    assert (mask == outputs(raw)["set"]).all()
    head = orjson.loads(answer.content[:length])
    assert [o["name"] for o in head["outputs"]] == ["set", "rejected"]
    # The same header again, which is not read again, and for another user.
    for user in ("ana", "eve", "ana"):
        again = infer(http, x, {**asked, "user_id": user}, outputs=named)
        assert (again.content == answer.content) == (user == "ana")


@pytest.mark.parametrize(
    "asked",
    [
        {"threshold": 1.5}, {"threshold": "0.5"}, {"threshold": True}, {"coverage": 0}, {"coverage": 1},
        {"coverage": -1}, {"coverage": []}, {"feedback": 1}, {"feedback": True},
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_refused(http, asked):
    x, _ = windows(1)
    answer = infer(http, x, asked)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert next(iter(asked)) in answer.json()["error"]


def test_outputs_that_need_a_parameter_say_so(http):
    x, _ = windows(1)
    for name, needed in (("set", "coverage"), ("rejected", "threshold")):
        answer = infer(http, x, outputs=[{"name": name}])
        assert answer.status_code == 400
        assert needed in answer.json()["error"]
    for query in ({"threshold": "nan"}, {"coverage": "half"}):
        assert http.post(f"{MODEL}/predict", params=query, json={"inputs": x.tolist()}).status_code == 400


def test_a_report_has_the_calibration_error_and_the_floors(http):
    report = http.get(f"{ANA}/versions/1").json()["report"]["confidence"]
    assert report["windows"] == 180
    assert report["calibration_error"]["after"] <= report["calibration_error"]["before"] + 0.02
    floors = list(report["coverage"].values())
    assert floors == sorted(floors, reverse=True)


def test_a_corrected_prediction_becomes_a_sample(http):
    user = f"{MODEL}/users/fay"
    x, _ = windows(1)
    seen = set()
    for i in range(6):  # over several connections, which different processes serve
        headers = {"Connection": "close"}
        query = {"user_id": "fay", "feedback": "true"}
        answer = http.post(f"{MODEL}/predict", params=query, json={"inputs": x.tolist()}, headers=headers).json()
        seen.add(answer["prediction_id"])
        correction = {"prediction_id": answer["prediction_id"], "labels": list(LABELS), "accept": ["off_distribution"]}
        made = http.post(f"{user}/feedback", json=correction, headers=headers)
        assert made.status_code == 201, made.text
        assert (made.json()["accepted"], made.json()["samples"]) == (3, 3 * (i + 1))
        again = http.post(f"{user}/feedback", json=correction)
        assert again.headers["idempotent-replay"] == "true"
        other = http.post(f"{user}/feedback", json={**correction, "labels": ["rest"] * 3})
        assert other.status_code == 409
    assert len(seen) == 6
    assert http.get(f"{user}/samples").json()["samples"] == 18


def test_a_prediction_is_corrected_by_its_user_only_and_erased_with_them(http):
    x, _ = windows(1)
    number = infer(http, x, {"user_id": "gil", "feedback": True}).json()["parameters"]["prediction_id"]
    correction = {"prediction_id": number, "label": "fist"}
    assert http.post(f"{ANA}/feedback", json=correction).status_code == 404
    for wrong in ("x", "", "7-aa", "0-00", number + "0"):
        answer = http.post(f"{MODEL}/users/gil/feedback", json={**correction, "prediction_id": wrong})
        assert answer.status_code == 404
    assert http.post(f"{MODEL}/users/gil/feedback", json={"prediction_id": number}).status_code == 400
    assert http.delete(f"{MODEL}/users/gil").status_code == 200
    assert http.post(f"{MODEL}/users/gil/feedback", json=correction).status_code == 404


def test_nothing_is_said_where_nothing_was_asked(http):
    x, _ = windows(1)
    assert set(predict(http, x, user_id="ana")) == {"predictions", "model", "model_version", "head", "head_version"}
    assert infer(http, x, {"user_id": "ana"}).json()["parameters"] == {"head": "personal", "head_version": 1}


async def test_the_populations_floors_stand_in_where_a_user_has_none(tmp_path, rng):
    head = tiny_manifest().head.model_copy(update={"set_floors": tuple(np.linspace(0.9, 0.05, len(LEVELS)))})
    files = {bundles.BACKBONE: tiny_graph(), bundles.PRIOR: priors.to_bytes(tiny_prior()), bundles.CARD: b"# tiny\n"}
    bundles.write(tmp_path / "models", tiny_manifest().model_copy(update={"head": head}), files)
    settings = Settings(models=tmp_path / "models", store=f"sqlite+aiosqlite:///{tmp_path}/headway.db")
    async with running(create_app(settings)) as client:
        x, labels = windows(20)
        asked = {"params": {"user_id": "ana", "coverage": 0.95}, "json": {"inputs": x.tolist()}}
        shared = (await client.post(f"{MODEL}/predict", **asked)).json()
        assert shared["coverage_calibrated_on"] == "population"
        floor = head.set_floors[LEVELS.index(0.95)]
        for p in shared["predictions"]:
            likely = {label for label, q in p["probabilities"].items() if q >= floor}
            assert set(p["set"]) == likely | {p["label"]}
        # Too few windows to hold any out: the head is personal, and what its sets rest on is the population.
        few, names = tiny_windows(2, rng, OFFSET)
        payload = {"inputs": few.tolist(), "labels": names, "activate": "always"}
        report = (await client.post(f"{ANA}/calibrations", json=payload)).json()
        assert "confidence" not in report
        personal = (await client.post(f"{MODEL}/predict", **asked)).json()
        assert (personal["head"], personal["coverage_calibrated_on"]) == ("personal", "population")
        both = {"name": "user_id", "datatype": "BYTES", "shape": [2], "data": ["ana", "bob"]}
        payload = {"inputs": x.tolist(), "labels": labels, "repetitions": [i % 4 for i in range(len(x))]}
        await client.post(f"{MODEL}/users/bob/calibrations", json={**payload, "activate": "always"})
        tensor = {"name": "input", "datatype": "FP32", "shape": [2, 2, 4], "data": x[:2].ravel().tolist()}
        mixed = await client.post(f"{MODEL}/infer", json={"inputs": [tensor, both], "parameters": {"coverage": 0.9}})
        assert mixed.json()["parameters"]["coverage_calibrated_on"] == "mixed"
