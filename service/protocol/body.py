"""Request bodies within limits, and JSON answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service import errors


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with JSON; numpy arrays and scalars are written without a detour through Python floats."""
    data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(data, status, dict(headers or {}), media_type="application/json")


async def read_body(request: Request) -> bytes:
    """Read the whole body, refusing it as soon as it is known to be over the limit.

    Raises:
        BodyTooLarge: by its `Content-Length`, or by what arrived.
        InvalidRequest: the client went away, or the length is not a number.
    """
    limit: int = request.app.state.settings.max_body_bytes
    declared = request.headers.get("content-length")
    if declared is not None:
        if not declared.isdecimal() or len(declared) > 18:
            raise errors.InvalidRequest(f"Content-Length {declared!r} is not a number of bytes")
        if int(declared) > limit:
            raise errors.BodyTooLarge(f"the body has {int(declared):,} bytes; at most {limit:,} are accepted")
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise errors.BodyTooLarge(f"the body has more than the {limit:,} bytes that are accepted")
            chunks.append(chunk)
    except ClientDisconnect as e:
        raise errors.InvalidRequest("the client closed the connection before the body was complete") from e
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def parse_json(data: bytes | memoryview) -> Any:
    """Parse JSON.

    Raises:
        InvalidRequest: empty or malformed (NaN and Infinity are not JSON).
    """
    if len(data) == 0:
        raise errors.InvalidRequest("the body is empty; a JSON object was expected")
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as e:
        raise errors.InvalidRequest(f"the body is not JSON: {e}") from e


def parse_json_object(data: bytes | memoryview) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        InvalidRequest: anything else.
    """
    message = parse_json(data)
    if not isinstance(message, dict):
        raise errors.InvalidRequest(f"the body must be a JSON object, not {type(message).__name__}")
    return message
