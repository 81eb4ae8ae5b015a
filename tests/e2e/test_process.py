"""The service as a process: ports, metrics, signals, and clients that nobody here wrote."""

import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
import tritonclient.http

from service.client import Client, ServiceError
from service.commands.process import ServiceStartError, running_service
from service.commands.prometheus import quantiles
from tests.tiny import tiny_windows

OFFSET = np.array([3.0, 3.0, 0.0, 0.0])


@pytest.fixture(scope="module", params=["1", "2"], ids=["one-process", "front-ends"])
def service(request, tiny_models, tmp_path_factory):
    options = ("--drain-seconds", "5", "--frontends", request.param)
    with running_service(tiny_models, tmp_path_factory.mktemp("store"), *options) as running:
        yield running


def test_client_predicts_calibrates_rolls_back_and_erases(service, rng):
    with Client(service.url) as client:
        x, labels = tiny_windows(20, rng, OFFSET)
        before, answer = client.infer("tiny", x, user="ana")
        assert answer == {"head": "shared", "head_version": 0}
        report = client.calibrate("tiny", "ana", x, labels, [i % 2 for i in range(len(x))])
        assert report["outcome"] == "promoted"
        after, answer = client.infer("tiny", x, user="ana")
        assert answer == {"head": "personal", "head_version": 1}
        truth = np.repeat(np.arange(3), 20)
        assert (after.argmax(1) == truth).mean() > (before.argmax(1) == truth).mean() + 0.2
        assert client.rollback("tiny", "ana")["active"] == "shared"
        assert client.erase("tiny", "ana")["erased"] is True
        with pytest.raises(ServiceError, match="404: there is no model 'nope'"):
            client.metadata("nope")
    with pytest.raises(ServiceError, match="start one with `headway serve`"), Client("http://127.0.0.1:9") as nowhere:
        nowhere.metadata("tiny")


def test_metrics_are_on_a_port_of_their_own(service, rng):
    x, _ = tiny_windows(1, rng)
    for _ in range(20):
        httpx.post(f"{service.url}/v2/models/tiny/predict", json={"inputs": x.tolist()}).raise_for_status()
    assert httpx.get(f"{service.url}/metrics").status_code == 404
    text = httpx.get(service.metrics_url).text
    for name in (
        "headway_requests_total", "headway_request_duration_seconds", "headway_queue_duration_seconds",
        "headway_inference_duration_seconds", "headway_head_duration_seconds", "headway_batch_rows",
        "headway_pending_rows", "headway_rejected", "headway_calibrations", "headway_calibration_duration_seconds",
        "headway_predictions_total", "headway_head_cache_hits_total", "headway_head_cache_misses_total",
        "headway_head_cache_evictions_total", "headway_heads_resident", "headway_heads_resident_bytes",
        "headway_store_up", "headway_build_info",
    ):  # fmt: skip
        assert f"# TYPE {name.removesuffix('_total')}" in text, name
    assert 'torch_free="true"' in text
    assert "headway_store_up 1.0" in text
    found = quantiles(service.metrics_url, "headway_request_duration_seconds", {"endpoint": "predict"}, (0.5, 0.99))
    assert 0 < found[0.5] <= found[0.99]
    with pytest.raises(LookupError, match="has nothing of"):
        quantiles(service.metrics_url, "headway_request_duration_seconds", {"endpoint": "none"}, (0.5,))


def test_tritons_own_client_works_unchanged(service, rng):
    client = tritonclient.http.InferenceServerClient(service.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.get_server_metadata()["name"] == "headway"
    metadata = client.get_model_metadata("tiny")
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 2, 4]}]
    x, labels = tiny_windows(3, rng)
    for binary in (True, False):
        tensor = tritonclient.http.InferInput("input", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x, binary_data=binary)
        names = ("probabilities", "label", "features")
        wanted = [tritonclient.http.InferRequestedOutput(name, binary_data=binary) for name in names]
        result = client.infer("tiny", [tensor], outputs=wanted, request_id="7")
        assert result.get_response()["id"] == "7"
        assert [v.decode() if isinstance(v, bytes) else v for v in result.as_numpy("label")] == labels
        assert np.allclose(result.as_numpy("features"), x.reshape(9, 4, 2).sum(2), atol=1e-5)
    users = tritonclient.http.InferInput("user_id", [9], "BYTES")
    users.set_data_from_numpy(np.array([b"a"] * 9, object))
    result = client.infer("tiny", [tensor, users])
    assert result.as_numpy("head").tolist() == [b"shared"] * 9
    client.close()


def test_wrong_bundles_and_settings_are_sentences(tiny_models, tmp_path):
    def fails(*options, environment=None):
        command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--metrics-port", "0", *options]
        variables = {**os.environ, **(environment or {})}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=variables)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr + done.stdout
        return done.stderr

    store = f"sqlite+aiosqlite:///{tmp_path}/h.db"
    assert "does not exist" in fails("--models", str(tmp_path / "none"), "--store", store)
    assert "there are no bundles" in fails("--models", str(tmp_path), "--store", store)
    assert "is not supported" in fails("--models", str(tiny_models), "--store", "mysql://h/db")
    assert "does not answer" in fails("--models", str(tiny_models), "--store", "postgresql://127.0.0.1:1/db")
    nowhere = "sqlite+aiosqlite:////nowhere/h.db"
    assert "folder /nowhere does not exist" in fails("--models", str(tiny_models), "--store", nowhere)
    assert "setting max_batch" in fails("--models", str(tiny_models), environment={"HEADWAY_MAX_BATCH": "0"})


def test_a_taken_port_is_a_sentence(service, tiny_models, tmp_path):
    port = service.url.rsplit(":", 1)[1]
    wanted = pytest.raises(ServiceStartError, match=f"port {port} on 127.0.0.1 cannot be had")
    with wanted, running_service(tiny_models, tmp_path, "--port", port):
        pass


def test_an_altered_bundle_is_not_ready_and_says_why(tiny_models, tmp_path):
    from tests.tiny import write_tiny_bundle

    models = tmp_path / "models"
    write_tiny_bundle(models)
    broken = write_tiny_bundle(models, name="broken")
    (broken / "backbone.onnx").write_bytes(b"x")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [
        sys.executable, "-m", "service.cli", "serve", "--models", str(models), "--port", "0", "--metrics-port", "0",
        "--store", f"sqlite+aiosqlite:///{tmp_path}/h.db",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        url = process.stdout.readline().split(" at ")[1].split()[0]
        ready = httpx.get(f"{url}/v2/health/ready")
        assert ready.status_code == 503
        assert "has been altered" in ready.json()["reasons"][0]
        assert httpx.get(f"{url}/v2/health/live").json() == {"live": True}
        refused = httpx.get(f"{url}/v2/models/broken/ready")
        assert refused.status_code == 503
        assert "has been altered" in refused.json()["error"]
        assert httpx.get(f"{url}/v2/models/tiny/ready").status_code == 200
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@pytest.mark.parametrize("frontends", ["1", "2"])
def test_sigterm_lets_requests_in_flight_finish(frontends, tiny_models, tmp_path, rng):
    x = np.repeat(rng.standard_normal((1, 2, 4)), 60000, 0)
    results = []
    with running_service(tiny_models, tmp_path, "--frontends", frontends) as service:

        def ask():
            results.append(httpx.post(f"{service.url}/v2/models/tiny/predict", json={"inputs": x.tolist()}, timeout=60))

        thread = threading.Thread(target=ask)
        thread.start()
        pending = 0.0
        deadline = time.monotonic() + 30
        while not pending and time.monotonic() < deadline:
            text = httpx.get(service.metrics_url).text
            line = next(line for line in text.splitlines() if line.startswith("headway_pending_rows{"))
            pending = float(line.split()[1])
        os.kill(service.pid, signal.SIGTERM)
        thread.join(60)
    assert results[0].status_code == 200
    assert len(results[0].json()["predictions"]) == 60000


def test_serving_imports_no_torch(tiny_models):
    code = (
        "import sys, asyncio, pathlib, tempfile\n"
        "from service.app import create_app\nfrom service.config import Settings\nimport service.cli, service.server\n"
        f"app = create_app(Settings(models=pathlib.Path({str(tiny_models)!r}), "
        "store='sqlite+aiosqlite:///' + tempfile.mkdtemp() + '/h.db'))\n"
        "async def main():\n    async with app.router.lifespan_context(app):\n        pass\n"
        "asyncio.run(main())\n"
        "heavy = {'torch', 'onnx', 'onnxscript', 'matplotlib', 'pandas', 'sklearn', 'seglearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
