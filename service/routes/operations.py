"""Long work on users: begin it, see how far it is, end it."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from service.errors import Conflict, NotFound, Unavailable
from service.personal.operations import Operation, OperationRunning
from service.personal.recalibrate import sources_of
from service.personal.records import StoreError
from service.protocol.body import json_response
from service.state import ClassifierOf, ServicesOf

router = APIRouter(tags=["operations"])

OperationId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="id of an operation")]


class Recalibration(BaseModel):
    """Whom to move."""

    model_config = ConfigDict(extra="forbid")

    from_version: Annotated[int, Field(ge=1)] | None = None
    dry_run: bool = False


@asynccontextmanager
async def _storing() -> AsyncIterator[None]:
    """Turn a store that does not answer into a 503."""
    try:
        yield
    except StoreError as e:
        raise Unavailable(str(e), retry_after=2) from e


@router.post(
    "/v2/models/{model}/users:recalibrate",
    summary="Move users' heads to the newest version's feature space",
    status_code=202,
)
async def recalibrate(
    own: ServicesOf, model: ClassifierOf, wanted: Annotated[Recalibration | None, Body()] = None
) -> Response:
    """Fit heads anew, in the background, of users who have one in an older feature space only (docs/upgrades.md).

    `from_version`: of this version's users only. `dry_run`: say what would come of it, and change nothing.
    """
    wanted = wanted or Recalibration()
    if own.draining:
        raise Unavailable("the service is draining", retry_after=1)
    async with _storing():
        sources = await sources_of(own.models, own.store, model, wanted.from_version)
        try:
            made = await own.recalibrator.operations.create(model.scope, model.version, sources, wanted.dry_run)
        except OperationRunning as e:
            raise Conflict(
                f"users of model {model.name!r} are being moved by operation {e}; wait for it, or DELETE it"
            ) from e
    own.recalibrator.wake()
    return json_response(_shown(made), 202, {"Location": f"/v2/operations/{made.id}"})


@router.get("/v2/operations", summary="Operations, the newest first")
async def list_operations(own: ServicesOf) -> dict[str, Any]:
    """List the last hundred."""
    async with _storing():
        return {"operations": [_shown(o) for o in await own.recalibrator.operations.recent()]}


@router.get("/v2/operations/{operation}", summary="How far an operation is")
async def operation_state(own: ServicesOf, operation: OperationId) -> dict[str, Any]:
    """Say how many users have been moved, need to enrol anew, or failed."""
    async with _storing():
        return _shown(_known(await own.recalibrator.operations.get(operation), operation))


@router.delete("/v2/operations/{operation}", summary="End an operation")
async def cancel(own: ServicesOf, operation: OperationId) -> dict[str, Any]:
    """End an operation before its next user; who has been moved stays so. One that has ended is left as it is."""
    async with _storing():
        return _shown(_known(await own.recalibrator.operations.cancel(operation), operation))


@router.get("/v2/operations/{operation}/users", summary="Users by what an operation came to, and why")
async def operation_users(
    own: ServicesOf,
    operation: OperationId,
    outcome: Literal["needs_enrolment", "failed", "moved"] = "needs_enrolment",
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
    page_token: Annotated[str, Query(max_length=256)] = "",
) -> dict[str, Any]:
    """List users page by page. Those moved are listed while it runs, and after a dry run."""
    async with _storing():
        _known(await own.recalibrator.operations.get(operation), operation)
        found = await own.recalibrator.operations.users(operation, outcome, page_token, page_size + 1)
    page = found[:page_size]
    answer: dict[str, Any] = {"users": [{"user": user, "reason": reason} for user, reason in page]}
    if len(found) > page_size:
        answer["next_page_token"] = page[-1][0]
    return answer


def _known(found: Operation | None, identifier: str) -> Operation:
    if found is None:
        raise NotFound(f"there is no operation {identifier}")
    return found


def _shown(operation: Operation) -> dict[str, Any]:
    counts = ("total", "done", "moved", "needs_enrolment", "failed")
    return {
        "operation": operation.id,
        "kind": "recalibrate",
        "model": operation.scope.model,
        "model_version": str(operation.model_version),
        "dry_run": operation.dry_run,
        "state": operation.state,
        "message": operation.message,
        "progress": {name: getattr(operation, name) for name in counts},
        "created": _time(operation.created),
        "updated": _time(operation.updated),
    }


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()
