"""One file for one user: a bundle's graph with heads behind it, raw input to answers. Needs no onnx package.

A head is a few nodes. They are written in the wire format of Protocol Buffers, in which fields that repeat (nodes,
initializers, outputs) may be added at a message's end: the backbone's own bytes stay as they were verified, and serving
needs neither the 30 MB of the `onnx` package nor its import. Source: onnx.proto (field numbers below) and
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.heads.head import Head

OUTPUTS = ("logits", "probabilities", "label")
"""Of a head for labels: FP32 `[batch, K]` twice, and INT64 `[batch]`, the index of the likeliest label."""
VALUE = "value"
"""Of a head for targets: FP32 `[batch, T]`."""

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_FLOAT, _INT64 = 1, 7  # TensorProto.DataType
_INT_ATTRIBUTE = 2  # AttributeProto.AttributeType.INT
_GRAPH, _OPSET_IMPORT, _METADATA = 7, 8, 14  # of ModelProto
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13  # of GraphProto


class GraphError(ValueError):
    """A graph cannot take a head; the message says why."""


@dataclass(frozen=True, slots=True)
class PlacedHead:
    """A head `(K, d)`, in float32 as the service applies it, and where it stands.

    Attributes:
        head: the head.
        name: of its output, where there are several: its tensors are called `NAME.logits` and so on.
        targets: whether it answers numbers (`VALUE`) instead of labels (`OUTPUTS`).
        columns: of the backbone's features, the `d` that it is over; None for all.
    """

    head: Head
    name: str = ""
    targets: bool = False
    columns: NDArray[np.int64] | None = None


def standalone(backbone: bytes, heads: Sequence[PlacedHead], metadata: Mapping[str, str]) -> bytes:
    """Return an ONNX model: the backbone's features, and what each head makes of them.

    An output keeps its name unless there is a value of that name; then it is `head.<name>`.

    Args:
        backbone: an ONNX model whose first output is features `[batch, d]`, of any float type.
        heads: one, or one of each of several outputs.
        metadata: written into the model's properties, each key behind `headway.`.

    Raises:
        GraphError: the backbone's bytes are not an ONNX model with an output.
    """
    try:
        fields = list(_fields(backbone))
        graph = b"".join(f.value for f in fields if f.number == _GRAPH)
        inner = list(_fields(graph))
        features = next((_text(f.value, 1) for f in inner if f.number == _OUTPUT), "")
        taken = set(_names(inner))
    except (IndexError, UnicodeDecodeError) as e:
        raise GraphError(f"the backbone is not an ONNX model: {e}") from e
    if not features:
        raise GraphError("the backbone is not an ONNX model with an output")
    if not any(f.number == _OPSET_IMPORT for f in fields):
        raise GraphError("the backbone names no operator set")
    others = b"".join(f.raw for f in fields if f.number != _GRAPH)
    properties = b"".join(
        _message(_METADATA, _string(1, f"headway.{key}") + _string(2, value)) for key, value in sorted(metadata.items())
    )
    parts = b"".join(_head_part(features, placed, taken) for placed in heads)
    return others + _message(_GRAPH, graph + parts) + properties


def _head_part(features: str, placed: PlacedHead, taken: set[str]) -> bytes:
    """What a head adds to a graph: nodes, initializers and outputs; notes their names as taken."""

    def free(name: str) -> str:
        """A name that no value has yet."""
        name = f"{placed.name}.{name}" if placed.name else name
        while name in taken:
            name = f"head.{name}"
        taken.add(name)
        return name

    head, parts = placed.head, list[bytes]()
    if placed.columns is not None:
        columns, some = free("head.columns"), free("head.some")
        parts += [_tensor(columns, np.asarray(placed.columns, "<i8"), _INT64)]
        parts += [_node("Gather", (features, columns), some, axis=1)]
        features = some
    z, weight, bias = free("head.features"), free("head.weight"), free("head.bias")
    said = free(VALUE if placed.targets else OUTPUTS[0])
    parts += [
        _node("Cast", (features,), z, to=_FLOAT),  # nothing where the features are float32 already
        _node("Gemm", (z, weight, bias), said, transB=1),
        _tensor(weight, np.asarray(head.weight, "<f4"), _FLOAT),
        _tensor(bias, np.asarray(head.bias, "<f4"), _FLOAT),
        _output(said, _FLOAT, len(head.bias)),
    ]
    if not placed.targets:
        probabilities, label = map(free, OUTPUTS[1:])
        parts += [
            _node("Softmax", (said,), probabilities, axis=1),
            _node("ArgMax", (said,), label, axis=1, keepdims=0),
            _output(probabilities, _FLOAT, len(head.bias)),
            _output(label, _INT64),
        ]
    return b"".join(parts)


def _node(operator: str, inputs: Sequence[str], output: str, **attributes: int) -> bytes:
    content = b"".join(_string(1, name) for name in inputs) + _string(2, output)
    content += _string(3, f"{output}.{operator}") + _string(4, operator)
    for name, value in attributes.items():
        content += _message(5, _string(1, name) + _number(3, value) + _number(20, _INT_ATTRIBUTE))
    return _message(_NODE, content)


def _tensor(name: str, value: NDArray[Any], datatype: int) -> bytes:
    dims = b"".join(_number(1, size) for size in value.shape)
    return _message(_INITIALIZER, dims + _number(2, datatype) + _string(8, name) + _message(9, value.tobytes()))


def _output(name: str, datatype: int, *sizes: int) -> bytes:
    dims = _message(1, _string(2, "batch")) + b"".join(_message(1, _number(1, size)) for size in sizes)
    kind = _message(1, _number(1, datatype) + _message(2, dims))
    return _message(_OUTPUT, _string(1, name) + _message(2, kind))


class _Field(NamedTuple):
    """A field of a message: its number, its content, and all its bytes."""

    number: int
    value: bytes
    raw: bytes


def _fields(data: bytes) -> Iterator[_Field]:
    """Read the fields of a message, without what is inside them.

    Raises:
        IndexError: the bytes are not a message.
    """
    at = 0
    while at < len(data):
        begin = at
        tag, at = _varint_at(data, at)
        kind, value = tag & 7, at
        if kind == _VARINT:
            _, at = _varint_at(data, at)
        elif kind == _LENGTH:
            length, value = _varint_at(data, at)
            at = value + length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise IndexError(f"wire type {kind}")
        if at > len(data):
            raise IndexError("the message ends within a field")
        yield _Field(tag >> 3, data[value:at], data[begin:at])


def _names(graph: list[_Field]) -> Iterator[str]:
    """Names of all values of a graph, given its fields."""
    for field in graph:
        if field.number == _NODE:
            yield from (f.value.decode() for f in _fields(field.value) if f.number in (1, 2))
        elif field.number == _INITIALIZER:
            yield _text(field.value, 8)
        elif field.number in (_INPUT, _OUTPUT, _VALUE_INFO):
            yield _text(field.value, 1)


def _text(message: bytes, number: int) -> str:
    return next((f.value.decode() for f in _fields(message) if f.number == number), "")


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | _LENGTH) + _varint(len(content)) + content


def _string(field: int, value: str) -> bytes:
    return _message(field, value.encode())
