"""Encoded media in a body: files as they are, texts, and lists of either in JSON."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from exporters.bundle import InputSpec
from service.errors import InvalidRequest

TENSORS = ("application/json", "application/x-npy")
"""What every model reads."""
CONTENT_TYPES: dict[str, tuple[str, ...]] = {
    "image": ("image/jpeg", "image/png"),
    "text": ("text/plain",),
    "audio": ("audio/wav", "audio/x-wav", "audio/wave", "audio/flac", "audio/x-flac", "audio/ogg"),
}
"""What one image, text or sound may be sent as, by the kind of media that a model reads."""

Items = tuple[bytes | str, ...]


def accepted(spec: InputSpec) -> tuple[str, ...]:
    """Media types that `predict` and `features` of a model read."""
    if spec.parts:
        return TENSORS[:1]
    return TENSORS if spec.media is None else (*TENSORS, *CONTENT_TYPES[spec.media.kind])


def is_encoded(value: Any, spec: InputSpec) -> bool:
    """Whether `inputs` of a JSON body are media: a string, or a list of them, for a model that reads some."""
    return spec.media is not None and (
        isinstance(value, str) or (isinstance(value, list) and len(value) > 0 and isinstance(value[0], str))
    )


def items_of(value: str | Sequence[Any], spec: InputSpec) -> Items:
    """Read media from JSON: texts as they are, files in base64 (or as `data:` URLs).

    Raises:
        InvalidRequest: something else among them, or not base64.
    """
    values = [value] if isinstance(value, str) else list(value)
    for i, item in enumerate(values):
        if not isinstance(item, str):
            raise InvalidRequest(f"inputs must be strings only; number {i} is of type {type(item).__name__}")
    if spec.media is not None and spec.media.kind == "text":
        return tuple(values)
    return tuple(_file(item, i) for i, item in enumerate(values))


def _file(text: str, number: int) -> bytes:
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise InvalidRequest(f"input {number} is a data URL without ;base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise InvalidRequest(f"input {number} is not base64: {e}") from e
