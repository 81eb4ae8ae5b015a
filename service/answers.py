"""Results as clients read them: tensors by name, predictions by label, features."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from service.confidence import Decided, decide
from service.engine.jobs import Result
from service.errors import InvalidRequest
from service.loaded import LoadedModel
from service.personal.resolved import ResolvedHead
from service.protocol import classification, oip
from service.protocol.parameters import Parameters
from service.protocol.tensors import Tensor

DEFAULT_OUTPUTS = (oip.RequestedOutput("probabilities", False), oip.RequestedOutput("label", False))
PER_ROW_OUTPUTS = tuple(oip.RequestedOutput(name, False) for name in ("head", "head_version", "model_version"))
DECIDED_OUTPUTS = {"rejected": "threshold", "set": "coverage"}
"""Outputs that need a parameter, by name; they are usual ones where it is given."""
PER_ROW = tuple(o.name for o in PER_ROW_OUTPUTS)
OUTPUTS = ("features", "logits", "probabilities", "label", "labels", *PER_ROW, *DECIDED_OUTPUTS)
VALUE = "value"
NUMERIC_OUTPUTS = frozenset((*OUTPUTS[:3], VALUE))
"""Outputs whose bytes are as many for every answer with so many rows."""
ANSWERS_KEPT = 256
JSON, BINARY, NPY = b"application/json", b"application/octet-stream", b"application/x-npy"

Headers = list[tuple[bytes, bytes]]
Heads = Sequence[ResolvedHead]


class Offer(NamedTuple):
    """What models of a task answer.

    Attributes:
        usual: outputs of an `infer` that asks for none.
        outputs: names of all that can be asked for.
        decides: whether rows can be rejected, get sets of labels and be corrected (`Parameters.decides`).
        predicted: what `predict` says: rows, and who answered them.
        of: what each output offers, where a model has several, the first one first.
    """

    usual: tuple[oip.RequestedOutput, ...]
    outputs: tuple[str, ...]
    decides: bool
    predicted: Callable[[Parameters | None, LoadedModel, Result, Heads], dict[str, Any]]
    of: Mapping[str, Offer] = MappingProxyType({})

    def predictions(
        self, asked: Parameters | None, model: LoadedModel, result: Result, heads: Heads
    ) -> tuple[Headers, bytes]:
        """Answer `predict`; `asked` as of `inference`."""
        return [(b"content-type", JSON)], orjson.dumps(self.predicted(asked, model, result, heads))

    def decided(self, asked: Parameters) -> Parameters:
        """Return the parameters of a request that wants more than labels (`Parameters.decides`).

        Raises:
            InvalidRequest: there are no labels.
        """
        if not self.decides:
            raise InvalidRequest(
                "this model is a regression: it has no labels to reject, to make sets of or to correct, so threshold, "
                "coverage and feedback are not offered; user_id, head_version, fallback, timeout, priority and tta are"
            )
        return asked


def wanted(message: oip.InferRequest, per_row: bool, offer: Offer) -> tuple[oip.RequestedOutput, ...]:
    """Return the outputs of a request: those it asks for, or the usual ones.

    Raises:
        InvalidRequest: there is no such output.
    """
    if message.outputs is None:
        usual: tuple[oip.RequestedOutput, ...] = offer.usual + PER_ROW_OUTPUTS if per_row else offer.usual
        if message.parameters.decides:
            given = (name for name, needed in DECIDED_OUTPUTS.items() if _given(message, needed))
            usual += tuple(oip.RequestedOutput(name, False) for name in given)
        return tuple(o._replace(binary=True) for o in usual) if message.binary_output else usual
    for output in message.outputs:
        if output.name not in offer.outputs:
            raise InvalidRequest(f"there is no output {output.name[:64]!r}; the outputs are {', '.join(offer.outputs)}")
        needed = DECIDED_OUTPUTS.get(output.name.rpartition(".")[2])
        if needed is not None and not _given(message, needed):
            raise InvalidRequest(f"the output {output.name!r} needs the parameter {needed!r}")
    return message.outputs


def _given(message: oip.InferRequest, parameter: str) -> bool:
    return getattr(message.parameters, parameter) is not None


def inference(
    request_id: str,
    outputs: tuple[oip.RequestedOutput, ...],
    per_row: bool,
    asked: Parameters | None,
    model: LoadedModel,
    result: Result,
    heads: Heads,
) -> tuple[Headers, bytes]:
    """Answer `infer`; `asked` where the answer is to decide more than labels (`Parameters.decides`)."""
    if asked is not None:
        return _decided(request_id, outputs, per_row, asked, model, result, heads)
    # Of the same request for other data only the data changes, if all of it is numbers behind the JSON.
    columns = _columns(model, heads)
    version = heads[0].version if heads else None
    key = (request_id, outputs, per_row, len(result.features), version, columns, result.advised)
    text = model.answers_begun.get(key)
    if text is not None:
        return _binary(text, [_numbers(o.name, model, result, columns) for o in outputs])
    answer = _begun(request_id, per_row, model, result, heads)
    made = []
    for name, binary, top in outputs:
        tensor = _output(name, model, result, heads)
        made.append((classification.top(tensor, _named(model, heads), top) if top else tensor, binary))
    body, length = oip.encode(answer, made)
    if length is None:
        return [(b"content-type", JSON)], body
    if not request_id and all(o.binary and not o.classification and o.name in NUMERIC_OUTPUTS for o in outputs):
        if len(model.answers_begun) >= ANSWERS_KEPT:
            model.answers_begun.clear()
        model.answers_begun[key] = body[:length]
    return _binary(body[:length], [body[length:]])


def _begun(request_id: str, per_row: bool, model: LoadedModel, result: Result, heads: Heads) -> dict[str, Any]:
    answer: dict[str, Any] = {"model_name": model.name, "model_version": str(model.version)}
    if request_id:
        answer["id"] = request_id
    if heads and not per_row:
        answer["parameters"] = {"head": heads[0].kind, "head_version": heads[0].version}
        if result.advised:
            answer["parameters"]["recalibration_advised"] = True
    return answer


def _decided(
    request_id: str,
    outputs: tuple[oip.RequestedOutput, ...],
    per_row: bool,
    asked: Parameters,
    model: LoadedModel,
    result: Result,
    heads: Heads,
) -> tuple[Headers, bytes]:
    """Answer `infer` with rows rejected, sets of labels, or a prediction that can be corrected."""
    answer = _begun(request_id, per_row, model, result, heads)
    made, said = tensors(outputs, asked, model, result, heads)
    if said:
        answer["parameters"] = {**answer.get("parameters", {}), **said}
    return encoded(answer, made)


def tensors(
    outputs: Sequence[oip.RequestedOutput], asked: Parameters | None, model: LoadedModel, result: Result, heads: Heads
) -> tuple[list[tuple[Tensor, bool]], dict[str, Any]]:
    """Make the outputs of `infer`, each with whether it is binary, and what is said of all rows together."""
    decided = Decided(None, None, None)
    if asked is not None and result.scores is not None:
        decided = decide(asked, model, result, heads, _columns(model, heads))
    made = []
    for name, binary, top in outputs:
        if name in DECIDED_OUTPUTS:
            data = decided.rejected if name == "rejected" else decided.sets
            assert data is not None
            tensor = Tensor(name, "BOOL", data)
        else:
            tensor = _output(name, model, result, heads)
        if name == "label" and decided.rejected is not None:
            tensor = Tensor(name, "BYTES", np.where(decided.rejected, b"", tensor.data).astype(object))
        made.append((classification.top(tensor, _named(model, heads), top) if top else tensor, binary))
    return made, _said(decided, result)


def encoded(answer: dict[str, Any], made: Sequence[tuple[Tensor, bool]]) -> tuple[Headers, bytes]:
    """Encode an answer and its outputs."""
    body, length = oip.encode(answer, made)
    if length is None:
        return [(b"content-type", JSON)], body
    return _binary(body[:length], [body[length:]])


def timing(results: Sequence[Result], total: float) -> tuple[bytes, bytes]:
    """Return the header that says what an answer's rows took, of those in several versions the longest; in seconds."""
    longest = [1e3 * max(each) for each in zip(*((r.queue, r.inference, r.heads) for r in results), strict=True)]
    text = b"queue;dur=%.3f, infer;dur=%.3f, head;dur=%.3f, total;dur=%.3f"
    return b"server-timing", text % (*longest, total * 1e3)


def _said(decided: Decided, result: Result) -> dict[str, Any]:
    """What is said of all rows together."""
    said: dict[str, Any] = {}
    if decided.rejected is not None:
        said["rejected"] = int(decided.rejected.sum())
    if decided.calibrated_on is not None:
        said["coverage_calibrated_on"] = decided.calibrated_on
    if result.prediction_id is not None:
        said["prediction_id"] = result.prediction_id
    return said


def _binary(text: bytes, data: Sequence[Any]) -> tuple[Headers, bytes]:
    headers = [(b"content-type", BINARY), (b"inference-header-content-length", b"%d" % len(text))]
    return headers, b"".join((text, *data))


def _columns(model: LoadedModel, heads: Heads) -> int:
    """Columns of an answer's scores: the bundle's labels, and as many more as the user with the most has added."""
    k = len(model.label_bytes)
    return k if model.columns == k else k + max((len(h.own) for h in heads), default=0)


def _named(model: LoadedModel, heads: Heads) -> list[Sequence[str]]:
    """Names of each row's columns."""
    return [(*model.labels, *h.own) for h in heads]


def _names(model: LoadedModel, heads: Heads, columns: int) -> NDArray[Any]:
    """Names of each row's columns as BYTES `(n, columns)`; empty where a row has fewer labels than another."""
    names = np.tile(model.label_bytes, (len(heads), 1))
    k = names.shape[1]
    if columns == k:
        return names
    more = np.full((len(heads), columns - k), b"", object)
    for row, head in zip(more, heads, strict=True):
        row[: len(head.own)] = [name.encode() for name in head.own]
    return np.concatenate([names, more], 1)


def _numbers(name: str, model: LoadedModel, result: Result, columns: int) -> NDArray[np.float32]:
    """Return the data of one of `NUMERIC_OUTPUTS`, as bytes lie in memory."""
    if name == "features":
        return np.ascontiguousarray(result.features)
    assert result.scores is not None
    begin = model.columns if name == "probabilities" else 0
    return np.ascontiguousarray(result.scores[:, begin : begin + columns])


def _output(name: str, model: LoadedModel, result: Result, heads: Heads) -> Tensor:
    if name == "features":
        return Tensor(name, "FP32", result.features)
    assert result.scores is not None
    columns = _columns(model, heads)
    logits = result.scores[:, :columns]
    if name == "probabilities":
        return Tensor(name, "FP32", result.scores[:, model.columns : model.columns + columns])
    if name == "label":
        best = logits.argmax(1)
        if columns == len(model.label_bytes):
            return Tensor(name, "BYTES", model.label_bytes[best])
        return Tensor(name, "BYTES", _names(model, heads, columns)[np.arange(len(best)), best])
    if name in ("logits", VALUE):
        return Tensor(name, "FP32", logits)
    if name == "labels":
        return Tensor(name, "BYTES", _names(model, heads, columns))
    if name == "head":
        return Tensor(name, "BYTES", np.array([h.kind.encode() for h in heads], object))
    if name == "model_version":
        return Tensor(name, "INT64", np.full(len(heads), model.version, np.int64))
    return Tensor(name, "INT64", np.array([h.version for h in heads], np.int64))


def predictions(asked: Parameters | None, model: LoadedModel, result: Result, heads: Heads) -> dict[str, Any]:
    """Say labels and probabilities; `asked` as of `inference`."""
    labels = (*model.labels, *heads[0].own)  # all rows are of one user
    assert result.scores is not None
    probabilities = result.scores[:, model.columns : model.columns + len(labels)]
    rows = [
        {"label": labels[best], "probability": row[best], "probabilities": dict(zip(labels, row, strict=True))}
        for row, best in zip(probabilities.tolist(), probabilities.argmax(1).tolist(), strict=True)
    ]
    answer = {"predictions": rows, **_who(model), "head": heads[0].kind, "head_version": heads[0].version}
    if result.advised:
        answer["recalibration_advised"] = True
    if asked is not None:
        decided = decide(asked, model, result, heads, len(labels))
        _decide_rows(rows, decided, probabilities, labels)
        answer |= _said(decided, result)
    return answer


def values(asked: Parameters | None, model: LoadedModel, result: Result, heads: Heads) -> dict[str, Any]:
    """Say the values of a regression by the targets' names."""
    assert result.scores is not None
    said = result.scores[:, : model.columns].tolist()
    rows = [{"values": dict(zip(model.targets, row, strict=True))} for row in said]
    return {"predictions": rows, **_who(model), "head": heads[0].kind, "head_version": heads[0].version}


def _decide_rows(
    rows: list[dict[str, Any]], decided: Decided, probabilities: NDArray[np.float32], labels: Sequence[str]
) -> None:
    """Take the labels of rejected rows away, and add sets of labels, the likeliest first."""
    if decided.rejected is not None:
        for row, rejected in zip(rows, decided.rejected.tolist(), strict=True):
            row["rejected"] = rejected
            if rejected:
                row["label"] = None
    if decided.sets is not None:
        order = np.argsort(-probabilities, axis=1, kind="stable").tolist()
        for row, inside, ranked in zip(rows, decided.sets.tolist(), order, strict=True):
            row["set"] = [labels[c] for c in ranked if inside[c]]


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


OFFERS = {
    "classification": Offer(DEFAULT_OUTPUTS, OUTPUTS, True, predictions),
    "regression": Offer((oip.RequestedOutput(VALUE, False),), ("features", VALUE, *PER_ROW), False, values),
}
"""By task."""
