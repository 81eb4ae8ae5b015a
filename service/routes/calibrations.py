"""The one call: labelled windows in, a guarded personal head served in the next request."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from service.data_plane import DECODED_HERE
from service.errors import Unavailable
from service.protocol import calibration, oip
from service.protocol.body import json_response, read_body
from service.protocol.openapi import CALIBRATION_BODY
from service.routes.samples import check_key
from service.state import OutputOf, UserId, known_user, services

router = APIRouter(tags=["users"])


@router.post(
    "/v2/models/{model}/users/{user}/calibrations",
    summary="Calibrate a user's head from labelled windows",
    status_code=201,
    openapi_extra=CALIBRATION_BODY,
)
async def calibrate(
    request: Request,
    model: OutputOf,
    user: UserId,
    idempotency_key: Annotated[
        str | None, Header(description="a repeated call with the same key answers the same")
    ] = None,
) -> Response:
    """Fit on the windows (and, in mode `update`, those of earlier calls), judge, store, and serve if it is better."""
    own, user = services(request), known_user(user)
    if own.draining:
        raise Unavailable("the service is draining", retry_after=1)
    check_key(idempotency_key)
    body = await read_body(request)
    asked = body, request.headers.get(oip.HEADER_LENGTH), model.bundle.manifest, model.media.rows
    # A large one on a thread even where it is binary: its digest is over every byte.
    large = model.media.slow or len(body) > DECODED_HERE
    decoded = await asyncio.to_thread(calibration.decode, *asked) if large else calibration.decode(*asked)
    report, again = await own.calibrator.run(model, user, decoded, idempotency_key)
    headers = {"Idempotent-Replay": "true"} if again else {}
    if not again:
        own.metrics.calibrations.labels(model.name, model.output, report["outcome"]).inc()
        for stage, milliseconds in report["timings_ms"].items():
            own.metrics.calibration_duration.labels(stage).observe(milliseconds / 1e3)
    return json_response(report, 201, headers)
