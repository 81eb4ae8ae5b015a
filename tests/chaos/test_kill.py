"""SIGKILL at any moment of a calibration: what was promoted before is served after the restart, or the new version whole."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from service.client import Client, ServiceError
from service.commands.process import running_service
from tests.tiny import tiny_windows

OFFSET = np.array([3.0, 3.0, 0.0, 0.0])
ROUNDS = 8


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
            deadline = time.monotonic() + 20
            with pytest.raises(ServiceError):
                while time.monotonic() < deadline:
                    acknowledged = client.calibrate("tiny", "ana", x, labels, repetitions)["version"]
            killer.join()
    assert acknowledged > 0
