"""Rows that front ends answer are learned from in the process that owns the store."""

import httpx
import numpy as np

from tests.frontends.test_frontends import OFFSET, models, service, until  # noqa: F401 - fixtures
from tests.tiny import tiny_windows

URL = "/v2/models/tiny/users/ana"
MOVED = OFFSET + np.array([1.5, -1.0, 1.5, -1.0])


def predict(client, rng, offset=MOVED, rows=30):
    x, _ = tiny_windows(rows, rng, offset)
    body = {"inputs": x[rng.permutation(len(x))].tolist()}
    return client.post("/v2/models/tiny/predict?user_id=ana", json=body).raise_for_status().json()


def test_a_head_follows_its_user_through_front_ends(service, rng):  # noqa: F811
    with httpx.Client(base_url=service.url, timeout=20) as client:
        x, labels = tiny_windows(20, rng, OFFSET)
        repetitions = [i % 2 for i in range(len(x))]
        body = {"inputs": x.tolist(), "labels": labels, "repetitions": repetitions}
        client.post(f"{URL}/calibrations", json=body).raise_for_status()
        predict(client, rng)
        assert client.get(URL).json()["adaptation"] is None
        client.put(URL, json={"adapt": "on"}).raise_for_status()

        def followed():
            return predict(client, rng)["head_version"] == 2

        until(followed)
        assert client.get(f"{URL}/versions/2").json()["report"]["origin"] == "adaptation"
        client.put(URL, json={"adapt": "off"}).raise_for_status()
        predict(client, rng)
        assert client.get(URL).json()["adaptation"] is None
