"""The data plane under FastAPI: for whoever mounts the application, and for the OpenAPI document.

`headway serve` answers the same requests in `service.http`, before they reach these routes; both hand them to the one
`DataPlane`.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from models.data.views import MOST_VIEWS
from service.call import Call
from service.protocol.body import read_body
from service.protocol.openapi import INFER_BODY, WINDOWS_BODY
from service.state import ModelName, VersionName, services

router = APIRouter(tags=["inference"])


@router.post("/v2/models/{model}/infer", summary="Open Inference Protocol v2 inference", openapi_extra=INFER_BODY)
async def infer(request: Request, model: ModelName) -> Response:
    """Run a batch of windows, each row with the head of its user.

    Parameters: `user_id`, `head_version`, `fallback` (`shared` or `error`), `timeout` (µs), `priority`. A BYTES input
    `user_id` of shape `[rows]` names a user for each row. Of a model with several outputs plain names are the first
    one's tensors and `NAME.value` another's; `task` picks one output.
    """
    return await _answer(request, "infer", model)


@router.post("/v2/models/{model}/versions/{version}/infer", summary="The same on one version", openapi_extra=INFER_BODY)
async def infer_version(request: Request, model: ModelName, version: VersionName) -> Response:
    """Run a batch of windows on the version named."""
    return await _answer(request, "infer", model, version)


@router.post("/v2/models/{model}/predict", summary="Labels and probabilities of windows", openapi_extra=WINDOWS_BODY)
async def predict(
    request: Request,
    model: ModelName,
    user_id: Annotated[str | None, Query(description="whose head answers; without it the shared one")] = None,
    head_version: Annotated[
        int | None, Query(ge=0, lt=2**62, description="answer with this version of the user's head")
    ] = None,
    fallback: Annotated[str, Query(description="for a user without a head: shared, or error (404)")] = "shared",
    timeout: Annotated[int | None, Query(ge=0, lt=2**62, description="µs that the answer is worth waiting for")] = None,
    priority: Annotated[int | None, Query(ge=0, lt=2**62, description="1 is the highest; 0 the usual one")] = None,
    threshold: Annotated[float | None, Query(description="probability below which a row is rejected")] = None,
    coverage: Annotated[float | None, Query(description="of the set of labels that each row gets")] = None,
    feedback: Annotated[bool, Query(description="remember the answer for a correction")] = False,
    tta: Annotated[int, Query(ge=1, le=MOST_VIEWS, description="views of each window whose mean answers")] = 1,
    task: Annotated[str | None, Query(description="output that answers, of a model with several; else all do")] = None,
) -> Response:
    """Predict from `{"inputs": nested array}` or a .npy file; one window or a batch.

    A model with several outputs answers all of them under `outputs`, by name, or the one that `task` names.
    """
    return await _answer(request, "predict", model)


@router.post("/v2/models/{model}/features", summary="Features of windows", openapi_extra=WINDOWS_BODY)
async def features(request: Request, model: ModelName) -> Response:
    """Extract features; as JSON, or as a .npy file by `Accept: application/x-npy`. No head runs."""
    return await _answer(request, "features", model)


async def _answer(request: Request, endpoint: str, model: str, version: str | None = None) -> Response:
    """Hand a request to the data plane and wait for its answer."""
    begin = time.monotonic()
    own = services(request)
    own.models.candidates(model, version)
    body = await read_body(request)
    future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    def reply(status: int, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
        """Take the data plane's answer, unless the client no longer waits."""
        response = Response(content, status)
        response.raw_headers = [(b"content-length", str(len(content)).encode()), *headers]
        if not future.done():
            future.set_result(response)

    state: Any = request.state
    call = Call(
        endpoint,
        model,
        version,
        {n: v for n, v in request.headers.raw if n != b"content-encoding"},
        dict(request.query_params),
        body,
        reply,
        state.request_id,
        begin,
    )
    state.recorded = True  # the data plane counts its own requests
    own.plane.begin(call)
    try:
        return await future
    finally:
        own.plane.cancel(call)
