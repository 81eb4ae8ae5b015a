"""Compressed bodies: gzip and deflate, in and out, never beyond a limit."""

from __future__ import annotations

import zlib

from service.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType

CODINGS = ("gzip", "deflate")
WORTH_IT = 1024
"""Answers of fewer bytes are sent as they are: a packet holds them anyway."""

_LEVEL = 1  # floats hardly compress further at a higher one, and a request waits for this
_GZIP, _ZLIB, _RAW = 31, 15, -15


def coding_of(content_encoding: str | None) -> str | None:
    """Read a `Content-Encoding`; None where the body is as it is.

    Raises:
        UnsupportedMediaType: neither gzip nor deflate, or several.
    """
    coding = (content_encoding or "").strip().lower()
    if coding in ("", "identity"):
        return None
    if coding not in CODINGS:
        raise UnsupportedMediaType(
            f"the body's Content-Encoding is {coding[:64]!r}; send gzip, deflate, or the body as it is"
        )
    return coding


def decompress(data: bytes, coding: str, limit: int) -> bytes:
    """Inflate a body of one member, stopping one byte past `limit`.

    Raises:
        BodyTooLarge: it would be larger than `limit` bytes.
        InvalidRequest: it is not what `coding` says, is cut off, or more follows.
    """
    window = _GZIP if coding == "gzip" else _ZLIB if _has_zlib_header(data) else _RAW
    inflater = zlib.decompressobj(window)
    try:
        plain = inflater.decompress(data, limit + 1)
    except zlib.error as e:
        raise InvalidRequest(f"the body is not {coding}, which its Content-Encoding says: {e}") from e
    if len(plain) > limit:
        raise BodyTooLarge(f"the body inflates to more than the {limit:,} bytes that are accepted")
    if not inflater.eof:
        raise InvalidRequest(f"the {coding} body ends before it is complete")
    if inflater.unused_data:
        raise InvalidRequest(f"{len(inflater.unused_data)} bytes follow the end of the {coding} body")
    return plain


def _has_zlib_header(data: bytes) -> bool:
    """Tell RFC 9110's deflate (in a zlib wrapper) from the bare one that some clients send."""
    return len(data) >= 2 and data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0


def compress(data: bytes, coding: str) -> bytes:
    """Deflate a body, quickly."""
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP if coding == "gzip" else _ZLIB)
    return deflater.compress(data) + deflater.flush()


def wanted(accept_encoding: str | None) -> str | None:
    """Choose a coding from an `Accept-Encoding`: the one weighted most, gzip of two that are equal; None for none."""
    if not accept_encoding:
        return None
    weights: dict[str, float] = {}
    for part in accept_encoding.lower().split(","):
        name, _, options = part.partition(";")
        weights[name.strip()] = _weight(options)
    offered = {coding: weights.get(coding, weights.get("*", 0.0)) for coding in CODINGS}
    best = max(CODINGS, key=lambda coding: offered[coding])
    return best if offered[best] > 0 else None


def _weight(options: str) -> float:
    key, _, value = options.strip().partition("=")
    if key.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
