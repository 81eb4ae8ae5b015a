"""HEAD, OPTIONS and verbs that a path does not answer, as they go over a socket."""

import httpx
import numpy as np
import pytest

from service.app import create_app
from service.commands.process import running_service
from service.config import Settings
from tests.tiny import tiny_windows

VALUES = {"model": "tiny", "version": "1", "user": "ana", "number": "1", "operation": "none"}
VERBS = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"}
DOCUMENT = create_app(Settings(), metrics_route=False).openapi()["paths"]
PATHS = {path.format(**VALUES): {verb.upper() for verb in verbs} for path, verbs in DOCUMENT.items()}
GETS = ["/openapi.json", "/docs", *(p for p, verbs in PATHS.items() if "GET" in verbs and "/operations/" not in p)]
PASSING = {"date", "x-request-id"}


@pytest.fixture(scope="module")
def http(tiny_models, tmp_path_factory):
    with (
        running_service(tiny_models, tmp_path_factory.mktemp("store")) as service,
        httpx.Client(base_url=service.url, headers={"accept-encoding": "identity"}) as client,
    ):
        x, labels = tiny_windows(20, np.random.default_rng(3), np.array([3.0, 3.0, 0.0, 0.0]))
        body = {"inputs": x.tolist(), "labels": labels, "repetitions": [i % 2 for i in range(len(x))]}
        assert client.post("/v2/models/tiny/users/ana/calibrations", json=body).status_code == 201
        yield client


def allow(answer):
    return set(answer.headers["allow"].split(", "))


@pytest.mark.parametrize("path", GETS)
def test_head_answers_as_get_without_the_body(http, path):
    head, get = http.head(path), http.get(path)
    assert get.status_code == head.status_code == 200
    assert get.content
    assert not head.content
    here, there = ({k: v for k, v in answer.headers.items() if k not in PASSING} for answer in (head, get))
    assert here == there
    assert int(head.headers["content-length"]) == len(get.content)
    assert http.get("/v2/health/live").json() == {"live": True}  # on the same connection: nothing is left over on it


@pytest.mark.parametrize("path", ["/v2/models/none", "/v2/models/tiny/users/nobody", "/v2/nothing"])
def test_head_of_what_is_not_there_is_404_without_a_body(http, path):
    head, get = http.head(path, headers={"x-request-id": "a"}), http.get(path, headers={"x-request-id": "a"})
    assert (head.status_code, head.content) == (404, b"")
    assert int(head.headers["content-length"]) == len(get.content)


def answered(verbs):
    return verbs | {"OPTIONS"} | ({"HEAD"} if "GET" in verbs else set())


@pytest.mark.parametrize("path", PATHS)
def test_options_says_what_a_path_answers(http, path):
    answer = http.options(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert allow(answer) == answered(PATHS[path])
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("path", PATHS)
def test_any_other_verb_is_405_with_allow_in_the_one_shape(http, path):
    for verb in sorted(VERBS - answered(PATHS[path])):
        answer = http.request(verb, path)
        assert (answer.status_code, allow(answer)) == (405, answered(PATHS[path])), verb
        if verb == "HEAD":
            assert not answer.content
        else:
            assert set(answer.json()) == {"error", "code", "request_id"}
            assert answer.json()["code"] == "method_not_allowed"
            assert answer.headers["allow"] in answer.json()["error"]


def test_options_of_an_unknown_path_is_404(http):
    answer = http.options("/v2/nothing")
    assert answer.status_code == 404
    assert "allow" not in answer.headers
    assert answer.json()["code"] == "not_found"


async def test_head_is_counted_under_its_route(client):
    await client.head("/v2/models/tiny")
    text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("headway_requests_total{")]
    assert [line for line in lines if 'endpoint="metadata"' in line and 'code="200"' in line and line.endswith(" 1.0")]
