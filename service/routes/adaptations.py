"""Adapting a user's head to windows without labels."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from service.data_plane import DECODED_HERE
from service.errors import InvalidRequest, Unavailable
from service.loaded import LoadedModel
from service.personal import targets
from service.protocol import adaptation, oip
from service.protocol.body import json_response, read_body
from service.protocol.openapi import ADAPTATION_BODY
from service.routes.samples import check_key
from service.state import ModelOf, Services, TaskName, UserId, known_user, services

router = APIRouter(tags=["users"])


@router.post(
    "/v2/models/{model}/users/{user}/adaptations",
    summary="Adapt a user's head to windows without labels",
    status_code=201,
    openapi_extra=ADAPTATION_BODY,
)
async def adapt(
    request: Request,
    model: ModelOf,
    user: UserId,
    task: TaskName = None,
    idempotency_key: Annotated[
        str | None, Header(description="a repeated call with the same key answers the same")
    ] = None,
) -> Response:
    """Move the calibrated head's class means to the windows, judge by the labelled statistics, store, and serve.

    Of a model with several outputs every one with labels, each by itself, or the one that `task` names.
    """
    own, user = services(request), known_user(user)
    each = bool(model.outputs) and task is None
    if not each:
        model = model.of(task)
        targets.check_adaptable(model)
    elif idempotency_key is not None:
        raise InvalidRequest(f"an Idempotency-Key is of one output: name it by task, one of {_names(model)}")
    if own.draining:
        raise Unavailable("the service is draining", retry_after=1)
    check_key(idempotency_key)
    body = await read_body(request)
    asked = body, request.headers.get(oip.HEADER_LENGTH), model.bundle.manifest, model.media.rows
    large = model.media.slow or len(body) > DECODED_HERE
    decoded = await asyncio.to_thread(adaptation.decode, *asked) if large else adaptation.decode(*asked)
    if each:
        found = await own.adapter.run_each(model, user, decoded)
        for name, said in found.items():
            if said["outcome"] != "refused":
                _count(own, model, name, said)
        return json_response({"model": model.name, "model_version": str(model.version), "outputs": found}, 201)
    report, again = await own.adapter.run(model, user, decoded, idempotency_key)
    if not again:
        _count(own, model, model.output, report)
    return json_response(report, 201, {"Idempotent-Replay": "true"} if again else {})


def _count(own: Services, model: LoadedModel, task: str, report: dict[str, Any]) -> None:
    own.metrics.adaptations.labels(model.name, task, report["outcome"]).inc()


def _names(model: LoadedModel) -> str:
    return ", ".join(output.output for output in model.outputs)
