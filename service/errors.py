"""The error tree: one shape for every refusal.

```
HeadwayError                  500 internal
├── InvalidRequest            400 invalid_request
├── Unauthorized              401 unauthorized          + WWW-Authenticate
├── Forbidden                 403 forbidden
├── NotFound                  404 not_found
│   ├── UnknownModel              unknown_model
│   ├── UnknownUser               unknown_user
│   └── UnknownVersion            unknown_version
├── BodyTimeout               408 body_timeout
├── Conflict                  409 conflict
├── BodyTooLarge              413 body_too_large
├── UnsupportedMediaType      415 unsupported_media_type
├── Unprocessable             422 unprocessable
├── TooManyRequests           429 queue_full            + Retry-After
├── Unavailable               503 unavailable           + Retry-After
└── DeadlineExceeded          504 deadline_exceeded
```
"""

from __future__ import annotations

import orjson


class HeadwayError(Exception):
    """Something failed here; of its subclasses, the message says what was wrong and what would be right."""

    status = 500
    code = "internal"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class InvalidRequest(HeadwayError):
    """Malformed, or of the wrong shape or datatype."""

    status, code = 400, "invalid_request"


class Unauthorized(HeadwayError):
    """No key, or one that is not known."""

    status, code = 401, "unauthorized"


class Forbidden(HeadwayError):
    """The key is for another plane."""

    status, code = 403, "forbidden"


class NotFound(HeadwayError):
    """Nothing of that name."""

    status, code = 404, "not_found"


class UnknownModel(NotFound):
    """No such model or model version."""

    code = "unknown_model"


class UnknownUser(NotFound):
    """No such user, or no head of theirs where one was demanded."""

    code = "unknown_user"


class UnknownVersion(NotFound):
    """No such version of a user's head."""

    code = "unknown_version"


class BodyTimeout(HeadwayError):
    """The body stopped arriving, or arrived too slowly; the connection is closed."""

    status, code = 408, "body_timeout"


class Conflict(HeadwayError):
    """The resource is in a state that forbids this."""

    status, code = 409, "conflict"


class BodyTooLarge(HeadwayError):
    """The body is over the limit."""

    status, code = 413, "body_too_large"


class UnsupportedMediaType(HeadwayError):
    """The model does not read this media type, or nobody here this content encoding."""

    status, code = 415, "unsupported_media_type"


class Unprocessable(HeadwayError):
    """Well-formed but unusable."""

    status, code = 422, "unprocessable"


class TooManyRequests(HeadwayError):
    """The queue is full."""

    status, code = 429, "queue_full"


class Unavailable(HeadwayError):
    """Not ready, draining, or the store is out of reach."""

    status, code = 503, "unavailable"


class DeadlineExceeded(HeadwayError):
    """The request's own timeout passed before the forward."""

    status, code = 504, "deadline_exceeded"


def error_body(error: Exception, request_id: str) -> tuple[int, str, list[tuple[bytes, bytes]], bytes]:
    """Return status, code, headers and body of an error in the one shape; what is not a `HeadwayError` stays unsaid."""
    if not isinstance(error, HeadwayError):
        error = HeadwayError("an internal error; the log names it under this request_id")
    headers = []
    if error.retry_after is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="headway"'))
    content = {"error": error.message, "code": error.code, "request_id": request_id}
    return error.status, error.code, headers, orjson.dumps(content)
