"""The command line moves a user between two services, writes a model of them, and follows an upgrade."""

import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest

from service.client import Client
from service.commands.process import running_service
from tests.tiny import tiny_windows, write_tiny_bundle
from tests.upgraded import write_bridged_bundle


def headway(*arguments, fails=False):
    line = [sys.executable, "-m", "service.cli", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_user_in_a_file_and_an_upgrade(tmp_path, rng):
    models = tmp_path / "models"
    write_tiny_bundle(models)
    x, labels = tiny_windows(20, rng, np.array([1.0, 1.0, 0.0, 0.0]))
    who = ("--model", "tiny", "--user", "ana")
    with (
        running_service(models, tmp_path / "a", "--frontends", "1") as here,
        running_service(models, tmp_path / "b", "--frontends", "1") as there,
        Client(here.url) as one,
        Client(there.url) as two,
    ):
        one.calibrate("tiny", "ana", x, labels, [i % 3 for i in range(len(x))])
        said = headway("user", "export", *who, "--out", tmp_path / "ana.zip", "--url", here.url)
        assert "bytes written" in said
        said = headway("user", "import", *who, "--file", tmp_path / "ana.zip", "--url", there.url)
        assert "1 versions, 1 with statistics; active: 1" in said
        again = ("user", "import", *who, "--file", tmp_path / "ana.zip", "--url", there.url)
        assert "409" in headway(*again, fails=True)
        assert "active: 1" in headway(*again, "--replace")
        headway("user", "onnx", *who, "--out", tmp_path / "ana.onnx", "--url", there.url)
        session = ort.InferenceSession(str(tmp_path / "ana.onnx"), providers=["CPUExecutionProvider"])
        probabilities, _ = two.infer("tiny", x, user="ana")
        assert np.abs(session.run(["probabilities"], {"input": x})[0] - probabilities).max() < 1e-5

        write_bridged_bundle(models)
        two.request("POST", "/v2/repository/models/tiny/load")
        assert "1 would be moved" in headway("recalibrate", "--model", "tiny", "--dry-run", "--url", there.url)
        said = headway("recalibrate", "--model", "tiny", "--from", "1", "--url", there.url)
        assert "done: 1 moved, 0 need to enrol anew, 0 failed" in said
        assert two.request("GET", two.user_path("tiny", "ana")).json()["state"] == "calibrated"
