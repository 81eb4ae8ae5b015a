"""Open Inference Protocol v2 messages: JSON, JSON with binary tensors behind it, and raw binary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson

from exporters.bundle import InputSpec
from service.errors import InvalidRequest
from service.protocol import classification, parameters
from service.protocol.body import parse_json_object
from service.protocol.parameters import Parameters
from service.protocol.parts import names
from service.protocol.tensors import DTYPES, Tensor, from_binary, from_json, to_binary, to_json

HEADER_LENGTH = "inference-header-content-length"
_NO_BYTES = memoryview(b"")


class RequestedOutput(NamedTuple):
    """An output asked for: whether as binary data, and as how many top classes (0: as it is)."""

    name: str
    binary: bool
    classification: int = 0


@dataclass(slots=True)
class InferRequest:
    """A decoded request: tensors by name, outputs asked for (None = the default ones), request parameters."""

    id: str
    inputs: dict[str, Tensor]
    outputs: tuple[RequestedOutput, ...] | None
    parameters: Parameters

    @property
    def binary_output(self) -> bool:
        """Whether outputs are binary where they do not say."""
        return self.parameters.binary_data_output


class Encoded(NamedTuple):
    """An encoded answer: its bytes, and how many of them are JSON (None: all of them)."""

    body: bytes
    header_length: int | None

    @property
    def media_type(self) -> str:
        """What the bytes are."""
        return "application/json" if self.header_length is None else "application/octet-stream"

    @property
    def headers(self) -> dict[str, str]:
        """The header that tells a client where binary data begins, where there is some."""
        return {} if self.header_length is None else {"Inference-Header-Content-Length": str(self.header_length)}


def split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], memoryview]:
    """Split a body into its JSON part and the binary tensor data behind it.

    Raises:
        InvalidRequest: the header is not a length within the body, or the JSON is malformed.
    """
    if header_length is None:
        return parse_json_object(body), _NO_BYTES
    if not header_length.isdecimal() or len(header_length) > 18 or int(header_length) > len(body):
        raise InvalidRequest(
            f"Inference-Header-Content-Length {header_length[:32]!r} is not a length within {len(body)} bytes"
        )
    view, at = memoryview(body), int(header_length)
    return parse_json_object(view[:at]), view[at:]


def tensors(entries: Any, binary: memoryview) -> dict[str, Tensor]:
    """Decode a list of tensors, taking binary data in their order.

    Raises:
        InvalidRequest: malformed, a name twice, or bytes missing or left over.
    """
    if not isinstance(entries, list) or not entries:
        raise InvalidRequest("inputs must be a non-empty list of tensors")
    found: dict[str, Tensor] = {}
    at, end = 0, len(binary)
    for entry in entries:
        given = entry.get("parameters") if isinstance(entry, dict) else None
        size = given.get("binary_data_size") if isinstance(given, dict) else None
        if size is None:
            tensor = from_json(entry)
        else:
            if type(size) is not int or size < 0 or at + size > end:
                raise InvalidRequest(
                    f"binary_data_size {size!r} is not within the {end - at} bytes of binary data left"
                )
            tensor = from_binary(entry, binary[at : at + size], size)
            at += size
        if tensor.name in found:
            raise InvalidRequest(f"input {tensor.name!r} is given twice")
        found[tensor.name] = tensor
    if at != end:
        raise InvalidRequest(f"{end - at} bytes of binary data belong to no input")
    return found


def decode(
    body: bytes,
    header_length: str | None = None,
    query: Mapping[str, str] | None = None,
    spec: InputSpec | None = None,
) -> InferRequest:
    """Decode an inference request.

    Args:
        body: all of it.
        header_length: the header `Inference-Header-Content-Length`; "0" means raw binary.
        query: query parameters, which carry the request's parameters in raw binary.
        spec: the model's input, which raw binary needs.

    Raises:
        InvalidRequest: malformed in any way; the message names the part.
    """
    if header_length == "0":
        return _raw(body, query or {}, spec)
    if query:
        raise InvalidRequest(
            f"unknown query parameter {next(iter(query))[:64]!r}; known are: none "
            "(they are read in raw binary, else put them under parameters in the JSON)"
        )
    message, binary = split(body, header_length)
    asked = parameters.of_request(message.get("parameters"))
    request_id = message.get("id", "")
    if type(request_id) is not str:
        raise InvalidRequest("id must be a string")
    return InferRequest(
        request_id,
        tensors(message.get("inputs"), binary),
        _outputs(message.get("outputs"), asked.binary_data_output),
        asked,
    )


def _raw(body: bytes, query: Mapping[str, str], spec: InputSpec | None) -> InferRequest:
    """Take the whole body as the one input. As in Triton, outputs are binary unless `binary_data_output` says no."""
    asked = parameters.of_query({"binary_data_output": "true", **query})
    if spec is None:
        raise InvalidRequest("raw binary (Inference-Header-Content-Length: 0) cannot be read here")
    if spec.parts:
        raise InvalidRequest(
            "raw binary (Inference-Header-Content-Length: 0) is of one input, and this model has several; send JSON, "
            f"or JSON with binary tensors behind it, of one or more of {names(spec)}"
        )
    dtype = DTYPES[spec.datatype]
    size = math.prod(spec.window_shape) * dtype.itemsize
    if size <= 0 or not body or len(body) % size:
        raise InvalidRequest(
            f"the raw body has {len(body)} bytes; one or more windows {list(spec.window_shape)} of {spec.datatype}, "
            f"{size} bytes each, were expected"
        )
    data = np.frombuffer(body, dtype).reshape(-1, *spec.window_shape)
    return InferRequest("", {spec.name: Tensor(spec.name, spec.datatype, data)}, None, asked)


def _outputs(entries: Any, default: bool) -> tuple[RequestedOutput, ...] | None:
    if entries is None or entries == []:
        return None
    if not isinstance(entries, list):
        raise InvalidRequest("outputs must be a list")
    wanted = []
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if type(name) is not str:
            raise InvalidRequest("an output must be an object with a name")
        binary, top = parameters.of_output(name, entry.get("parameters"), default)
        if top:
            classification.check(name)
        wanted.append(RequestedOutput(name, binary, top))
    if len({output.name for output in wanted}) < len(wanted):
        raise InvalidRequest("an output is asked for twice")
    return tuple(wanted)


def encode(head: dict[str, Any], outputs: Sequence[tuple[Tensor, bool]]) -> Encoded:
    """Encode an answer: `head` carries the names and parameters, each output is JSON or binary as asked."""
    described: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for tensor, binary in outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.data.shape}
        if binary:
            blob = to_binary(tensor.data, tensor.datatype)
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = to_json(tensor.data, tensor.datatype)
        described.append(entry)
    text = orjson.dumps({**head, "outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Encoded(b"".join([text, *blobs]), len(text)) if blobs else Encoded(text, None)
