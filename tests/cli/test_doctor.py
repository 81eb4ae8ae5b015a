"""`headway doctor` says what a service would run on, and fails exactly where the service would."""

import asyncio
import json
import socket

import pytest

from service.commands.doctor import run_doctor
from service.config import Settings
from service.personal.upgrade import upgrade
from tests.cli.test_cli import run
from tests.tiny import write_tiny_bundle


@pytest.fixture
def flags(tmp_path):
    write_tiny_bundle(tmp_path / "models")
    return {"models": tmp_path / "models", "store": f"sqlite:///{tmp_path}/h.db", "port": 0, "metrics_port": 0}


def findings(capsys, **settings):
    ready = run_doctor(Settings(**settings), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["ready"] is ready
    return ready, {f["name"]: f for f in told["findings"]}


def test_all_is_well_and_nothing_is_left_behind(flags, tmp_path, capsys):
    ready, found = findings(capsys, **flags)
    assert ready
    assert found["device"]["found"] == "cpu: asks for CPUExecutionProvider"
    assert found["tiny 1"]["found"].startswith("verified; bound to CPUExecutionProvider; ")
    assert "100% on CPUExecutionProvider" in found["tiny 1"]["found"]
    assert "usable cores" in found["machine"]["found"]
    assert {"python", "onnxruntime", "cuda", "torch", "threads", "store", "port", "metrics port"} <= set(found)
    assert [p.name for p in tmp_path.iterdir()] == ["models"]


def test_a_port_in_use(flags, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ready, found = findings(capsys, **{**flags, "port": taken.getsockname()[1]})
    assert not ready
    assert "cannot be had" in found["port"]["found"]
    assert [name for name, f in found.items() if not f["ok"]] == ["port"]


def test_an_altered_bundle_is_told_beside_the_good_one(flags, capsys):
    folder = write_tiny_bundle(flags["models"], version=2, scale=2)
    (folder / "MODEL_CARD.md").write_text("other")
    ready, found = findings(capsys, **flags)
    assert not ready
    assert "has been altered" in found["tiny 2"]["found"]
    assert found["tiny 1"]["ok"]


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        ({"store": "sqlite:////nowhere/h.db"}, "store", "does not exist"),
        ({"store": "mysql://db/headway"}, "store", "not supported"),
        ({"store": "postgresql://127.0.0.1:9/headway"}, "store", "does not answer"),
        ({"models": "/nowhere"}, "models", "does not exist"),
    ],
)
def test_what_keeps_a_service_from_starting(flags, capsys, change, name, message):
    ready, found = findings(capsys, **{**flags, **change})
    assert not ready
    assert message in found[name]["found"]


def test_a_device_that_is_not_there_is_not_ready(flags, capsys):
    import onnxruntime as ort

    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    ready, found = findings(capsys, **flags, device="cuda")
    assert not ready
    assert not found["device"]["ok"]
    assert "not in this ONNX Runtime build" in found["tiny 1"]["found"]


def test_the_command_exits_with_1_and_a_table(flags):
    told = ["doctor", "--models", str(flags["models"]), "--store", flags["store"], "--port", "0", "--metrics-port", "0"]
    good = run(*told)
    assert (good.returncode, good.stderr) == (0, "")
    assert "becomes ready" in good.stdout
    bad = run(*told, "--device", "tensorrt")
    assert bad.returncode == 1
    assert "would not become ready" in bad.stdout


def test_a_store_in_postgresql_is_looked_at_and_nothing_is_made(flags, capsys, postgres_server):
    url = postgres_server.database()
    for _ in range(2):
        ready, found = findings(capsys, **{**flags, "store": url})
        assert ready
        assert found["store"]["found"].endswith("answers; its tables will be made")
    asyncio.run(upgrade(url))
    assert findings(capsys, **{**flags, "store": url})[1]["store"]["found"].endswith("opens and can be written")
