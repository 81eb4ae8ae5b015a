"""Windows that are sent again: the active head, fitted on them, is not compared with a new one on them."""

import numpy as np
import pytest

from service.app import create_app
from tests.conftest import running
from tests.service.test_multitask import calibrate_angles, ok, settings_on
from tests.tiny import tiny_windows, write_tiny_bundle
from tests.tiny_outputs import write_tiny_outputs
from tests.tiny_regression import person

URL = "/v2/models/tiny/users/ana/calibrations"
AGAIN = "of the repetitions were sent before; each counts once; the active head may be fitted on them"


@pytest.fixture
async def client(tmp_path):
    write_tiny_bundle(tmp_path / "models", user_labels=3)
    async with running(create_app(settings_on(tmp_path / "models", tmp_path))) as c:
        yield c


def session(rng, repetitions=2, noise=2.0):
    x, labels = tiny_windows(6 * repetitions, rng, np.array((1.0, 0.5, 0, 0)), noise)
    return {"inputs": x.tolist(), "labels": labels, "repetitions": [i % (6 * repetitions) // 6 for i in range(len(x))]}


def joined(one, other):
    later = [r + 1 + max(one["repetitions"]) for r in other["repetitions"]]
    return {**{k: one[k] + other[k] for k in ("inputs", "labels")}, "repetitions": one["repetitions"] + later}


async def test_a_head_is_compared_on_windows_that_the_active_one_was_not_fitted_on(client, rng):
    first, more = session(rng), session(rng, 3)
    ok(await client.post(URL, json={**first, "activate": "always"}), 201)
    again = ok(await client.post(URL, json=first), 201)
    assert again["metrics"]["previous"] is None
    assert any(f"2 {AGAIN}" in text for text in again["warnings"])
    both = ok(await client.post(URL, json={**joined(first, more), "dry_run": True}), 201)
    assert both["metrics"]["candidate"]["n"] == 90
    assert both["metrics"]["previous"]["n"] == 54, "three repetitions of the five"
    new = ok(await client.post(URL, json=more), 201)
    assert new["metrics"]["previous"]["n"] == new["metrics"]["candidate"]["n"] == 54
    assert not any("sent before" in text for text in new["warnings"])


async def test_a_replacement_by_the_same_windows_is_told_that_the_comparison_flatters(client, rng):
    first = session(rng)
    ok(await client.post(URL, json={**first, "activate": "always"}), 201)
    again = ok(await client.post(URL, json={**first, "mode": "replace"}), 201)
    assert again["metrics"]["previous"]["n"] == 36
    assert any("was fitted on 2 of these repetitions and looks better" in text for text in again["warnings"])
    other = ok(await client.post(URL, json={**session(rng), "mode": "replace", "dry_run": True}), 201)
    assert not any("was fitted on" in text for text in other["warnings"])


async def test_only_labels_of_the_users_own_name_the_way_out(client, rng):
    x = rng.standard_normal((20, 2, 4)) + np.repeat([9.0, -9.0], 10)[:, None, None]
    own = {
        "inputs": x.tolist(),
        "labels": ["pinch"] * 10 + ["tap"] * 10,
        "repetitions": [i % 10 // 5 for i in range(20)],
    }
    told = ok(await client.post(URL, json=own), 201)
    assert told["outcome"] == "insufficient"
    assert "let the head answer no others: among 'shown'" in told["reason"]
    assert ok(await client.post(URL, json={**own, "among": "shown"}), 201)["outcome"] == "promoted"


async def test_targets_too(tmp_path, rng):
    write_tiny_outputs(tmp_path / "models")
    async with running(create_app(settings_on(tmp_path / "models", tmp_path))) as client:
        who, seed = person(rng, 2.0), rng.bit_generator.state
        await calibrate_angles(client, rng, who=who)
        rng.bit_generator.state = seed
        again = await calibrate_angles(client, rng, who=who)
        assert again["metrics"]["previous"] is None
        assert any(f"2 {AGAIN}" in text for text in again["warnings"])
        new = await calibrate_angles(client, rng, who=who)
        assert new["metrics"]["previous"]["n"] == 80
