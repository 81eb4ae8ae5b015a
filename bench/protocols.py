"""How windows and their user's number become a request of each server, and its answer probabilities."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.bundles import Case
from bench.load import Body

Windows = NDArray[Any]
HOLE = "@USER@"
OCTETS, JSON = {"Content-Type": "application/octet-stream"}, {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Protocol:
    """One kind of body: where it is posted, how it is made, how its answer is read, and a word on it."""

    path: str
    make: Callable[[Case, Windows], Body]
    read: Callable[[bytes, dict[str, str]], NDArray[np.floating]]
    note: str


def numbers(windows: Windows) -> list[Any]:
    """Return windows as nested lists, in as many decimals as they were made with."""
    nested: list[Any] = windows.tolist() if windows.dtype == np.uint8 else np.round(windows.astype(float), 3).tolist()
    return nested


def _holed(message: dict[str, Any], shape: str, tail: bytes = b"", *, quoted: bool = True, repeat: int = 1) -> Body:
    """Cut a JSON message at the hole; `shape` has a fixed width wherever a binary tail follows."""
    hole = f'"{HOLE}"' if quoted else HOLE
    before, after = json.dumps(message, separators=(",", ":")).encode().split(hole.encode())
    headers = dict(JSON)
    if tail:
        length = len(before) + repeat * (len(shape % 0) + 1) - 1 + len(after)
        headers = {**OCTETS, "Inference-Header-Content-Length": str(length)}
    return Body(before, shape, after + tail, headers, repeat)


def _tensor(model: Case, rows: int) -> dict[str, Any]:
    name = model.bundle.manifest.input.name
    return {"name": name, "shape": [rows, *model.shape], "datatype": model.datatype}


def _oip(model: Case, windows: Windows, *, binary: bool) -> Body:
    parameters = {"user_id": f"u{HOLE}"}
    tail = windows.tobytes() if binary else b""
    data = {"parameters": {"binary_data_size": len(tail)}} if binary else {"data": numbers(windows.ravel())}
    output: dict[str, Any] = {"name": "probabilities"}
    if binary:
        output["parameters"] = {"binary_data": True}
    message = {"parameters": parameters, "inputs": [_tensor(model, len(windows)) | data], "outputs": [output]}
    return _holed(message, "%06d", tail, quoted=False)


def _triton(model: Case, windows: Windows, *, binary: bool, batched: bool) -> Body:
    """`batched` models take the user as a tensor `[rows, 1]`, so that the server may put requests together."""
    tail, rows = windows.tobytes() if binary else b"", len(windows)
    data = {"parameters": {"binary_data_size": len(tail)}} if binary else {"data": numbers(windows.ravel())}
    user = {"name": "user", "shape": [rows, 1] if batched else [1], "datatype": "INT64", "data": [HOLE]}
    output: dict[str, Any] = {"name": "probabilities"}
    if binary:
        output["parameters"] = {"binary_data": True}
    message = {"inputs": [user, _tensor(model, rows) | data], "outputs": [output]}
    return _holed(message, "%8d", tail, repeat=rows if batched else 1)


def _dense(_model: Case, windows: Windows) -> Body:
    return Body(b"", "%08d", windows.tobytes(), dict(OCTETS))


def _json(_model: Case, windows: Windows) -> Body:
    return _holed({"user": HOLE, "input": numbers(windows)}, "%d")


def _base64(_model: Case, windows: Windows) -> Body:
    return _holed({"user": HOLE, "input": base64.b64encode(windows.tobytes()).decode()}, "%d")


def _mlserver_base64(model: Case, windows: Windows) -> Body:
    user = {"name": "user", "shape": [1], "datatype": "INT64", "data": [HOLE]}
    text = base64.b64encode(windows.tobytes()).decode()
    return _holed({"inputs": [user, {"name": "input", "shape": [1], "datatype": "BYTES", "data": [text]}]}, "%d")


def _read_oip(content: bytes, headers: dict[str, str]) -> NDArray[np.floating]:
    length = headers.get("inference-header-content-length")
    message = json.loads(content if length is None else content[: int(length)])
    output = next(o for o in message["outputs"] if o["name"] == "probabilities")
    if length is None:
        return np.asarray(output["data"], float).reshape(output["shape"])
    return np.frombuffer(content[int(length) :], np.float32).reshape(output["shape"])


def _read_bytes(content: bytes, _headers: dict[str, str]) -> NDArray[np.floating]:
    return np.frombuffer(content, np.float32)


def _read_json(content: bytes, _headers: dict[str, str]) -> NDArray[np.floating]:
    found = json.loads(content)
    return np.asarray(found["probabilities"] if isinstance(found, dict) else found, float)


DENSE = Protocol("/dense", _dense, _read_bytes, "raw bytes")
NESTED = Protocol("/json", _json, _read_json, "JSON numbers")
TEXT = Protocol("/predict", _base64, _read_json, "base64 in JSON")
TEXT_NUMBERS = Protocol("/predict", _json, _read_json, "JSON numbers")


def headway(model: str) -> dict[str, Protocol]:
    """Return Headway's bodies."""
    path = f"/v2/models/{model}/infer"
    return {
        "binary": Protocol(path, lambda m, w: _oip(m, w, binary=True), _read_oip, "OIP binary"),
        "json": Protocol(path, lambda m, w: _oip(m, w, binary=False), _read_oip, "OIP JSON"),
    }


def headway_rows(model: Case, windows: Windows, names: list[str], outputs: Sequence[str] = ("probabilities",)) -> Body:
    """Return one request whose rows are of many users."""
    users = {"name": "user_id", "shape": [len(names)], "datatype": "BYTES", "data": names}
    tail = windows.tobytes()
    tensor = _tensor(model, len(windows)) | {"parameters": {"binary_data_size": len(tail)}}
    text = json.dumps({"inputs": [users, tensor], "outputs": [{"name": o} for o in outputs]}).encode()
    return Body(text + tail, "", b"", {**OCTETS, "Inference-Header-Content-Length": str(len(text))})


def triton() -> dict[str, Protocol]:
    """Return Triton's bodies."""
    path = "/v2/models/personal/infer"
    return {
        "binary": Protocol(path, lambda m, w: _triton(m, w, binary=True, batched=True), _read_oip, "OIP binary"),
        "json": Protocol(path, lambda m, w: _triton(m, w, binary=False, batched=True), _read_oip, "OIP JSON"),
    }


def mlserver() -> dict[str, Protocol]:
    """Return MLServer's bodies: it reads no binary tensors over REST."""
    path = "/v2/models/personal/infer"
    return {
        "binary": Protocol(path, _mlserver_base64, _read_oip, "base64 in OIP JSON"),
        "json": Protocol(path, lambda m, w: _triton(m, w, binary=False, batched=False), _read_oip, "OIP JSON"),
    }
