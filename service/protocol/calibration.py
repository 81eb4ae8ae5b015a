"""The calibration request: JSON, or the binary layout with `inputs` as one tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.bundle import Manifest
from models.heads.calibration import METHODS
from service.errors import InvalidRequest
from service.protocol import inputs, oip
from service.protocol.media import Items, is_encoded, items_of

FIELDS = {"inputs", "labels", "repetitions", "mode", "method", "activate", "dry_run", "seed"}
CHOICES = {"mode": ("update", "replace"), "method": METHODS, "activate": ("if_better", "always", "never")}
DEFAULTS = {"mode": "update", "method": "map", "activate": "if_better"}


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """Labelled windows and what to do with them.

    Attributes:
        x: windows `(n, C, T)`.
        y: class indices `(n,)`.
        repetition: repetition ids `(n,)`.
        digest: sha256 of the body, to tell a repeated call from another with the same key.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    repetition: NDArray[np.int64]
    mode: str
    method: str
    activate: str
    dry_run: bool
    seed: int
    digest: str


def decode(
    body: bytes, header_length: str | None, manifest: Manifest, read: Callable[[Items], NDArray[Any]]
) -> CalibrationRequest:
    """Decode and check a calibration request; `read` makes rows of the media that the model reads.

    Raises:
        InvalidRequest: malformed, or of another shape or datatype.
        Unprocessable: unknown labels or values that are not finite.
    """
    message, binary = oip.split(body, header_length)
    unknown = sorted(set(message) - FIELDS)
    if unknown:
        raise InvalidRequest(f"unknown field {unknown[0]!r}; the fields are {', '.join(sorted(FIELDS))}")
    for required in ("inputs", "labels"):
        if required not in message:
            raise InvalidRequest(f"the body has no {required!r}")
    x = _windows(message["inputs"], binary, manifest, read)
    choice = {name: _choice(message, name) for name in CHOICES}
    return CalibrationRequest(
        x=x,
        y=inputs.class_indices(message["labels"], len(x), manifest.labels),
        repetition=inputs.repetition_ids(message.get("repetitions"), len(x)),
        dry_run=_typed(message, "dry_run", bool, False),
        seed=_typed(message, "seed", int, 0),
        digest=hashlib.sha256(body).hexdigest(),
        **choice,
    )


def _windows(value: Any, binary: memoryview, manifest: Manifest, read: Callable[[Items], NDArray[Any]]) -> NDArray[Any]:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        tensors = oip.tensors(value, binary)
        if len(tensors) != 1:
            raise InvalidRequest("inputs must be one tensor")
        (tensor,) = tensors.values()
        if manifest.input.media is not None and tensor.datatype == "BYTES":
            return read(inputs.encoded_items(tensor, manifest.input))
        return inputs.windows(tensor, manifest.input)
    if len(binary):
        raise InvalidRequest("there is binary data, but inputs is not a tensor with binary_data_size")
    if is_encoded(value, manifest.input):
        return read(items_of(value, manifest.input))
    return inputs.checked(inputs.nested(value), manifest.input)


def _choice(message: dict[str, Any], name: str) -> str:
    value = message.get(name, DEFAULTS[name])
    if value not in CHOICES[name]:
        raise InvalidRequest(f"{name} is {value!r}; it can be {', '.join(CHOICES[name])}")
    return str(value)


def _typed(message: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = message.get(name, default)
    if type(value) is not kind:
        raise InvalidRequest(f"{name} must be of type {kind.__name__}, not {type(value).__name__}")
    return value
