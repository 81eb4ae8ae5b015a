"""Tensors on the wire: the datatypes of the Open Inference Protocol, as views on the body where they allow it."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{b}": np.dtype(f"<u{b // 8}") for b in (8, 16, 32, 64)},
    **{f"INT{b}": np.dtype(f"<i{b // 8}") for b in (8, 16, 32, 64)},
    **{f"FP{b}": np.dtype(f"<f{b // 8}") for b in (16, 32, 64)},
}
"""Numeric datatypes. BYTES is a 4-byte little-endian length and that many bytes, each element."""

MAX_DIMENSIONS = 8
LARGEST_SIZE = 2**31 - 1

EXACT_IN_FP32 = frozenset({"FP32", "FP16", "INT8", "UINT8", "INT16", "UINT16"})
"""Datatypes every value of which is a float32, so that a cast loses nothing."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor; BYTES data is an object array of `bytes`."""

    name: str
    datatype: str
    data: NDArray[Any]
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the data."""
        return self.data.shape


def describe(entry: Any) -> tuple[str, str, tuple[int, ...], dict[str, Any]]:
    """Read name, datatype, shape and parameters of a tensor's JSON.

    Raises:
        InvalidRequest: one is missing or of the wrong kind.
    """
    if not isinstance(entry, dict):
        raise InvalidRequest(
            f"an input must be an object with name, datatype, shape and data, not {type(entry).__name__}"
        )
    name, datatype, shape = entry.get("name"), entry.get("datatype"), entry.get("shape")
    parameters = entry.get("parameters", {})
    if not isinstance(name, str) or not name:
        raise InvalidRequest("an input has no name")
    if not isinstance(datatype, str) or (datatype not in DTYPES and datatype != "BYTES"):
        raise InvalidRequest(f"input {name!r} has datatype {datatype!r}; known are {', '.join([*DTYPES, 'BYTES'])}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_size(s) for s in shape):
        raise InvalidRequest(
            f"input {name!r} has shape {shape!r}; a list of at most {MAX_DIMENSIONS} non-negative integers was expected"
        )
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"the parameters of input {name!r} must be an object")
    return name, datatype, tuple(shape), parameters


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_SIZE


def from_json(entry: Any) -> Tensor:
    """Decode a tensor whose `data` is in the JSON, flat or nested.

    Raises:
        InvalidRequest: the data does not fit the datatype or the shape.
    """
    name, datatype, shape, parameters = describe(entry)
    if "data" not in entry:
        raise InvalidRequest(f"input {name!r} has neither data nor binary_data_size")
    values = entry["data"]
    if not isinstance(values, list):
        raise InvalidRequest(f"the data of input {name!r} must be a list")
    if datatype == "BYTES":
        flat = [v.encode() if isinstance(v, str) else v for v in _flat(values)]
        if not all(isinstance(v, bytes) for v in flat):
            raise InvalidRequest(f"input {name!r} is BYTES; its data must be strings")
        array = np.empty(len(flat), object)
        array[:] = flat
    else:
        array = _numbers(values, datatype, name)
    return Tensor(name, datatype, _shaped(array, shape, name), parameters)


def _flat(values: Sequence[Any], depth: int = 0) -> list[Any]:
    if depth > MAX_DIMENSIONS:
        raise InvalidRequest(f"data is nested more than {MAX_DIMENSIONS} deep")
    found: list[Any] = []
    for value in values:
        if isinstance(value, list):
            found += _flat(value, depth + 1)
        else:
            found.append(value)
    return found


def _numbers(values: list[Any], datatype: str, name: str) -> NDArray[Any]:
    dtype = DTYPES[datatype]
    try:
        array = np.asarray(values)
    except ValueError as e:
        raise InvalidRequest(f"the data of input {name!r} is ragged or not numeric") from e
    if array.size == 0:
        return array.astype(dtype).reshape(-1)
    if array.dtype.kind not in ("fiub" if datatype != "BOOL" else "biu") or (array.dtype.kind == "b") != (
        datatype == "BOOL"
    ):
        raise InvalidRequest(f"the data of input {name!r} is not {datatype}: it holds values of another kind")
    if array.dtype.kind == "f" and dtype.kind in "iu" and all(type(v) is int for v in _flat(values)):
        array = np.array(_flat(values), object)  # integers of which some are beyond INT64
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        if array.dtype.kind == "f" or array.min() < info.min or array.max() > info.max:
            raise InvalidRequest(f"the data of input {name!r} holds values that are not {datatype}")
    with np.errstate(over="ignore"):
        return array.astype(dtype).reshape(-1)


def from_binary(entry: Any, view: memoryview, size: int) -> Tensor:
    """Decode a tensor from `size` bytes of the body; numeric data stays a view on them.

    Raises:
        InvalidRequest: the bytes do not fit the shape.
    """
    name, datatype, shape, parameters = describe(entry)
    if datatype == "BYTES":
        return Tensor(name, datatype, _shaped(_bytes_elements(view, name), shape, name), parameters)
    dtype = DTYPES[datatype]
    need = math.prod(shape) * dtype.itemsize
    if size != need:
        raise InvalidRequest(
            f"input {name!r} of shape {list(shape)} and datatype {datatype} needs {need} bytes; {size} were announced"
        )
    return Tensor(name, datatype, _reshaped(np.frombuffer(view, dtype), shape, name), parameters)


def _bytes_elements(view: memoryview, name: str) -> NDArray[Any]:
    elements: list[bytes] = []
    at = 0
    while at < len(view):
        if at + 4 > len(view):
            raise InvalidRequest(f"the BYTES data of input {name!r} ends inside a length")
        (length,) = struct.unpack_from("<I", view, at)
        at += 4
        if at + length > len(view):
            raise InvalidRequest(f"the BYTES data of input {name!r} ends inside an element")
        elements.append(bytes(view[at : at + length]))
        at += length
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def _shaped(array: NDArray[Any], shape: tuple[int, ...], name: str) -> NDArray[Any]:
    if array.size != math.prod(shape):
        raise InvalidRequest(
            f"input {name!r} of shape {list(shape)} needs {math.prod(shape)} values; {array.size} were sent"
        )
    return _reshaped(array, shape, name)


def _reshaped(array: NDArray[Any], shape: tuple[int, ...], name: str) -> NDArray[Any]:
    try:
        return array.reshape(shape)
    except ValueError as e:  # no values, and sizes that no array may have
        raise InvalidRequest(f"input {name!r} has a shape beyond what an array may have") from e


def to_binary(data: NDArray[Any], datatype: str) -> bytes:
    """Encode a tensor's data as the protocol's raw bytes."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(item)) + item for item in data.reshape(-1))
    return np.ascontiguousarray(data, DTYPES[datatype]).tobytes()


def to_json(data: NDArray[Any], datatype: str) -> Any:
    """Return a tensor's data as what the JSON encoder writes flat."""
    if datatype == "BYTES":
        return [item.decode(errors="replace") for item in data.reshape(-1)]
    flat = np.ascontiguousarray(data, DTYPES[datatype]).reshape(-1)
    return flat.astype(np.float32) if datatype == "FP16" else flat
