"""HEAD and OPTIONS on every path, and the verbs that a path answers."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROUTED = ("DELETE", "GET", "PATCH", "POST", "PUT")


class Verbs:
    """Plain ASGI middleware: HEAD answers as GET does without the body; OPTIONS says in `Allow` what a path answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            await self._head(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "OPTIONS" and (allow := allowed(scope)):
            await Response(status_code=204, headers={"Allow": allow})(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what GET would; `Content-Length` stays that of the body which is not sent."""

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        # A copy, for the server tells by the verb whether a body is to come; the route is noted for metrics.
        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive, without_body)
        finally:
            if "route" in inner:
                scope["route"] = inner["route"]


def allowed(scope: Scope) -> str:
    """Return the verbs that a request's path answers, as `Allow` has them; none where there is nothing."""
    routes = scope["app"].routes
    found = [v for v in ROUTED if any(r.matches({**scope, "method": v})[0] is Match.FULL for r in routes)]
    if not found:
        return ""
    return ", ".join(sorted([*found, "OPTIONS", *(["HEAD"] if "GET" in found else [])]))
