"""Request bodies within limits, and JSON answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service import errors
from service.protocol import compression, pieces

STALL_SECONDS = 20.0
SLOWEST_BYTES_PER_SECOND = 16 * 1024
"""An upload may take `STALL_SECONDS`, and longer as long as what has arrived came at this rate."""

_THREAD_ABOVE = 256 * 1024  # bytes: compression of more would hold up the event loop for milliseconds


def json_bytes(content: Any) -> bytes:
    """Encode JSON; numpy arrays and scalars are written without a detour through Python floats."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with JSON, as it is."""
    return Response(json_bytes(content), status, dict(headers or {}), media_type="application/json")


async def answer(
    request: Request, body: bytes, media_type: str = "application/json", headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with bytes, compressed where the client asks for it and the answer is worth it."""
    sent = dict(headers or {})
    if len(body) > compression.WORTH_IT:
        sent["Vary"] = "Accept-Encoding"
        coding = compression.wanted(request.headers.get("accept-encoding"))
        if coding is not None:
            sent["Content-Encoding"] = coding
            if len(body) > _THREAD_ABOVE:
                body = await asyncio.to_thread(compression.compress, body, coding)
            else:
                body = compression.compress(body, coding)
    return Response(body, headers=sent, media_type=media_type)


def patience(size: int) -> float:
    """Seconds within which so many bytes of a body must have come, and one more."""
    return STALL_SECONDS + size / SLOWEST_BYTES_PER_SECOND


def stalled(size: int) -> errors.BodyTimeout:
    """Return the error of a body of which only so many bytes came."""
    return errors.BodyTimeout(
        f"only {size:,} bytes of the body came; send it within {STALL_SECONDS:g} s, "
        f"or at {SLOWEST_BYTES_PER_SECOND // 1024} KiB/s and faster"
    )


async def read_body(request: Request) -> bytes:
    """Read the whole body as it was before any compression, refusing it as soon as it is known to be over the limit.

    Raises:
        BodyTooLarge: by its `Content-Length`, by what arrived, or by what it inflates to.
        BodyTimeout: it stopped arriving.
        UnsupportedMediaType: compressed otherwise than by gzip or deflate.
        InvalidRequest: the client went away, the length is not a number, or it is not compressed as it says.
    """
    limit: int = request.app.state.settings.max_body_bytes
    coding = compression.coding_of(request.headers.get("content-encoding"))
    declared = request.headers.get("content-length")
    if declared is not None:
        if not declared.isdecimal() or len(declared) > 18:
            raise errors.InvalidRequest(f"Content-Length {declared!r} is not a number of bytes")
        if int(declared) > limit:
            raise errors.BodyTooLarge(f"the body has {int(declared):,} bytes; at most {limit:,} are accepted")
    body = await _received(request, limit)
    if coding is None:
        return body
    # In a thread always: a small body may inflate to a large one.
    return await asyncio.to_thread(compression.decompress, body, coding, limit)


async def _received(request: Request, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    begin = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(begin + patience(0)) as limit_at:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise errors.BodyTooLarge(f"the body has more than the {limit:,} bytes that are accepted")
                chunks.append(chunk)
                limit_at.reschedule(begin + patience(size))
    except TimeoutError as e:
        raise stalled(size) from e
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
    """Parse a JSON object; in a large one `inputs` is an array of numbers already, where it is nested lists of them.

    Raises:
        InvalidRequest: anything else.
    """
    if len(data) > pieces.PIECE and (found := pieces.parse_inputs(bytes(data))) is not None:
        return found
    message = parse_json(data)
    if not isinstance(message, dict):
        raise errors.InvalidRequest(f"the body must be a JSON object, not {type(message).__name__}")
    return message
