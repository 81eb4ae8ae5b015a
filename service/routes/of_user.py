"""What the routes under a user share: the path, numbers of versions, and the store's refusals as answers."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Path

from service.errors import Conflict, Unavailable, UnknownVersion
from service.loaded import LoadedModel
from service.personal.records import NoSuchVersion, StoreError, User, UserChanged
from service.state import Services

USER = "/v2/models/{model}/users/{user}"
LARGEST_VERSION = 2**62
VersionNumber = Annotated[int, Path(ge=1, le=LARGEST_VERSION, description="number of a version")]


@asynccontextmanager
async def changing(own: Services, model: LoadedModel, user: str) -> AsyncIterator[None]:
    """Hold the user against calibrations, and turn the store's refusals into answers."""
    async with own.calibrator.exclusively(model, user):
        try:
            yield
        except NoSuchVersion as e:
            raise UnknownVersion(f"user {user!r}: {e}") from e


@asynccontextmanager
async def reading() -> AsyncIterator[None]:
    """Turn a store that does not answer into a 503, and what another service did in the same moment into a 409."""
    try:
        yield
    except UserChanged as e:
        raise Conflict(str(e)) from e
    except StoreError as e:
        raise Unavailable(str(e), retry_after=2) from e


def pointers(user: User) -> dict[str, Any]:
    """Return which version a user is served, as JSON has it."""
    return {
        "user": user.name,
        "active": user.active or "shared",
        "head": "personal" if user.active else "shared",
        "latest_version": user.last,
        "created": moment(user.created) if user.created else None,
        "updated": moment(user.updated) if user.updated else None,
    }


def moment(seconds: float) -> str:
    """Return Unix seconds in ISO 8601, UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()
