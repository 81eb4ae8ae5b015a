"""Labelled windows scored on versions."""

import numpy as np
import pytest

from tests.service.test_users import OFFSET, URL, calibrate
from tests.tiny import LABELS, tiny_windows

EVALUATIONS = f"{URL}/evaluations"


async def evaluate(client, rng, offset=OFFSET, **fields):
    x, labels = tiny_windows(20, rng, offset)
    return await client.post(EVALUATIONS, json={"inputs": x.tolist(), "labels": labels, **fields})


async def test_scores_are_those_of_the_predictions(client, rng):
    await calibrate(client, rng)
    x, labels = tiny_windows(20, rng, OFFSET / 2)
    answer = (await client.post(EVALUATIONS, json={"inputs": x.tolist(), "labels": labels})).json()
    assert [v["version"] for v in answer["versions"]] == ["shared", 1]
    assert answer["windows"] == 60
    for found, query in zip(answer["versions"], ("?user_id=none", "?user_id=ana"), strict=True):
        predicted = (await client.post(f"/v2/models/tiny/predict{query}", json={"inputs": x.tolist()})).json()
        said = [p["label"] for p in predicted["predictions"]]
        hit = [a == b for a, b in zip(said, labels, strict=True)]
        assert found["accuracy"] == pytest.approx(np.mean(hit), abs=1e-6)
        table = np.array(found["confusion"])
        assert table.sum() == 60
        for i, label in enumerate(LABELS):
            assert table[i].tolist() == [
                sum(a == label and b == c for a, b in zip(labels, said, strict=True)) for c in LABELS
            ]
            assert found["recall"][label] == pytest.approx(table[i, i] / 20, abs=1e-6)
        sure = np.array([p["probability"] for p in predicted["predictions"]])
        bins = np.minimum((sure * 10).astype(int), 9)
        gaps = [abs(np.mean(np.array(hit)[bins == b]) - sure[bins == b].mean()) * np.mean(bins == b) for b in set(bins)]
        assert found["calibration_error"] == pytest.approx(sum(gaps), abs=1e-4)
    versions = (await client.get(f"{URL}/versions")).json()["versions"]
    assert len(versions) == 1  # nothing is stored


async def test_versions_by_name_and_what_is_not_there(client, rng):
    await calibrate(client, rng)
    await calibrate(client, rng)
    answer = (await evaluate(client, rng, versions=[1, "active", 2])).json()
    assert [v["version"] for v in answer["versions"]] == [1, 2]
    missing = await evaluate(client, rng, versions=[9])
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_version")
    for wrong in ([], ["best"], [0], [True], "shared", [1] * 65):
        assert (await evaluate(client, rng, versions=wrong)).status_code == 400
    assert (await evaluate(client, rng, mode="update")).status_code == 400


async def test_a_label_without_windows_has_no_recall_and_strangers_have_the_shared_head(client, rng):
    x, labels = tiny_windows(5, rng)
    answer = await client.post(
        "/v2/models/tiny/users/new/evaluations", json={"inputs": x[:10].tolist(), "labels": labels[:10]}
    )
    (only,) = answer.json()["versions"]
    assert only["version"] == "shared"
    assert only["recall"]["open"] is None
    assert (await client.get("/v2/models/tiny/users/new")).status_code == 404
