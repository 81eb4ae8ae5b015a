"""Open Inference Protocol v2 messages, JSON with or without the binary tensor extension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from service.errors import InvalidRequest
from service.protocol.body import parse_json_object
from service.protocol.tensors import Tensor, from_binary, from_json, to_binary, to_json

HEADER_LENGTH = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output asked for, and whether as binary data."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A decoded request: tensors by name, outputs asked for (None = the default ones), request parameters."""

    id: str
    inputs: dict[str, Tensor]
    outputs: tuple[RequestedOutput, ...] | None
    binary_output: bool
    parameters: dict[str, Any]


def split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], memoryview]:
    """Split a body into its JSON part and the binary tensor data behind it.

    Raises:
        InvalidRequest: the header is not a length within the body, or the JSON is malformed.
    """
    if header_length is None:
        return parse_json_object(body), memoryview(b"")
    if not header_length.isdecimal() or len(header_length) > 18 or int(header_length) > len(body):
        raise InvalidRequest(
            f"Inference-Header-Content-Length {header_length[:32]!r} is not a length within {len(body)} bytes"
        )
    view = memoryview(body)
    return parse_json_object(view[: int(header_length)]), view[int(header_length) :]


def tensors(entries: Any, binary: memoryview) -> dict[str, Tensor]:
    """Decode a list of tensors, taking binary data in their order.

    Raises:
        InvalidRequest: malformed, a name twice, or bytes missing or left over.
    """
    if not isinstance(entries, list) or not entries:
        raise InvalidRequest("inputs must be a non-empty list of tensors")
    found: dict[str, Tensor] = {}
    at = 0
    for entry in entries:
        parameters = entry.get("parameters") if isinstance(entry, dict) else None
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            tensor = from_json(entry)
        else:
            if not isinstance(size, int) or isinstance(size, bool) or size < 0 or at + size > len(binary):
                raise InvalidRequest(
                    f"binary_data_size {size!r} is not within the {len(binary) - at} bytes of binary data left"
                )
            tensor = from_binary(entry, binary[at : at + size], size)
            at += size
        if tensor.name in found:
            raise InvalidRequest(f"input {tensor.name!r} is given twice")
        found[tensor.name] = tensor
    if at != len(binary):
        raise InvalidRequest(f"{len(binary) - at} bytes of binary data belong to no input")
    return found


def decode(body: bytes, header_length: str | None) -> InferRequest:
    """Decode an inference request.

    Raises:
        InvalidRequest: malformed in any way; the message names the part.
    """
    message, binary = split(body, header_length)
    parameters = message.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters must be an object")
    request_id = message.get("id", "")
    if not isinstance(request_id, str):
        raise InvalidRequest("id must be a string")
    binary_output = parameters.get("binary_data_output", False) is True
    return InferRequest(
        request_id,
        tensors(message.get("inputs"), binary),
        _outputs(message.get("outputs"), binary_output),
        binary_output,
        parameters,
    )


def _outputs(entries: Any, default: bool) -> tuple[RequestedOutput, ...] | None:
    if entries is None or entries == []:
        return None
    if not isinstance(entries, list):
        raise InvalidRequest("outputs must be a list")
    wanted = []
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise InvalidRequest("an output must be an object with a name")
        parameters = entry.get("parameters", {})
        binary = parameters.get("binary_data", default) if isinstance(parameters, dict) else default
        wanted.append(RequestedOutput(name, binary is True))
    if len({o.name for o in wanted}) < len(wanted):
        raise InvalidRequest("an output is asked for twice")
    return tuple(wanted)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An answer's body, and the length of its JSON part if binary data follows it."""

    body: bytes
    header_length: int | None


def encode(head: dict[str, Any], outputs: Sequence[tuple[Tensor, bool]]) -> Encoded:
    """Encode an answer: `head` carries the names and parameters, each output is JSON or binary as asked."""
    described: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for tensor, binary in outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if binary:
            blob = to_binary(tensor.data, tensor.datatype)
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = to_json(tensor.data, tensor.datatype)
        described.append(entry)
    content = {**head, "outputs": described}
    text = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    if not blobs:
        return Encoded(text, None)
    return Encoded(b"".join([text, *blobs]), len(text))
