"""Every failure in one shape: `{"error", "code", "request_id"}`."""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from service.errors import HeadwayError
from service.protocol.body import json_response
from service.verbs import allowed

log = logging.getLogger("headway")


def error_response(
    request: Request, status: int, code: str, message: str, retry_after: float | None = None
) -> Response:
    """Build the one error shape."""
    request_id = getattr(request.state, "request_id", "")
    headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
    if status == HTTPStatus.REQUEST_TIMEOUT:
        headers["Connection"] = "close"  # the rest of the body may still come, and is no next request
    return json_response({"error": message, "code": code, "request_id": request_id}, status, headers)


def install(app: FastAPI) -> None:
    """Make every failure of `app` answer in the one shape, and nothing reach the client as a traceback."""

    @app.exception_handler(HeadwayError)
    async def refused(request: Request, error: HeadwayError) -> Response:
        """Answer as the error says."""
        request.state.error_code = error.code
        return error_response(request, error.status, error.code, error.message, error.retry_after)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        """Name the first field that is wrong."""
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
        return error_response(request, 400, "invalid_request", f"{where or 'the request'}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        """Put into the one shape what routing refuses: unknown paths, wrong verbs."""
        if error.status_code == 404:
            text = f"there is nothing at {request.method} {request.url.path}; /docs lists what there is"
        elif error.status_code == 405:
            text = f"{request.url.path} does not answer {request.method}; it answers {allowed(request.scope)}"
        else:
            text = str(error.detail)
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        response = error_response(request, error.status_code, code, text)
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["Allow"] = allowed(request.scope)  # routing names one route's verbs only
        return response

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        """Log what nobody foresaw; the client is told no more than where to look."""
        request_id = getattr(request.state, "request_id", "")
        log.exception("request %s failed", request_id, exc_info=error)
        return error_response(request, 500, "internal", "an internal error; the log names it under this request_id")
