"""Labelled windows scored on a user's versions; nothing of them is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from models.heads import regression_guard, scores
from models.heads.head import Head, log_loss, softmax
from service.data_plane import DECODED_HERE
from service.errors import InvalidRequest, UnknownVersion
from service.loaded import LoadedModel, shared_of
from service.personal import targets
from service.personal.own_labels import placed
from service.protocol import labelled, oip
from service.protocol.body import json_response, read_body
from service.protocol.labelled import Labelled
from service.protocol.openapi import EVALUATION_BODY
from service.routes.of_user import LARGEST_VERSION, USER, reading
from service.state import OutputOf, Services, UserId, known_user, services
from service.views import features_of

router = APIRouter(tags=["users"])

FIELDS = ("inputs", "labels", "versions", "tta")
REGRESSION_FIELDS = ("inputs", "targets", "versions", "tta")
MOST_VERSIONS = 64


@router.post(f"{USER}/evaluations", summary="Score labelled windows on versions", openapi_extra=EVALUATION_BODY)
async def evaluate(request: Request, model: OutputOf, user: UserId) -> Response:
    """Score the windows on each version named (numbers, `shared`, `active`); nothing is stored."""
    own, user = services(request), known_user(user)
    body = await read_body(request)
    length = request.headers.get(oip.HEADER_LENGTH)
    asked = body, length, model
    slow = model.media.slow or len(body) > DECODED_HERE
    given, wanted = await asyncio.to_thread(_decode, *asked) if slow else _decode(*asked)
    heads = await _heads(own, model, user, wanted)
    features = await features_of(model, given.x, given.tta)
    answer = {"model": model.name, "model_version": str(model.version), "windows": len(given)}
    if given.targets is not None:
        versions = [{"version": v, **score_targets(model, head, features, given.targets)} for v, head in heads]
        return json_response({**answer, "targets": model.targets, "versions": versions})
    async with reading():
        held = (await own.calibrator.data.enrolled(model.scope, user)).own
    y, theirs = placed(given.y, given.own, held, model.prior.known, model.prior.own)
    labels = (*model.labels, *theirs)
    versions = [{"version": v, **score(head, features, y, labels)} for v, head in heads]
    return json_response({**answer, "labels": labels, "versions": versions})


def _decode(body: bytes, length: str | None, model: LoadedModel) -> tuple[Labelled, list[int | str]]:
    manifest = model.bundle.manifest
    message, binary = labelled.message_of(body, length, REGRESSION_FIELDS if manifest.targets else FIELDS)
    versions = message.get("versions", ["shared", "active"])
    if not isinstance(versions, list) or not 0 < len(versions) <= MOST_VERSIONS or not all(map(_names, versions)):
        raise InvalidRequest(f"versions must be a list of 1 to {MOST_VERSIONS} of: numbers, 'shared', 'active'")
    read = labelled.targeted if manifest.targets else labelled.labelled
    return read(message, binary, manifest, model.media.rows), versions


def _names(version: Any) -> bool:
    return version in ("shared", "active") or (type(version) is int and 1 <= version <= LARGEST_VERSION)


async def _heads(own: Services, model: LoadedModel, user: str, wanted: list[int | str]) -> list[tuple[int | str, Head]]:
    """Return each head named once, with its version's number or `shared`.

    Raises:
        UnknownVersion: the user has no such version.
    """
    found: dict[int | str, Head] = {}
    async with reading():
        for version in wanted:
            number: int | str = version
            if version == "active":
                pointers = await own.store.user(model.scope, user)
                number = (pointers.active if pointers else 0) or "shared"
            if number in found:
                continue
            head = shared_of(model.bundle) if isinstance(number, str) else None
            if isinstance(number, int):
                head = await own.store.head(model.scope, user, number)
            if head is None:
                raise UnknownVersion(f"user {user!r} has no version {number} for model {model.name!r}")
            found[number] = head
    return list(found.items())


def score(head: Head, features: NDArray[np.float32], y: NDArray[np.int64], labels: Sequence[str]) -> dict[str, Any]:
    """Score a head on features `(n, d)` with classes `y (n,)`, as JSON has it; fractions are in [0, 1]."""
    logits = head.widened(len(labels)).logits(features)[:, : len(labels)]
    probabilities, said = np.asarray(softmax(logits)), logits.argmax(1)
    table = scores.confusion(said, y, len(labels))
    shown = table.sum(1)
    return {
        "accuracy": round(float((said == y).mean()), 6),
        "macro_f1": round(scores.macro_f1(said, y), 6),
        "log_loss": round(float(log_loss(logits, y).mean()), 6),
        "calibration_error": round(scores.calibration_error(probabilities, y), 6),
        "recall": {
            label: round(float(table[i, i] / shown[i]), 6) if shown[i] else None for i, label in enumerate(labels)
        },
        "confusion": table,
    }


def score_targets(
    model: LoadedModel, head: Head, features: NDArray[np.float32], t: NDArray[np.float64]
) -> dict[str, Any]:
    """Score a head on features `(n, d)` with targets `t (n, T)`, as JSON has it; errors are in the targets' units."""
    found = targets.shown(regression_guard.score(head.logits(features), t, model.bundle.regression), model.targets)
    return {"rmse": found["rmse"], "r2": found["r2"]}
