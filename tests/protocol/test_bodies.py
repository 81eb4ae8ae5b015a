"""Bodies: compressed, bombs, cut off, stalled; and answers compressed for who asks."""

import asyncio
import contextlib
import gzip
import time
import zlib

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import BodyTooLarge, InvalidRequest
from service.protocol import body as bodies
from service.protocol import compression

INFER = "/v2/models/tiny/infer"
LIMIT = 4 * 1024 * 1024


def request(rows=1):
    entry = {"name": "input", "datatype": "FP32", "shape": [rows, 2, 4], "data": [1.0] * 8 * rows}
    return orjson.dumps({"inputs": [entry], "outputs": [{"name": "features"}]})


def bare(data):
    deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
    return deflater.compress(data) + deflater.flush()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=5000), st.sampled_from(compression.CODINGS))
def test_what_is_compressed_inflates_to_the_same(data, coding):
    assert compression.decompress(compression.compress(data, coding), coding, len(data)) == data
    if data:
        with pytest.raises(BodyTooLarge):
            compression.decompress(compression.compress(data, coding), coding, len(data) - 1)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(compression.CODINGS))
def test_no_bytes_make_inflating_fail_otherwise(data, coding):
    with contextlib.suppress(InvalidRequest, BodyTooLarge):
        assert len(compression.decompress(data, coding, 100)) <= 100


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("br", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("GZIP, deflate", "gzip"),
        ("gzip;q=0.2, deflate;q=0.5", "deflate"),
        ("gzip;q=0", None),
        ("*", "gzip"),
        ("gzip;q=0, *", "deflate"),
        ("gzip;q=x", None),
    ],
)
def test_accept_encoding_is_read(header, coding):
    assert compression.wanted(header) == coding


@pytest.mark.parametrize(
    ("coding", "deflated"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", bare), ("GZip", gzip.compress)],
)
async def test_compressed_requests(client, coding, deflated):
    response = await client.post(INFER, content=deflated(request()), headers={"Content-Encoding": coding})
    assert response.status_code == 200, response.text
    assert response.json()["outputs"][0]["data"] == [2.0] * 4
    friendly = deflated(b'{"inputs": [[1, 1, 1, 1], [1, 1, 1, 1]]}')
    url = "/v2/models/tiny/predict"
    assert (await client.post(url, content=friendly, headers={"Content-Encoding": coding})).status_code == 200


@pytest.mark.parametrize(
    ("coding", "body", "status", "text"),
    [
        ("gzip", gzip.compress(bytes(LIMIT + 1)), 413, "inflates to more than the 4,194,304 bytes"),
        ("deflate", zlib.compress(bytes(50 * LIMIT)), 413, "inflates to more"),
        ("gzip", gzip.compress(request())[:-9], 400, "ends before"),
        ("gzip", gzip.compress(request()) + b"more", 400, "4 bytes follow"),
        ("gzip", b"", 400, "ends before"),
        ("deflate", b"\xff" * 20, 400, "not deflate"),
        ("gzip, gzip", b"", 415, "send gzip, deflate"),
    ],
)
async def test_compressed_bodies_that_are_refused(client, coding, body, status, text):
    response = await client.post(INFER, content=body, headers={"Content-Encoding": coding})
    assert response.status_code == status
    assert text in response.json()["error"]


@pytest.mark.parametrize("asked", ["gzip", "deflate", "identity"])
async def test_only_large_answers_are_compressed_and_only_for_who_asks(client, asked):
    small = await client.post(INFER, content=request(1), headers={"Accept-Encoding": asked})
    assert "content-encoding" not in small.headers
    large = await client.post(INFER, content=request(500), headers={"Accept-Encoding": asked})
    assert large.headers.get("content-encoding", "identity") == asked
    assert large.headers["vary"] == "Accept-Encoding"
    assert large.json()["outputs"][0]["data"] == [2.0] * 2000
    if asked != "identity":
        assert int(large.headers["content-length"]) < len(large.content)


@pytest.mark.parametrize("pause", [30.0, 0.05])
async def test_a_stalled_or_dripping_upload_is_given_up(client, monkeypatch, pause):
    monkeypatch.setattr(bodies, "STALL_SECONDS", 0.3)

    async def slowly():
        for byte in request():
            yield bytes([byte])
            await asyncio.sleep(pause)

    begin = time.monotonic()
    response = await client.post(INFER, content=slowly())
    assert time.monotonic() - begin < 5
    assert response.status_code == 408
    assert response.json()["code"] == "body_timeout"
    assert response.headers["connection"] == "close"
    assert (await client.post(INFER, content=request())).status_code == 200
