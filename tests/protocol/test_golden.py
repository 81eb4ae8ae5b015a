"""Stored requests get the stored answers, byte for byte: what clients in the field rely on."""

import pytest

from tests.protocol.exchanges import GOLDEN, answered, parsed, requests

NAMES = sorted(path.stem for path in GOLDEN.glob("*.request"))


def test_the_stored_exchanges_are_the_written_ones():
    assert sorted(requests()) == NAMES
    for name, (path, headers, body) in requests().items():
        first, stored_headers, stored_body = parsed((GOLDEN / f"{name}.request").read_bytes())
        assert (first, stored_headers) == (f"POST {path}", {**headers, "X-Request-Id": "golden"})
        if "Content-Encoding" not in headers:  # zlib's own releases compress differently
            assert stored_body == body, name


@pytest.mark.parametrize("name", NAMES)
async def test_golden(client, name):
    answer = await answered(client, (GOLDEN / f"{name}.request").read_bytes())
    assert answer == (GOLDEN / f"{name}.response").read_bytes()
