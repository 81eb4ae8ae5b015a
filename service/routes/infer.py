"""The data plane: Open Inference Protocol `infer`, and its friendly twins `predict` and `features`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from numpy.typing import NDArray
from starlette.responses import Response

from models.heads.head import softmax
from service.engine.scheduler import Result
from service.errors import InvalidRequest, Unavailable
from service.personal.records import StoreError
from service.personal.resolve import ResolvedHead
from service.protocol import classification, inputs, oip
from service.protocol.body import answer, json_bytes, read_body
from service.protocol.openapi import INFER_BODY, WINDOWS_BODY
from service.protocol.parameters import FALLBACKS
from service.protocol.tensors import Tensor
from service.registry import LoadedModel
from service.state import ModelName, VersionName, note, services

router = APIRouter(tags=["inference"])

DEFAULT_OUTPUTS = ("probabilities", "label")
OUTPUTS = ("features", "logits", "probabilities", "label", "labels", "head", "head_version")


@router.post("/v2/models/{model}/infer", summary="Open Inference Protocol v2 inference", openapi_extra=INFER_BODY)
async def infer(request: Request, model: ModelName) -> Response:
    """Run a batch of windows, each row with the head of its user.

    Parameters: `user_id`, `head_version`, `fallback` (`shared` or `error`), `timeout` (µs). A BYTES input `user_id`
    of shape `[rows]` names a user for each row.
    """
    return await _infer(request, model, None)


@router.post("/v2/models/{model}/versions/{version}/infer", summary="The same on one version", openapi_extra=INFER_BODY)
async def infer_version(request: Request, model: ModelName, version: VersionName) -> Response:
    """Run a batch of windows on the version named."""
    return await _infer(request, model, version)


async def _infer(request: Request, model: str, version: str | None) -> Response:
    newest = services(request).models.candidates(model, version)[0]
    message = oip.decode(
        await read_body(request), request.headers.get(oip.HEADER_LENGTH), request.query_params,
        newest.bundle.manifest.input,
    )  # fmt: skip
    asked = message.parameters
    names = [o.name for o in message.outputs] if message.outputs else list(DEFAULT_OUTPUTS)
    for name in names:
        if name not in OUTPUTS:
            raise InvalidRequest(f"there is no output {name!r}; the outputs are {', '.join(OUTPUTS)}")
    row_tensor = message.inputs.pop("user_id", None)
    user = asked.user_id
    if user is not None and row_tensor is not None:
        raise InvalidRequest("the user is named twice: by the parameter user_id and by the tensor user_id")
    if len(message.inputs) != 1:
        raise InvalidRequest(f"one input tensor was expected, not {len(message.inputs)}")
    loaded = await _choose(request, model, version, user)
    x = inputs.windows(next(iter(message.inputs.values())), loaded.bundle.manifest.input)
    users: Sequence[str | None]
    users = [user] * len(x) if row_tensor is None else inputs.per_row_users(row_tensor, len(x))
    heads_wanted = any(name != "features" for name in names)
    result, heads = await _run(
        request, loaded, x, users if heads_wanted else None,
        head_version=asked.head_version,
        fallback=asked.fallback,
        timeout=asked.timeout,
    )  # fmt: skip
    per_row = row_tensor is not None
    if per_row and heads_wanted and message.outputs is None:
        names += ["head", "head_version"]
    tensors = _output_tensors(names, loaded, result, heads)
    tensors = [_as_asked(t, message.outputs or (), loaded) for t in tensors]
    binary = {o.name: o.binary for o in message.outputs or ()}
    head: dict[str, Any] = {"model_name": loaded.name, "model_version": str(loaded.version)}
    if message.id:
        head["id"] = message.id
    if heads_wanted and not per_row:
        head["parameters"] = {"head": heads[0].kind, "head_version": heads[0].version}
    encoded = oip.encode(head, [(t, binary.get(t.name, message.binary_output)) for t in tensors])
    return await answer(request, encoded.body, encoded.media_type, encoded.headers)


def _as_asked(tensor: Tensor, outputs: Sequence[oip.RequestedOutput], model: LoadedModel) -> Tensor:
    k = next((o.classification for o in outputs if o.name == tensor.name), 0)
    return classification.top(tensor, model.bundle.manifest.labels, k) if k else tensor


@router.post("/v2/models/{model}/predict", summary="Labels and probabilities of windows", openapi_extra=WINDOWS_BODY)
async def predict(
    request: Request,
    model: ModelName,
    user_id: Annotated[str | None, Query(description="whose head answers; without it the shared one")] = None,
    head_version: Annotated[
        int | None, Query(ge=0, lt=2**62, description="answer with this version of the user's head")
    ] = None,
    fallback: Annotated[str, Query(description="for a user without a head: shared, or error (404)")] = "shared",
) -> Response:
    """Predict from `{"inputs": nested array}` or a .npy file; one window or a batch."""
    _only(request, "user_id", "head_version", "fallback")
    user = None if user_id is None else inputs.user_id(user_id)
    loaded = await _choose(request, model, None, user)
    x = inputs.friendly(await read_body(request), request.headers.get("content-type", ""), loaded.bundle.manifest.input)
    result, heads = await _run(request, loaded, x, [user] * len(x), head_version=head_version, fallback=fallback)
    labels = loaded.bundle.manifest.labels
    assert result.logits is not None
    probabilities = softmax(result.logits)
    rows = [
        {"label": labels[best], "probability": row[best], "probabilities": dict(zip(labels, row, strict=True))}
        for row, best in zip(probabilities.tolist(), probabilities.argmax(1).tolist(), strict=True)
    ]
    content = {"predictions": rows, **_who(loaded), "head": heads[0].kind, "head_version": heads[0].version}
    return await answer(request, json_bytes(content))


@router.post("/v2/models/{model}/features", summary="Features of windows", openapi_extra=WINDOWS_BODY)
async def features(request: Request, model: ModelName) -> Response:
    """Extract features; as JSON, or as a .npy file by `Accept: application/x-npy`. No head runs."""
    _only(request)
    loaded = await _choose(request, model, None, None)
    x = inputs.friendly(await read_body(request), request.headers.get("content-type", ""), loaded.bundle.manifest.input)
    result, _ = await _run(request, loaded, x, None)
    if "application/x-npy" in request.headers.get("accept", ""):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(result.features), allow_pickle=False)
        headers = {"Headway-Model": loaded.name, "Headway-Model-Version": str(loaded.version)}
        return await answer(request, buffer.getvalue(), "application/x-npy", headers)
    return await answer(request, json_bytes({"features": np.ascontiguousarray(result.features), **_who(loaded)}))


def _who(model: LoadedModel) -> dict[str, str]:
    return {"model": model.name, "model_version": str(model.version)}


def _only(request: Request, *known: str) -> None:
    """Refuse misspelt query parameters, which would answer with another head than was meant."""
    unknown = sorted(set(request.query_params) - set(known))
    if unknown:
        names = ", ".join(known) or "none"
        raise InvalidRequest(f"unknown query parameter {unknown[0]!r}; known are: {names}")


async def _choose(request: Request, name: str, version: str | None, user: str | None) -> LoadedModel:
    """Choose the version: the one asked for, else one in which the user has a head, else the newest."""
    own = services(request)
    if own.draining:
        raise Unavailable("the service is draining", retry_after=1)
    candidates = own.models.candidates(name, version)
    chosen = candidates[0]
    if user is not None and len(candidates) > 1:
        try:
            for model in candidates:
                if await own.resolver.has_head(model.scope, user):
                    chosen = model
                    break
        except StoreError as e:
            raise Unavailable(str(e), retry_after=2) from e
    note(request, chosen)
    return chosen


async def _run(
    request: Request,
    model: LoadedModel,
    x: NDArray[np.float32],
    users: Sequence[str | None] | None,
    *,
    head_version: int | None = None,
    fallback: Any = "shared",
    timeout: float | None = None,
) -> tuple[Result, list[ResolvedHead]]:
    """Queue windows with their users' heads (None: features only) and note timings and counts."""
    own = services(request)
    if fallback not in FALLBACKS:
        raise InvalidRequest(f"fallback is {fallback!r}; it can be {' or '.join(FALLBACKS)}")
    if users is None:
        heads: list[ResolvedHead] = []
        result = await model.scheduler.submit(x, None, timeout=timeout)
    else:
        async with own.resolver.heads(model, users, head_version, fallback) as heads:
            slots = np.fromiter((h.slot for h in heads), np.int64, len(heads))
            result = await model.scheduler.submit(x, slots, timeout=timeout)
        personal = sum(h.version > 0 for h in heads)
        for kind, rows in (("personal", personal), ("shared", len(heads) - personal)):
            if rows:
                own.metrics.predictions.labels(model.name, kind).inc(rows)
    own.metrics.queue_duration.labels(model.name).observe(result.queue)
    request.state.timing = (
        f"queue;dur={result.queue * 1e3:.3f}, infer;dur={result.inference * 1e3:.3f}, head;dur={result.heads * 1e3:.3f}"
    )
    return result, heads


def _output_tensors(
    names: Sequence[str], model: LoadedModel, result: Result, heads: Sequence[ResolvedHead]
) -> list[Tensor]:
    labels = np.array([label.encode() for label in model.bundle.manifest.labels], object)
    logits = result.logits
    made = []
    for name in names:
        if name == "features":
            made.append(Tensor(name, "FP32", result.features))
            continue
        assert logits is not None
        if name == "logits":
            made.append(Tensor(name, "FP32", logits))
        elif name == "probabilities":
            made.append(Tensor(name, "FP32", softmax(logits)))
        elif name == "label":
            made.append(Tensor(name, "BYTES", labels[logits.argmax(1)]))
        elif name == "labels":
            made.append(Tensor(name, "BYTES", np.tile(labels, (len(logits), 1))))
        elif name == "head":
            made.append(Tensor(name, "BYTES", np.array([h.kind.encode() for h in heads], object)))
        else:
            made.append(Tensor(name, "INT64", np.array([h.version for h in heads], np.int64)))
    return made
