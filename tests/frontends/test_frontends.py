"""A service of several processes behaves as one: it survives the end of each, counts right, and ends as a whole."""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import socket
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.commands.process import ServiceStartError, running_service
from tests.tiny import tiny_windows, write_tiny_bundle

X = np.ones((1, 2, 4), np.float32)
BASE = "/v2/models/tiny"
FRONTENDS = 2
OFFSET = np.array([3.0, 3.0, 0.0, 0.0])


@pytest.fixture
def models(tmp_path):
    write_tiny_bundle(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def service(models, tmp_path):
    with running_service(models, tmp_path / "store", "--frontends", str(FRONTENDS), "--drain-seconds", "5") as running:
        yield running


def frontends(service):
    return [int(pid) for pid in Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()]


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@contextlib.asynccontextmanager
async def connections(service, count):
    """Clients of one connection each; those are given to the front ends in turn."""
    async with contextlib.AsyncExitStack() as stack:
        limits = httpx.Limits(max_connections=1)
        yield [
            await stack.enter_async_context(httpx.AsyncClient(base_url=service.url, timeout=20, limits=limits))
            for _ in range(count)
        ]


async def ask(client, scale=None, **parameters):
    body = {
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 2, 4], "data": X.ravel().tolist()}],
        "outputs": [{"name": "features"}, {"name": "probabilities"}],
        "parameters": parameters,
    }
    answer = (await client.post(f"{BASE}/infer", json=body)).raise_for_status().json()
    return answer["model_version"], answer["outputs"][0]["data"][0], answer["parameters"]["head"]


def counted(text, metric, **labels):
    wanted = [f'{k}="{v}"' for k, v in labels.items()]
    lines = [line for line in text.splitlines() if line.startswith(metric) and all(w in line for w in wanted)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def calibrate(client, user, rng, offset=OFFSET):
    x, labels = tiny_windows(20, rng, offset)
    body = {"inputs": x.tolist(), "labels": labels, "repetitions": [i % 2 for i in range(len(x))]}
    return (await client.post(f"{BASE}/users/{user}/calibrations", json=body)).raise_for_status().json()


async def test_a_head_is_served_by_every_process_in_the_next_request_and_erased_in_all(service, rng):
    async with connections(service, 8) as clients:
        for round_number in range(4):
            user = f"ana{round_number}"
            assert {(await ask(c, user_id=user))[2] for c in clients} == {"shared"}
            assert (await calibrate(clients[round_number], user, rng))["outcome"] == "promoted"
            assert {(await ask(c, user_id=user))[2] for c in clients} == {"personal"}
            (await clients[round_number].post(f"{BASE}/users/{user}/rollback")).raise_for_status()
            assert {(await ask(c, user_id=user))[2] for c in clients} == {"shared"}
            (await clients[0].put(f"{BASE}/users/{user}/active", json={"version": 1})).raise_for_status()
            assert {(await ask(c, user_id=user))[2] for c in clients} == {"personal"}
            (await clients[1].delete(f"{BASE}/users/{user}")).raise_for_status()
            assert {(await ask(c, user_id=user))[2] for c in clients} == {"shared"}


async def test_one_that_dies_is_replaced_and_costs_only_its_own_requests(service, rng):
    async with connections(service, 4) as clients:
        await calibrate(clients[0], "ana", rng)
        for _ in range(10):
            await asyncio.gather(*(ask(c, user_id="ana") for c in clients))
        before = frontends(service)
        assert len(before) == FRONTENDS
        os.kill(before[0], signal.SIGKILL)
        until(lambda: gone(before[0]))
        answers = await asyncio.gather(*(ask(c, user_id="ana") for c in clients), return_exceptions=True)
        cut = [a for a in answers if isinstance(a, httpx.TransportError)]
        assert len(cut) <= 2, answers  # connections are given evenly; some clients see at once that theirs is gone
        assert {a[2] for a in answers if a not in cut} == {"personal"}
        # At once, while the other is still being started, all are answered again.
        assert {(await ask(c, user_id="ana"))[2] for c in clients} == {"personal"}
        until(lambda: len([p for p in frontends(service) if p not in before]) == 1)
        counts = 4 * 10 + (4 - len(cut)) + 4
        text = (await clients[0].get(service.metrics_url)).text
        assert counted(text, "headway_requests_total", endpoint="infer", code="200") == counts
        assert counted(text, "headway_request_duration_seconds_count", endpoint="infer") == counts
        assert counted(text, "headway_pending_rows") == 0
        assert counted(text, "headway_frontend_ends_total") == 1
        assert counted(text, "headway_frontends_ready") in (FRONTENDS - 1, FRONTENDS)
        stats = (await clients[0].get(f"{BASE}/stats")).json()["model_stats"][0]
        assert stats["inference_stats"]["success"]["count"] == counts
    # The new one serves as well: with the other ended too, nobody else is there.
    new = next(p for p in frontends(service) if p not in before)
    async with httpx.AsyncClient(base_url=service.url) as client:
        until(lambda: httpx.get(f"{service.url}{BASE}/ready").status_code == 200)
        os.kill(before[1], signal.SIGKILL)
        until(lambda: gone(before[1]))
        for _ in range(20):
            assert (await ask(client, user_id="ana"))[2] == "personal"
    assert not gone(new)


async def test_with_no_front_end_left_the_service_goes_on(service):
    for pid in frontends(service):
        os.kill(pid, signal.SIGKILL)
    async with connections(service, 4) as clients:
        for _ in range(20):
            assert {a[:2] for a in await asyncio.gather(*(ask(c) for c in clients))} == {("1", 2.0)}
    until(lambda: len([p for p in frontends(service) if not gone(p)]) == FRONTENDS)


async def test_versions_change_in_all_before_the_call_is_answered(service, models):
    async with connections(service, 6) as clients:
        for version in range(2, 6):
            shutil.rmtree(models / "tiny" / str(version - 1))
            write_tiny_bundle(models, version=version, scale=float(version))
            stop = asyncio.Event()

            async def keep_asking(client, stop=stop):
                while not stop.is_set():
                    found, feature, _ = await ask(client)
                    assert feature == 2.0 * int(found)

            asking = [asyncio.create_task(keep_asking(c)) for c in clients[1:]]
            (await clients[0].post("/v2/repository/models/tiny/load")).raise_for_status()
            stop.set()
            await asyncio.gather(*asking)
            assert {await ask(c) for c in clients} == {(str(version), 2.0 * version, "shared")}
        write_tiny_bundle(models, version=6, scale=1.0)
        (models / "tiny" / "6" / "backbone.onnx").write_bytes(b"x")
        refused = await clients[0].post("/v2/repository/models/tiny/load")
        assert refused.status_code == 422
        assert {await ask(c) for c in clients} == {("5", 10.0, "shared")}
        broken = [await c.post(f"{BASE}/versions/6/infer", json={}) for c in clients]
        assert {r.status_code for r in broken} == {503}
        assert all("has been altered" in r.json()["error"] for r in broken)
        (await clients[0].post("/v2/repository/models/tiny/unload")).raise_for_status()
        assert {(await c.post(f"{BASE}/infer", json={})).status_code for c in clients} == {404}
        os.kill(frontends(service)[0], signal.SIGKILL)  # a new one starts with what is served now
        shutil.rmtree(models / "tiny" / "6")
        (await clients[-1].post("/v2/repository/models/tiny/load")).raise_for_status()
        until(lambda: len([p for p in frontends(service) if not gone(p)]) == FRONTENDS)
    async with connections(service, 4) as clients:
        assert {await ask(c) for c in clients} == {("5", 10.0, "shared")}


async def test_connections_are_spread_evenly_however_they_come_and_go(service):
    """By the counts of connections that each process has, as the system sees them."""
    for _ in range(3):
        async with connections(service, 10) as clients:
            await asyncio.gather(*(ask(c) for c in clients))
            held = [len([t for t in targets(pid) if t.startswith("socket:")]) for pid in frontends(service)]
            assert abs(held[0] - held[1]) <= 1, held
            for c in clients[::2]:
                await c.aclose()


def targets(pid):
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(link.readlink()))
    return found


def test_a_signal_ends_all_after_what_was_asked_is_answered(service, rng):
    x = np.repeat(rng.standard_normal((1, 2, 4)), 60000, 0).tolist()
    pids = frontends(service)

    async def ask_all():
        async with connections(service, FRONTENDS) as clients:
            asking = [asyncio.create_task(c.post(f"{BASE}/predict", json={"inputs": x})) for c in clients]
            while counted((await asyncio.to_thread(httpx.get, service.metrics_url)).text, "headway_pending_rows") == 0:
                assert not all(a.done() for a in asking)
            for pid in (*pids, service.pid):  # as a terminal does; a front end leaves it to the service
                os.kill(pid, signal.SIGTERM)
            return await asyncio.gather(*asking)

    answers = asyncio.run(ask_all())
    assert [a.status_code for a in answers] == [200] * FRONTENDS
    assert {len(a.json()["predictions"]) for a in answers} == {60000}
    until(lambda: all(gone(pid) for pid in (*pids, service.pid)))


def test_front_ends_end_with_the_service_that_was_killed(service):
    pids = frontends(service)
    assert [gone(pid) for pid in pids] == [False] * FRONTENDS
    os.kill(service.pid, signal.SIGKILL)
    until(lambda: all(gone(pid) for pid in pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_in_shared_memory(number, service):
    def folders():
        return list(Path("/dev/shm").glob(f"headway-{service.pid}-*"))

    assert folders()
    os.kill(service.pid, number)
    until(lambda: gone(service.pid) and not folders())


def test_more_connections_than_descriptors_wait_and_the_service_outlives_them(models, tmp_path, rng):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 1024), before[1]))
    try:
        limit = 260  # of the service: two front ends of 66 connections
        code = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))"
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(code)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
            with running_service(models, tmp_path / "store", "--frontends", "2") as service:
                host, port = service.url.removeprefix("http://").split(":")
                for _ in range(3):
                    idle = [socket.create_connection((host, int(port)), timeout=10) for _ in range(400)]
                    for connection in idle:
                        connection.close()
                    for _ in range(5):
                        assert httpx.get(f"{service.url}{BASE}/ready", timeout=10).status_code == 200
                held = [len(targets(pid)) for pid in (service.pid, *frontends(service))]
                assert max(held) < 100, held
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_what_lies_in_the_current_directory_is_not_run(models, tmp_path, monkeypatch):
    for name in ("service", "socket", "asyncio", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')\n")
    monkeypatch.chdir(tmp_path)
    with running_service(models, tmp_path / "store", "--frontends", "2") as service:
        assert len(frontends(service)) == FRONTENDS
        assert httpx.get(f"{service.url}{BASE}/ready").status_code == 200


def test_a_front_end_is_replaced_when_processes_can_be_started_again(service):
    soft, hard = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
    old = frontends(service)[0]
    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (10, hard))
    os.kill(old, signal.SIGKILL)
    time.sleep(1.0)
    assert len([p for p in frontends(service) if not gone(p)]) == FRONTENDS - 1
    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (soft, hard))
    until(lambda: len([p for p in frontends(service) if not gone(p)]) == FRONTENDS)


def test_a_front_end_that_cannot_start_is_a_sentence(models, tmp_path, monkeypatch):
    package = tmp_path / "broken" / "sitecustomize.py"
    package.parent.mkdir()
    package.write_text("import sys\nif any('service.frontends.worker' in a for a in sys.orig_argv): sys.exit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)
    with (
        pytest.raises(ServiceStartError, match="no front end could be started"),
        running_service(models, tmp_path / "store", "--frontends", "2"),
    ):
        pass
