"""Who asks for what is done just now, for the audit trail."""

from __future__ import annotations

from contextvars import ContextVar

ANONYMOUS = "anonymous"

acting: ContextVar[str] = ContextVar("acting", default=ANONYMOUS)
"""The name of the request's key; what the request changes is recorded under it."""
