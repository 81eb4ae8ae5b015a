"""Adapting a user's head to windows without labels."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from service.data_plane import DECODED_HERE
from service.errors import Unavailable
from service.protocol import adaptation, oip
from service.protocol.body import json_response, read_body
from service.protocol.openapi import ADAPTATION_BODY
from service.routes.samples import check_key
from service.state import ClassifierOf, UserId, known_user, services

router = APIRouter(tags=["users"])


@router.post(
    "/v2/models/{model}/users/{user}/adaptations",
    summary="Adapt a user's head to windows without labels",
    status_code=201,
    openapi_extra=ADAPTATION_BODY,
)
async def adapt(
    request: Request,
    model: ClassifierOf,
    user: UserId,
    idempotency_key: Annotated[
        str | None, Header(description="a repeated call with the same key answers the same")
    ] = None,
) -> Response:
    """Move the calibrated head's class means to the windows, judge by the labelled statistics, store, and serve."""
    own, user = services(request), known_user(user)
    if own.draining:
        raise Unavailable("the service is draining", retry_after=1)
    check_key(idempotency_key)
    body = await read_body(request)
    asked = body, request.headers.get(oip.HEADER_LENGTH), model.bundle.manifest, model.media.rows
    large = model.media.slow or len(body) > DECODED_HERE
    decoded = await asyncio.to_thread(adaptation.decode, *asked) if large else adaptation.decode(*asked)
    report, again = await own.adapter.run(model, user, decoded, idempotency_key)
    if not again:
        own.metrics.adaptations.labels(model.name, report["outcome"]).inc()
    return json_response(report, 201, {"Idempotent-Replay": "true"} if again else {})
