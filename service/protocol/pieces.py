"""Large JSON bodies piece by piece: during one call of the parser no other thread runs, the event loop's neither."""

from __future__ import annotations

import re
import secrets
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

PIECE = 256 * 1024
"""Bytes of one call of the parser: a millisecond or two."""

_INPUTS = re.compile(rb'"inputs"[ \t\r\n]*:[ \t\r\n]*(\[+)(?=[-0-9])')


def parse_inputs(body: bytes) -> dict[str, Any] | None:
    """Parse a JSON object whose `inputs` is a nested array of numbers, with that as one float64 array.

    Returns:
        What parsing it whole gives, but for the array; None where it is anything else, malformed or ragged, or begins
        with white space between brackets: then it is to be parsed whole, which also says what is wrong.
    """
    begin = _INPUTS.search(body)
    if begin is None:
        return None
    start, depth = begin.start(1), len(begin[1])
    # Numbers hold no quote: the array ends with the last bracket before the next one.
    quote = body.find(b'"', start)
    end = body.rfind(b"]", start, quote if quote >= 0 else len(body))
    # A value nobody can have sent stands for the array: it shows that the array was the member `inputs`, and is valid
    # there. Lists of valid elements with commas between them are then a valid array.
    token = secrets.token_hex(16)
    try:
        message = orjson.loads(b'%b"%b"%b' % (body[:start], token.encode(), body[end + 1 :]))
    except orjson.JSONDecodeError:
        return None
    if not isinstance(message, dict) or message.get("inputs") != token:
        return None
    array = _array(body, start + 1, end, depth)
    return None if array is None else {**message, "inputs": array}


def _array(body: bytes, at: int, end: int, depth: int) -> NDArray[np.float64] | None:
    """Parse the elements of an array of `depth` dimensions between two offsets, some whole elements at a time."""
    if any(body.find(letter, at, end) >= 0 for letter in (b"t", b"l")):
        return None  # true, false or null, which numpy would take for numbers among numbers
    border = b"]" * (depth - 1) + b","
    parts: list[NDArray[np.float64]] = []
    cut = 0
    while cut >= 0:
        cut = body.find(border, at + PIECE, end)
        till = end if cut < 0 else cut + depth - 1
        try:
            part = np.asarray(orjson.loads(b"[%b]" % body[at:till]))
        except ValueError:  # not JSON, or ragged
            return None
        if part.dtype.kind not in "fiu" or not len(part):
            return None
        if parts and part.shape[1:] != parts[0].shape[1:]:
            return None
        parts.append(part.astype(np.float64, copy=False))
        at = till + 1
    return np.concatenate(parts)
