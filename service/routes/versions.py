"""Versions of a user's head, the active pointer, rollback."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from service.errors import Conflict, UnknownUser, UnknownVersion
from service.personal.records import NoSuchVersion, Version, VersionIsActive
from service.routes.of_user import LARGEST_VERSION, USER, VersionNumber, changing, moment, pointers, reading
from service.state import OutputOf, ServicesOf, UserId, known_user

router = APIRouter(tags=["users"])


class Active(BaseModel):
    """Which version to serve."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[int, Field(ge=1, le=LARGEST_VERSION)] | Literal["shared"]


@router.get(f"{USER}/versions", summary="A user's versions, oldest first")
async def versions(own: ServicesOf, model: OutputOf, user: UserId) -> dict[str, Any]:
    """List versions with their outcome and numbers."""
    async with reading():
        store, user = own.store, known_user(user)
        found = await store.user(model.scope, user)
        listed = await store.versions(model.scope, user)
    active = found.active if found else 0
    return {"active": active or "shared", "versions": [_version(v, active) for v in listed]}


@router.get(f"{USER}/versions/{{number}}", summary="One version and the report of the calibration that made it")
async def version(own: ServicesOf, model: OutputOf, user: UserId, number: VersionNumber) -> dict[str, Any]:
    """Describe one version."""
    async with reading():
        store, user = own.store, known_user(user)
        found = await store.version(model.scope, user, number)
        held = await store.user(model.scope, user)
    if found is None:
        raise UnknownVersion(f"user {user!r} has no version {number} for model {model.name!r}")
    return {**_version(found, held.active if held else 0), "report": found.report}


@router.delete(f"{USER}/versions/{{number}}", summary="Delete a version that is not active")
async def delete_version(own: ServicesOf, model: OutputOf, user: UserId, number: VersionNumber) -> dict[str, Any]:
    """Delete one version; 409 for the active one."""
    user = known_user(user)
    async with changing(own, model, user):
        try:
            await own.store.delete_version(model.scope, user, number)
        except VersionIsActive as e:
            raise Conflict(f"version {number} is active; activate another one first") from e
        held = await own.store.user(model.scope, user)
        for loaded in own.models.served():
            if loaded.scope == model.scope:
                own.resolver.forget(user, loaded)
    return {"deleted": number, "active": (held.active if held else 0) or "shared"}


@router.put(f"{USER}/active", summary="Serve a named version, or the shared head")
async def activate(own: ServicesOf, model: OutputOf, user: UserId, wanted: Active) -> dict[str, Any]:
    """Move the active pointer."""
    user = known_user(user)
    async with changing(own, model, user):
        number = 0 if wanted.version == "shared" else wanted.version
        moved = await own.store.activate(model.scope, user, number)
        own.resolver.point(model.scope, user, moved.active)
    return pointers(moved)


@router.post(f"{USER}/rollback", summary="Serve again what was served before the active version")
async def rollback(own: ServicesOf, model: OutputOf, user: UserId) -> dict[str, Any]:
    """Undo the last activation; before the first version there is the shared head."""
    user = known_user(user)
    async with changing(own, model, user):
        if await own.store.user(model.scope, user) is None:
            raise UnknownUser(f"user {user!r} is not known to model {model.name!r}")
        try:
            moved = await own.store.rollback(model.scope, user)
        except NoSuchVersion as e:
            raise Conflict(str(e)) from e
        own.resolver.point(model.scope, user, moved.active)
    return pointers(moved)


def _version(version: Version, active: int) -> dict[str, Any]:
    report = version.report
    return {
        "version": version.version,
        "active": version.version == active,
        "created": moment(version.created),
        "calibration_id": version.calibration_id,
        "outcome": report["outcome"],
        "method": report["method"],
        "digest": version.digest,
        "metrics": report["metrics"],
    }
