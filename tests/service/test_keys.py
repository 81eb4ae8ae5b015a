"""Keys: what is behind which, and how they come and go."""

import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
import tritonclient.http

from service import keys
from service.app import create_app
from service.client import Client
from service.commands.process import running_service
from service.config import Settings
from service.gate import plane_of
from tests.tiny import tiny_windows

VALUES = {"model": "tiny", "version": "1", "user": "ana", "number": "1", "operation": "x"}
DOCUMENT = create_app(Settings(), metrics_route=False).openapi()["paths"]
CALLS = sorted(
    (verb.upper(), path.format_map({**VALUES, **dict.fromkeys(("id", "file"), "x")}))
    for path, verbs in DOCUMENT.items()
    for verb in verbs
)
OPEN = {("GET", "/v2/health/live"), ("GET", "/v2/health/ready")}


def planned(path):
    """What the contract says, in its own words: users and the repository are control, the rest of /v2 is data."""
    control = "/users" in path or "/repository" in path or "/operations" in path
    return "control" if control else "data"


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module", params=["1", "2"], ids=["one-process", "front-ends"])
def guarded(request, tiny_models, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    made = {plane: keys.add(file, plane, [plane]) for plane in ("data", "control")}
    store = tmp_path_factory.mktemp("store")
    with running_service(tiny_models, store, "--frontends", request.param, "--keys", str(file)) as service:
        yield service, file, made


@pytest.mark.parametrize(("verb", "path"), CALLS)
def test_every_path_wants_a_key_of_its_plane_and_no_other(guarded, verb, path):
    service, _, made = guarded
    wanted = planned(path)
    other = "data" if wanted == "control" else "control"
    with httpx.Client(base_url=service.url) as http:
        if (verb, path) in OPEN:
            assert http.request(verb, path).status_code == 200
            return
        none = http.request(verb, path, json={})
        assert none.status_code == 401
        assert none.json()["code"] == "unauthorized"
        assert "Authorization: Bearer" in none.json()["error"]
        assert none.headers["www-authenticate"].startswith("Bearer")
        assert none.json()["request_id"] == none.headers["x-request-id"]
        unknown = http.request(verb, path, json={}, headers=bearer("hw_nobody"))
        assert (unknown.status_code, unknown.json()["code"]) == (401, "unauthorized")
        wrong = http.request(verb, path, json={}, headers=bearer(made[other]))
        assert (wrong.status_code, wrong.json()["code"]) == (403, "forbidden")
        assert wanted in wrong.json()["error"]
        assert made[other] not in wrong.text
        path = path.replace("tiny/unload", "none/unload")  # the model is needed below
        right = http.request(verb, path, json={}, headers=bearer(made[wanted]))
        assert right.status_code not in (401, 403)


@pytest.mark.parametrize(
    ("path", "plane"),
    [
        ("/v2/models/users", "data"),
        ("/v2/models/m/users", "control"),
        ("/v2/models/m/users/infer", "control"),
        ("/v2/models/m/versions/1/infer", "data"),
        ("/v2/models/m/versions/1/users", "control"),
        ("/v2//models", "control"),
        ("/metrics", "metrics"),
        ("/anything", "control"),
        ("/docs", None),
        ("/v2/health/live", None),
        ("/v2/health/live/", "control"),
    ],
)
def test_what_is_not_known_is_control(path, plane):
    assert plane_of(path) == plane


def test_a_large_body_without_a_key_is_refused_before_it_is_read(guarded):
    service, _, _ = guarded
    with httpx.Client(base_url=service.url) as http:
        sent = 0

        def body():
            nonlocal sent
            for _ in range(64):
                sent += 1
                yield b"x" * 65536
                time.sleep(0.05)

        answer = http.post(
            "/v2/models/tiny/infer", content=body(), headers={"content-length": str(64 * 65536), "connection": "close"}
        )
        assert answer.status_code == 401
        assert sent < 64


def test_clients_with_a_key(guarded):
    service, file, _ = guarded
    both = keys.add(file, "clinic", ["data", "control"])
    time.sleep(keys.SECONDS_BETWEEN_LOOKS + 0.2)
    x, labels = tiny_windows(20, np.random.default_rng(3), np.array([3.0, 3.0, 0.0, 0.0]))
    with Client(service.url, key=both) as client:
        report = client.calibrate("tiny", "ana", x, labels, [i % 2 for i in range(len(x))])
        assert report["version"] >= 1
        _, parameters = client.infer("tiny", x, user="ana")
        assert parameters["head"] == "personal"
    triton = tritonclient.http.InferenceServerClient(service.url.removeprefix("http://"))
    assert triton.is_server_live()
    assert triton.get_model_metadata("tiny", headers={"Authorization": f"Bearer {both}"})["name"] == "tiny"
    with pytest.raises(tritonclient.http.InferenceServerException, match="needs a key"):
        triton.get_model_metadata("tiny")
    triton.close()


def test_keys_come_and_go_while_the_service_runs(guarded):
    service, file, made = guarded
    later = keys.add(file, "later", ["data"])
    time.sleep(keys.SECONDS_BETWEEN_LOOKS + 0.2)
    path = "/v2/models/tiny/predict"
    with httpx.Client(base_url=service.url) as http:

        def status(key):
            return http.post(path, json={"inputs": [[0.0] * 4, [1.0] * 4]}, headers=bearer(key)).status_code

        assert status(later) == 200
        keys.remove(file, "later")
        time.sleep(keys.SECONDS_BETWEEN_LOOKS + 0.2)
        assert status(later) == 401
        good = file.read_text()
        file.write_text("this is no TOML")
        time.sleep(keys.SECONDS_BETWEEN_LOOKS + 0.2)
        assert status(made["data"]) == 200
        assert status(later) == 401
        file.write_text(good)


def test_the_file_holds_no_key_and_is_its_owners(tmp_path):
    file = tmp_path / "keys.toml"
    secret = keys.add(file, "a", ["data"])
    assert secret not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    assert set(keys.read(file)) == {"a"}
    assert keys.add(file, "b", ["data", "control"]) != secret
    assert [p.name for p in tmp_path.iterdir()] == ["keys.toml"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = 1", "a"),
        ('[a]\nsha256 = "x"\nplanes = ["data"]', "a.sha256"),
        (f'[a]\nsha256 = "{"0" * 64}"\nplanes = ["root"]', "planes"),
        (f'[a]\nsha256 = "{"0" * 64}"\nplanes = []', "planes"),
        (f'[a]\nsha256 = "{"0" * 64}"\nplanes = ["data"]\n[b]\nsha256 = "{"0" * 64}"\nplanes = ["data"]', "two names"),
        ("[", "not TOML"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_sentence(tmp_path, text, said):
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(keys.KeysError, match=said):
        keys.read(file)


def test_the_command(tmp_path):
    def headway(*arguments, fails=False):
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", "key", *arguments], capture_output=True, text=True, cwd=tmp_path
        )
        assert (done.returncode != 0) == fails, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    assert "hw_" in headway("add", "clinic", "--planes", "data,control")
    assert "already" in headway("add", "clinic", fails=True)
    assert "planes out of" in headway("add", "x", "--planes", "root", fails=True)
    assert headway("list").split() == ["clinic", "data,control"]
    assert "there is no key 'y'" in headway("remove", "y", fails=True)
    headway("remove", "clinic")
    assert headway("list") == ""
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve", "--keys", "none.toml", "--port", "0"],
        capture_output=True, text=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "none.toml cannot be read" in done.stderr.replace("\n", "")
