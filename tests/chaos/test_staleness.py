"""Two replicas, one user: answers are of versions that were current within the last two seconds, or those asked for."""

import contextlib
import os
import sys
import threading
import time

import httpx
import numpy as np

from service.commands.process import running_service
from service.personal.database import STALENESS_SECONDS
from tests.chaos.load import X, tensors
from tests.tiny import tiny_windows

CALLS = int(os.environ.get("HEADWAY_INTERLEAVED_CALLS", "150"))
"""Calibrations and predictions together. docs/deployment.md has what came of more."""
URL = "/v2/models/tiny"


class History:
    """When each version became current, as the one who moved it saw: between the call and its answer."""

    def __init__(self):
        self.begun, self.answered = [0.0], [0.0]

    @contextlib.contextmanager
    def moving(self):
        self.begun.append(time.monotonic())
        yield len(self.begun) - 1
        self.answered.append(time.monotonic())

    def age(self, version, asked):
        """How long a version had not been current when it was asked for; 0 where it still could be."""
        after = version + 1
        return max(0.0, asked - self.answered[after]) if after < len(self.answered) else 0.0


def calibrate(urls, history, ended):
    rng = np.random.default_rng(3)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=url, timeout=30)) for url in urls]
        while not ended.is_set():
            x, labels = tiny_windows(6, rng, np.array([3.0, 3.0, 0.0, 0.0]))
            body = {"inputs": x.tolist(), "labels": labels, "activate": "always", "mode": "replace"}
            with history.moving() as version:
                answer = clients[rng.integers(2)].post(f"{URL}/users/ana/calibrations", json=body)
                assert answer.status_code == 201, answer.text
                assert answer.json()["version"] == version
            time.sleep(rng.exponential(0.03))


def predict(urls, history, ended, seed, seen):
    rng = np.random.default_rng(seed)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=url, timeout=30)) for url in urls]
        while not ended.is_set():
            wanted = len(history.answered) - 1 if rng.random() < 0.3 else None  # the newest that was answered
            asked = time.monotonic()
            number = {} if wanted is None else {"head_version": wanted}
            answer = clients[rng.integers(2)].post(f"{URL}/infer", json=tensors(X, user_id="ana", **number))
            done = time.monotonic()
            assert answer.status_code == 200, answer.text
            seen.append((asked, done, wanted, answer.json()["parameters"]["head_version"]))
            time.sleep(rng.exponential(0.02))


def test_every_answer_is_of_a_version_that_was_current(tiny_models, postgres_server):
    history, ended, seen, wrong = History(), threading.Event(), [], []
    url = postgres_server.database()

    def run(work, *arguments):
        try:
            work(*arguments)
        except Exception as e:
            wrong.append(e)
            ended.set()

    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(running_service(tiny_models, url, "--frontends", n)).url for n in ("1", "2")]
        threads = [threading.Thread(target=run, args=(calibrate, urls, history, ended))]
        threads += [threading.Thread(target=run, args=(predict, urls, history, ended, n, seen)) for n in range(3)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 300
        while len(seen) + len(history.answered) < CALLS and not ended.is_set() and time.monotonic() < deadline:
            time.sleep(0.05)
        ended.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong
    ages = []
    for asked, done, wanted, version in seen:
        assert version == wanted if wanted is not None else history.begun[version] <= done
        if wanted is None:
            ages.append(history.age(version, asked))
    sys.stdout.write(
        f"{len(history.answered) - 1} calibrations, {len(seen)} predictions on two replicas; of {len(ages)} without a "
        f"version {sum(age > 0 for age in ages)} were not of the newest, the oldest by {max(ages):.3f} s\n"
    )
    assert max(ages) <= STALENESS_SECONDS
    assert len(seen) + len(history.answered) >= CALLS
