"""Which plane a path is of, and the refusal of requests without a key of it."""

from __future__ import annotations

import re
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import HeadwayError, error_body
from service.keys import Keyring
from service.observability import request_id_of
from service.personal.acting import acting

_OPEN = re.compile(r"/v2/health/(live|ready)|/openapi\.json|/docs(/oauth2-redirect)?|/redoc")
_DATA = re.compile(
    r"/v2|/v2/models(/stats)?|/v2/models/[^/]+(/versions/[^/]+)?(/(ready|config|stats|infer))?"
    r"|/v2/models/[^/]+/(predict|features)"
)


def plane_of(path: str) -> str | None:
    """Return the plane that a path belongs to, None for what is open to all; what is not known is control."""
    if _OPEN.fullmatch(path):
        return None
    if path == "/metrics":
        return "metrics"
    return "data" if _DATA.fullmatch(path.rstrip("/")) else "control"


class Gate:
    """Plain ASGI middleware: refuses what has no key of its plane before anything of the body is read.

    Behind `RequestScope`, which counts what is refused and gives ids; elsewhere `refused` is told the error's code.
    """

    def __init__(self, app: ASGIApp, keys: Keyring, refused: Callable[[str], None] | None = None) -> None:
        self._app, self._keys, self._refused = app, keys, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        plane = plane_of(scope["path"]) if scope["type"] == "http" else None
        if plane is None:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        state = scope.setdefault("state", {})
        try:
            state["key"] = self._keys.check(headers.get(b"authorization"), plane)
        except HeadwayError as e:
            state["error_code"] = e.code
            request_id = state.get("request_id")
            own_id = {} if request_id else {"x-request-id": request_id_of(headers.get(b"x-request-id"))}
            status, code, extra, body = error_body(e, request_id or own_id["x-request-id"])
            if self._refused is not None:
                self._refused(code)
            answer = Response(body, status, own_id | {k.decode(): v.decode() for k, v in extra}, "application/json")
            if scope["method"] == "HEAD":
                answer.body = b""
            await answer(scope, receive, send)
            return
        token = acting.set(state["key"])
        try:
            await self._app(scope, receive, send)
        finally:
            acting.reset(token)
