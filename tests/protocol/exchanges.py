"""Golden exchanges: HTTP requests and answers as stored bytes.

`python -m tests.protocol.exchanges` sends the requests below to the tiny model and writes what was sent and answered.
Do so when an answer changes on purpose, and read the difference: clients will see it.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import httpx
import numpy as np
import orjson

from service.app import create_app
from service.config import Settings
from service.protocol import compression
from tests.tiny import write_tiny_bundle

GOLDEN = Path(__file__).resolve().parent / "golden"
INFER = "/v2/models/tiny/infer"
LENGTH = "Inference-Header-Content-Length"
# Whole numbers: features and logits are exact on every machine. The first window is equally near to all classes.
X = np.array([[[1, 1, 1, 1], [1, 1, 1, 1]], [[2, 2, 2, 2], [0, 0, 0, 0]]], np.float32)
KEPT = ("content-type", "content-encoding", "inference-header-content-length", "retry-after", "vary")


def tensor(x=X, datatype="FP32", name="input", **more):
    """Describe a JSON tensor."""
    return {"name": name, "datatype": datatype, "shape": list(x.shape), "data": x.reshape(-1).tolist(), **more}


def binary(*tensors, **more):
    """Lay out a request with binary tensors: (name, datatype, shape, bytes)."""
    described = [
        {"name": n, "datatype": d, "shape": s, "parameters": {"binary_data_size": len(b)}} for n, d, s, b in tensors
    ]
    text = orjson.dumps({"inputs": described, **more})
    return INFER, {LENGTH: str(len(text))}, text + b"".join(b for *_, b in tensors)


def plain(path=INFER, **fields):
    """Lay out a JSON request."""
    return path, {"Content-Type": "application/json"}, orjson.dumps(fields)


def outputs(*names, **parameters):
    """Ask for outputs."""
    return [{"name": name, **({"parameters": parameters} if parameters else {})} for name in names]


def requests() -> dict[str, tuple[str, dict[str, str], bytes]]:
    """Every exchange: path and query, headers, body."""
    users = b"".join(len(u).to_bytes(4, "little") + u for u in (b"ana", "bö".encode()))
    window = ("input", "FP32", [2, 2, 4], X.tobytes())
    named = tensor(np.array(["ana", "bö"]), "BYTES", "user_id")
    who = outputs("head", "head_version")
    binary_who = outputs("head", "head_version", binary_data=True)
    path, headers, body = binary(window, outputs=outputs("logits", "label"))
    gzip, deflate = (
        (path, {**headers, "Content-Encoding": c}, compression.compress(body, c)) for c in ("gzip", "deflate")
    )
    return {
        "json": plain(id="7", inputs=[tensor()], outputs=outputs("features", "logits", "label", "labels")),
        "json-nested": plain(inputs=[tensor() | {"data": X.tolist()}], outputs=outputs("logits")),
        "json-defaults": plain(inputs=[tensor(X[:1])], parameters={"user_id": "ana", "priority": 1}),
        "json-bytes": plain(inputs=[tensor(), named], outputs=who),
        "json-int64": plain(inputs=[tensor(X.astype(int), "INT64")], outputs=outputs("logits")),
        "json-classification": plain(inputs=[tensor()], outputs=outputs("logits", classification=2)),
        "json-threshold": plain(
            inputs=[tensor()], parameters={"threshold": 1}, outputs=outputs("label", "rejected", "logits")
        ),
        "binary": binary(window, outputs=outputs("features", "label", binary_data=True)),
        "binary-defaults": binary(window, parameters={"binary_data_output": True}, outputs=outputs("logits", "head")),
        "binary-in-json-out": binary(window, outputs=outputs("logits", "label")),
        "binary-bytes": binary(("user_id", "BYTES", [2], users), window, outputs=binary_who),
        "binary-fp64": binary(("input", "FP64", [2, 2, 4], X.astype("<f8").tobytes()), outputs=outputs("logits")),
        "binary-classification": binary(window, outputs=outputs("probabilities", classification=9, binary_data=True)),
        "raw": (f"{INFER}?user_id=ana&head_version=0&timeout=5000000", {LENGTH: "0"}, X[:1].tobytes()),
        "raw-json-out": (f"{INFER}?binary_data_output=false", {LENGTH: "0"}, X[:1].tobytes()),
        "gzip": gzip,
        "deflate": deflate,
        "error-bool": plain(inputs=[tensor(X > 0, "BOOL")]),
        "error-shape": plain(inputs=[tensor(X[0])]),
        "error-nan": binary(("input", "FP32", [2, 2, 4], np.where(X > 1, np.nan, X).astype("<f4").tobytes())),
        "error-inexact": plain(inputs=[tensor(np.array([[[2**24 + 1] * 4] * 2]), "INT32")]),
        "error-parameter": plain(inputs=[tensor()], parameters={"priority": -1}),
        "error-classification": plain(inputs=[tensor()], outputs=outputs("label", classification=1)),
        "error-coverage": plain(inputs=[tensor()], parameters={"coverage": 0.9}),
        "error-raw-length": (INFER, {LENGTH: "0"}, b"\0" * 33),
        "error-raw-query": (f"{INFER}?user=ana", {LENGTH: "0"}, X.tobytes()),
        "error-query": plain(f"{INFER}?user_id=ana", inputs=[tensor()]),
        "error-encoding": (INFER, {"Content-Encoding": "br"}, b"x"),
        "error-not-gzip": (INFER, {"Content-Encoding": "gzip"}, b"{}"),
        "error-model": plain("/v2/models/none/infer", inputs=[tensor()]),
    }  # fmt: skip


def written(first: str, headers: dict[str, str], body: bytes) -> bytes:
    """Write one message as it goes over the wire, less the headers that say nothing here."""
    return "\r\n".join([first, *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode() + body


def parsed(message: bytes) -> tuple[str, dict[str, str], bytes]:
    """Read what `written` wrote."""
    head, _, body = message.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return first, dict(line.split(": ", 1) for line in lines), body


async def answered(client: httpx.AsyncClient, request: bytes) -> bytes:
    """Send a stored request and write down the answer."""
    first, headers, body = parsed(request)
    verb, target = first.split(" ")
    async with client.stream(
        verb, target, content=body, headers={**headers, "Accept-Encoding": "identity"}
    ) as response:
        answer = b"".join([chunk async for chunk in response.aiter_raw()])
    kept = {name: response.headers[name] for name in KEPT if name in response.headers}
    return written(str(response.status_code), kept, answer)


async def _write(models: Path) -> None:
    settings = Settings(models=models, store=f"sqlite+aiosqlite:///{models.parent}/headway.db")
    app = create_app(settings)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        for name, (path, headers, body) in requests().items():
            request = written(f"POST {path}", {**headers, "X-Request-Id": "golden"}, body)
            (GOLDEN / f"{name}.request").write_bytes(request)
            (GOLDEN / f"{name}.response").write_bytes(await answered(client, request))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").mkdir()
        write_tiny_bundle(Path(folder) / "models")
        asyncio.run(_write(Path(folder) / "models"))
