"""Results as clients read them: tensors by name, predictions by label, features."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from service.engine.jobs import Result
from service.errors import InvalidRequest
from service.loaded import LoadedModel
from service.personal.resolved import ResolvedHead
from service.protocol import classification, oip
from service.protocol.tensors import Tensor

DEFAULT_OUTPUTS = (oip.RequestedOutput("probabilities", False), oip.RequestedOutput("label", False))
PER_ROW_OUTPUTS = (oip.RequestedOutput("head", False), oip.RequestedOutput("head_version", False))
OUTPUTS = ("features", "logits", "probabilities", "label", "labels", "head", "head_version")
JSON, BINARY, NPY = b"application/json", b"application/octet-stream", b"application/x-npy"

Headers = list[tuple[bytes, bytes]]
Heads = Sequence[ResolvedHead]


def wanted(message: oip.InferRequest, per_row: bool) -> tuple[oip.RequestedOutput, ...]:
    """Return the outputs of a request: those it asks for, or the usual ones.

    Raises:
        InvalidRequest: there is no such output.
    """
    if message.outputs is None:
        usual = DEFAULT_OUTPUTS + PER_ROW_OUTPUTS if per_row else DEFAULT_OUTPUTS
        return tuple(o._replace(binary=True) for o in usual) if message.binary_output else usual
    for output in message.outputs:
        if output.name not in OUTPUTS:
            raise InvalidRequest(f"there is no output {output.name[:64]!r}; the outputs are {', '.join(OUTPUTS)}")
    return message.outputs


def inference(
    request_id: str,
    outputs: Sequence[oip.RequestedOutput],
    per_row: bool,
    model: LoadedModel,
    result: Result,
    heads: Heads,
) -> tuple[Headers, bytes]:
    """Answer `infer`."""
    answer: dict[str, Any] = {"model_name": model.name, "model_version": str(model.version)}
    if request_id:
        answer["id"] = request_id
    if heads and not per_row:
        answer["parameters"] = {"head": heads[0].kind, "head_version": heads[0].version}
    made = []
    for name, binary, top in outputs:
        tensor = _output(name, model, result, heads)
        made.append((classification.top(tensor, model.bundle.manifest.labels, top) if top else tensor, binary))
    body, length = oip.encode(answer, made)
    if length is None:
        return [(b"content-type", JSON)], body
    return [(b"content-type", BINARY), (b"inference-header-content-length", b"%d" % length)], body


def _output(name: str, model: LoadedModel, result: Result, heads: Heads) -> Tensor:
    if name == "features":
        return Tensor(name, "FP32", result.features)
    assert result.scores is not None
    k = len(model.label_bytes)
    logits = result.scores[:, :k]
    if name == "probabilities":
        return Tensor(name, "FP32", result.scores[:, k:])
    if name == "label":
        return Tensor(name, "BYTES", model.label_bytes[logits.argmax(1)])
    if name == "logits":
        return Tensor(name, "FP32", logits)
    if name == "labels":
        return Tensor(name, "BYTES", np.tile(model.label_bytes, (len(logits), 1)))
    if name == "head":
        return Tensor(name, "BYTES", np.array([h.kind.encode() for h in heads], object))
    return Tensor(name, "INT64", np.array([h.version for h in heads], np.int64))


def predictions(model: LoadedModel, result: Result, heads: Heads) -> tuple[Headers, bytes]:
    """Answer `predict`."""
    labels = model.bundle.manifest.labels
    assert result.scores is not None
    probabilities = result.scores[:, len(labels) :]
    rows = [
        {"label": labels[best], "probability": row[best], "probabilities": dict(zip(labels, row, strict=True))}
        for row, best in zip(probabilities.tolist(), probabilities.argmax(1).tolist(), strict=True)
    ]
    answer = {"predictions": rows, **_who(model), "head": heads[0].kind, "head_version": heads[0].version}
    return [(b"content-type", JSON)], orjson.dumps(answer)


def features(npy: bool, model: LoadedModel, result: Result) -> tuple[Headers, bytes]:
    """Answer `features`, as JSON or as a .npy file."""
    rows = np.ascontiguousarray(result.features)
    if not npy:
        body = orjson.dumps({"features": rows, **_who(model)}, option=orjson.OPT_SERIALIZE_NUMPY)
        return [(b"content-type", JSON)], body
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, rows, allow_pickle=False)
    who = [(b"headway-model", model.name.encode()), (b"headway-model-version", b"%d" % model.version)]
    return [(b"content-type", NPY), *who], buffer.getvalue()


def _who(model: LoadedModel) -> dict[str, str]:
    return {"model": model.name, "model_version": str(model.version)}
