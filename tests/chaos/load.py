"""A load of calibrations and predictions on services that may end at any moment, and what must be true of it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import httpx
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from tests.tiny import tiny_windows

X = np.arange(8, dtype=np.float32).reshape(1, 2, 4)
Z = X.reshape(1, 4, 2).sum(2)
"""The features of `X`, as the tiny graph makes them."""
CUT_OFF = (httpx.TransportError,)


def tensors(x: NDArray[np.float32], **parameters: object) -> dict[str, object]:
    """A request for logits."""
    tensor = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    return {"inputs": [tensor], "outputs": [{"name": "logits"}], "parameters": parameters}


class Load:
    """Threads that calibrate and predict for users on services, whose URLs may change; what they were answered.

    Attributes:
        acknowledged: versions and ids of calibrations that were answered, by user.
        answered: predictions: the user, the version, the logits.
        refused: answers that are no answer: 503 where the store or the service is away, 409 where two met.
    """

    def __init__(self, urls: Callable[[], Sequence[str]], users: int, seed: int) -> None:
        self._urls, self._rng = urls, np.random.default_rng(seed)
        self.users = [f"user-{n}" for n in range(users)]
        self.acknowledged: dict[str, dict[int, str]] = defaultdict(dict)
        self.answered: list[tuple[str, int, tuple[float, ...]]] = []
        self.refused = self.cut_off = 0
        self._ended = threading.Event()
        self._wrong: list[str] = []
        self._heads: dict[tuple[str, int], NDArray[np.floating]] = {}  # logits of `X`

    @contextlib.contextmanager
    def running(self, calibrating: int = 2, predicting: int = 2):
        """Run until the block ends; what went wrong in a thread is raised here."""
        seeds = self._rng.spawn(calibrating + predicting)
        work = [self._calibrate] * calibrating + [self._predict] * predicting
        threads = [threading.Thread(target=self._run, args=each) for each in zip(work, seeds, strict=True)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()
            self._ended.clear()
        assert not self._wrong, self._wrong[:3]

    def _run(self, step: Callable[[httpx.Client, np.random.Generator], None], rng: np.random.Generator) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._ended.is_set():
                try:
                    step(client, rng)
                except CUT_OFF:
                    self.cut_off += 1
                    time.sleep(0.05)
                except Exception as e:
                    self._wrong.append(repr(e))
                    return

    def _url(self, rng: np.random.Generator) -> str:
        return str(rng.choice(list(self._urls())))

    def _calibrate(self, client: httpx.Client, rng: np.random.Generator) -> None:
        number = int(rng.integers(len(self.users)))
        user = self.users[number]
        x, labels = tiny_windows(6, rng, np.array([number, 0.0, -number, 1.0]))
        body = {"inputs": x.tolist(), "labels": labels, "repetitions": [i % 2 for i in range(len(x))]}
        url = f"{self._url(rng)}/v2/models/tiny/users/{user}/calibrations"
        answer = client.post(url, json={**body, "activate": "always"})
        if answer.status_code == 201:
            report = answer.json()
            self.acknowledged[user][report["version"]] = report["calibration_id"]
        elif answer.status_code in (409, 503):
            self.refused += 1
            time.sleep(0.02)
        else:
            raise AssertionError(f"{answer.status_code}: {answer.text}")

    def _predict(self, client: httpx.Client, rng: np.random.Generator) -> None:
        user = str(rng.choice(self.users))
        answer = client.post(f"{self._url(rng)}/v2/models/tiny/infer", json=tensors(X, user_id=user))
        if answer.status_code == 200:
            body = answer.json()
            logits = tuple(body["outputs"][0]["data"])
            self.answered.append((user, body["parameters"]["head_version"], logits))
        elif answer.status_code == 503:
            self.refused += 1
        else:
            raise AssertionError(f"{answer.status_code}: {answer.text}")
        time.sleep(0.01)

    def check(self, url: str) -> int:
        """See that nothing acknowledged is lost, every version is whole, and all answers were of the user's own heads.

        Returns:
            How many versions there are.
        """
        stored = 0
        with httpx.Client(base_url=f"{url}/v2/models/tiny", timeout=30) as client:
            shared = client.post("/infer", json=tensors(X)).json()["outputs"][0]["data"]
            for user in self.users:
                self._heads[user, 0] = np.array(shared)
                listed = client.get(f"/users/{user}/versions").json()
                versions = {v["version"]: v for v in listed["versions"]}
                stored += len(versions)
                assert sorted(versions) == list(range(1, len(versions) + 1)), (user, sorted(versions))
                for version, calibration in self.acknowledged[user].items():
                    assert versions[version]["calibration_id"] == calibration, (user, version)
                assert listed["active"] == (max(versions) if versions else "shared")
                for number, version in versions.items():
                    if (user, number) in self._heads:
                        continue  # looked at before; versions do not change
                    answer = client.get(f"/users/{user}/versions/{number}/weights")
                    assert answer.status_code == 200, (user, number, answer.status_code, answer.text)
                    arrays = safetensors.numpy.load(answer.content)
                    # The service reads a head by its digest, and refuses one that does not fit.
                    assert answer.headers["etag"] == f'"{version["digest"]}"'
                    self._heads[user, number] = (Z @ arrays["weight"].T + arrays["bias"])[0]
        for user, number, logits in self.answered:
            np.testing.assert_allclose(
                logits, self._heads[user, number], rtol=1e-4, atol=1e-4, err_msg=f"{user} {number}"
            )
        return stored
