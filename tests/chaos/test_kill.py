"""SIGKILL at any moment of a calibration: after the restart the version before serves, or the new one, whole."""

import os
import signal
import threading
import time

import numpy as np

from service.client import Client, ServiceError
from service.commands.process import running_service
from tests.tiny import tiny_windows

OFFSET = np.array([3.0, 3.0, 0.0, 0.0])
ROUNDS = 8


def until_cut_off(client, x, labels, repetitions, acknowledged):
    """Calibrate again and again until the service is gone; return the last version that was acknowledged."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            acknowledged = client.calibrate("tiny", "ana", x, labels, repetitions)["version"]
        except ServiceError as e:
            if e.status not in (None, 503):  # a front end that outlives the service for a moment says that it is gone
                raise  # refused, not cut off
            return acknowledged
    raise AssertionError("the service was never killed")


def test_a_kill_leaves_the_previous_or_the_acknowledged_version(tiny_models, tmp_path, rng):
    x, labels = tiny_windows(20, rng, OFFSET)
    repetitions = [i % 2 for i in range(len(x))]
    acknowledged = 0
    for round_number in range(ROUNDS):
        with running_service(tiny_models, tmp_path) as service, Client(service.url) as client:
            _, answer = client.infer("tiny", x[:1], user="ana")
            # Nothing acknowledged is lost; at most one more, whose answer the kill cut off, may be there, whole.
            assert answer["head_version"] in (acknowledged, acknowledged + 1)
            acknowledged = answer["head_version"]
            if acknowledged:
                weights = client.request("GET", f"{client.user_path('tiny', 'ana')}/versions/{acknowledged}/weights")
                assert len(weights.content) > 48
            killer = threading.Timer(
                0.02 + 0.03 * rng.random() * (round_number + 1), os.kill, (service.pid, signal.SIGKILL)
            )
            killer.start()
            acknowledged = until_cut_off(client, x, labels, repetitions, acknowledged)
            killer.join()
    assert acknowledged > 0
