"""HTTP as clients really send it, over a socket: the short cut and the application answer the same."""

import re
import socket
import time

import httpx
import numpy as np
import orjson
import pytest

from service.app import create_app
from service.commands.process import running_service
from tests.conftest import running

LIMIT = 64 * 1024
BODY = orjson.dumps({"inputs": np.arange(8.0).reshape(2, 4).tolist()})
PATH = "/v2/models/tiny/predict"
CLOSE = ("Connection: close",)


@pytest.fixture(scope="module", params=["1", "2"], ids=["one-process", "front-ends"])
def service(request, tiny_models, tmp_path_factory):
    with running_service(tiny_models, tmp_path_factory.mktemp("store"), "--frontends", request.param) as service:
        yield service


@pytest.fixture(scope="module")
def small(tiny_models, tmp_path_factory):
    """A service that takes small bodies only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("cwd"))
        config = tmp_path_factory.mktemp("config") / "headway.toml"
        config.write_text(f"max_body_bytes = {LIMIT}\n")
        with running_service(tiny_models, tmp_path_factory.mktemp("store"), "--config", str(config)) as service:
            yield service


def request(body=BODY, path=PATH, method="POST", *headers, version="1.1"):
    lines = [f"{method} {path} HTTP/{version}", "Host: test", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Wire:
    """A connection, byte by byte."""

    def __init__(self, service):
        host, port = service.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def head(self):
        status = int(self.file.readline().split()[1])
        headers = {}
        while (line := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers

    def answer(self, *, bodiless=False):
        status, headers = self.head()
        return status, headers, b"" if bodiless else self.file.read(int(headers.get("content-length", 0)))

    def closed(self):
        return self.file.read(1) == b""


def label(body):
    return orjson.loads(body)["predictions"][0]["label"]


def test_a_connection_is_kept_and_closed_as_asked(service):
    with Wire(service) as wire:
        for _ in range(3):
            wire.send(request())
            status, headers, body = wire.answer()
            assert (status, headers.get("connection")) == (200, None)
            assert label(body) == "open"
        wire.send(request(BODY, PATH, "POST", *CLOSE))
        status, headers, _ = wire.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert wire.closed()
    with Wire(service) as wire:
        wire.send(request(version="1.0"))
        assert wire.answer()[0] == 200
        assert wire.closed()


def test_pipelined_requests_are_answered_in_order(service):
    with Wire(service) as wire:
        ids = [f"pipelined-{i}" for i in range(6)]
        paths = [PATH, "/v2/health/live", "/v2/models/none/predict", PATH, "/v2/models/tiny/features", PATH]
        wire.send(
            b"".join(
                request(
                    BODY if p != "/v2/health/live" else b"", p, "GET" if "live" in p else "POST", f"X-Request-ID: {i}"
                )
                for p, i in zip(paths, ids, strict=True)
            )
        )
        answers = [wire.answer() for _ in ids]
        assert [status for status, *_ in answers] == [200, 200, 404, 200, 200, 200]
        assert [headers["x-request-id"] for _, headers, _ in answers] == ids
        assert label(answers[5][2]) == "open"


def test_chunked_bodies_and_bodies_in_many_segments(service):
    with Wire(service) as wire:
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(BODY[i : i + 7]), BODY[i : i + 7]) for i in range(0, len(BODY), 7))
        wire.send(b"POST %s HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n" % PATH.encode())
        wire.send(chunks + b"0\r\n\r\n")
        chunked = wire.answer()
        whole = request()
        for i in range(0, len(whole), 9):
            wire.send(whole[i : i + 9])
            time.sleep(0.0005)
        split = wire.answer()
        assert (chunked[0], split[0]) == (200, 200)
        assert chunked[2] == split[2]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_verbs_that_a_path_does_not_know_are_405_in_the_one_shape(service, method):
    for endpoint in ("infer", "predict", "features"):
        answer = httpx.request(method, f"{service.url}/v2/models/tiny/{endpoint}")
        assert answer.status_code == 405
        if method != "HEAD":
            assert set(answer.json()) == {"error", "code", "request_id"}


def test_expect_100_continue_is_continued(service):
    with Wire(service) as wire:
        head, _, body = request(BODY, PATH, "POST", "Expect: 100-continue").partition(b"\r\n\r\n")
        wire.send(head + b"\r\n\r\n")
        assert wire.head()[0] == 100
        wire.send(body)
        status, _, answer = wire.answer()
        assert (status, label(answer)) == (200, "open")


def test_malformed_requests_end_their_connection_only(service):
    for data in (b"NONSENSE\r\n\r\n", request().replace(b"HTTP/1.1", b"HTTP/x"), b"POST " + b"\x00" * 20 + b"\r\n\r\n"):
        with Wire(service) as wire:
            wire.send(data)
            assert wire.answer()[0] == 400
            assert wire.closed()
    with Wire(service) as wire:
        wire.send(request().replace(b"Content-Length: ", b"Content-Length: x"))
        assert wire.answer()[0] == 400
    assert httpx.get(f"{service.url}/v2/health/live").status_code == 200


def test_a_client_that_goes_away_leaves_nothing_waiting(service):
    rows = orjson.dumps({"inputs": np.zeros((3000, 2, 4)).tolist()})
    for sent in (request(rows), request(rows)[:-5], request()[:30]):
        for _ in range(4):
            with Wire(service) as wire:
                wire.send(sent)
    deadline = time.monotonic() + 10
    pending = None
    while pending != 0.0 and time.monotonic() < deadline:
        text = httpx.get(service.metrics_url).text
        pending = float(re.search(r"^headway_pending_rows\{.*\} (\S+)$", text, re.MULTILINE)[1])
    assert pending == 0.0
    assert httpx.post(f"{service.url}{PATH}", content=BODY).status_code == 200


def test_names_may_be_percent_encoded_and_health_answers_head(service):
    assert httpx.head(f"{service.url}/v2/health/live").status_code == 200
    with Wire(service) as wire:
        wire.send(request(BODY, "/v2/models/%74iny/predict"))
        assert wire.answer()[0] == 200
        wire.send(request(BODY, "/v2/models/t%C3%BCny/predict"))
        status, _, body = wire.answer()
        assert status == 404
        assert "tüny" in orjson.loads(body)["error"]


def test_a_body_over_the_limit_is_413(small):
    answer = httpx.post(f"{small.url}{PATH}", content=b" " * (LIMIT + 1))
    assert answer.status_code == 413
    assert answer.json()["code"] == "body_too_large"
    assert httpx.post(f"{small.url}{PATH}", content=BODY).status_code == 200


X = np.arange(16, dtype=np.float32).reshape(2, 2, 4)
INFER = {"id": "7", "inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 2, 4], "data": X.ravel().tolist()}]}
SAME = [
    ("predict", {}, BODY),
    ("predict?user_id=ana&fallback=error", {}, BODY),
    ("predict?usr=ana", {}, BODY),
    ("predict", {}, b"{"),
    ("features", {"accept": "application/x-npy"}, BODY),
    ("features?user_id=ana", {}, BODY),
    ("infer", {}, orjson.dumps(INFER)),
    ("infer", {"inference-header-content-length": "0"}, X.tobytes()),
    ("infer?user_id=a%20b", {"inference-header-content-length": "0"}, X.tobytes()),
    ("infer", {"inference-header-content-length": "0"}, X.tobytes()[:-1]),
    ("infer", {}, orjson.dumps({**INFER, "outputs": [{"name": "logits", "parameters": {"binary_data": True}}]})),
    ("infer", {"content-encoding": "br"}, orjson.dumps(INFER)),
    ("versions/1/infer", {}, orjson.dumps(INFER)),
    ("versions/9/infer", {}, orjson.dumps(INFER)),
]


async def test_the_short_cut_and_the_routes_answer_byte_for_byte_the_same(service, settings):
    passing = {"date", "server", "server-timing"}
    async with running(create_app(settings)) as routes, httpx.AsyncClient() as wire:
        for path, headers, body in SAME:
            headers = {"accept-encoding": "identity", "x-request-id": "same", **headers}
            there = await wire.post(f"{service.url}/v2/models/tiny/{path}", content=body, headers=headers)
            here = await routes.post(f"/v2/models/tiny/{path}", content=body, headers=headers)
            assert (there.status_code, there.content) == (here.status_code, here.content), path
            ours, theirs = ({k: v for k, v in answer.headers.items() if k not in passing} for answer in (here, there))
            assert ours == theirs, path


@pytest.mark.parametrize("name", ["Upgrade", "upgrade", "UPGRADE"])
def test_an_offer_of_another_protocol_is_not_taken_and_costs_nothing(service, name):
    offer = ("Connection: Upgrade, HTTP2-Settings", f"{name}: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    with Wire(service) as wire:
        for _ in range(2):
            wire.send(request(BODY, PATH, "POST", *offer))
            status, _, body = wire.answer()
            assert status == 200
            assert label(body)
        wire.send(request(b"", "/v2/health/live", "GET", *offer))
        assert wire.answer()[0] == 200
