"""Users of a model: state, versions, the active pointer, rollback, erasure."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from service.errors import Conflict, Unavailable, UnknownUser, UnknownVersion
from service.loaded import LoadedModel
from service.personal.database import STALENESS_SECONDS
from service.personal.records import NoSuchVersion, StoreError, User, Version, VersionIsActive
from service.personal.states import State, elsewhere, unknown, users_in
from service.state import ModelOf, Services, ServicesOf, UserId, known_user

router = APIRouter(tags=["users"])

LARGEST_VERSION = 2**62
VersionNumber = Annotated[int, Path(ge=1, le=LARGEST_VERSION, description="number of a version")]

USER = "/v2/models/{model}/users/{user}"


class Active(BaseModel):
    """Which version to serve."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[int, Field(ge=1, le=LARGEST_VERSION)] | Literal["shared"]


@asynccontextmanager
async def _changing(own: Services, model: LoadedModel, user: str) -> AsyncIterator[None]:
    """Hold the user against calibrations, and turn the store's refusals into answers."""
    async with own.calibrator.exclusively(model, user):
        try:
            yield
        except NoSuchVersion as e:
            raise UnknownVersion(f"user {user!r}: {e}") from e


@asynccontextmanager
async def _reading() -> AsyncIterator[None]:
    """Turn a store that does not answer into a 503."""
    try:
        yield
    except StoreError as e:
        raise Unavailable(str(e), retry_after=2) from e


@router.get("/v2/models/{model}/users", summary="List users, by name")
async def list_users(
    own: ServicesOf,
    model: ModelOf,
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
    page_token: Annotated[str, Query(max_length=256)] = "",
    state: Annotated[State | None, Query(description="only users in this state")] = None,
) -> dict[str, Any]:
    """List users page by page; `next_page_token` is there while more follow.

    `stale` are users who have a head in an older feature space only (docs/upgrades.md).
    """
    async with _reading():
        if state is None:
            found = await own.store.users(model.scope, page_token, page_size + 1)
        else:
            found = await users_in(own.store, model.scope, state, page_token, page_size + 1)
    page = found[:page_size]
    answer: dict[str, Any] = {"users": [_pointers(u) for u in page]}
    if len(found) > page_size:
        answer["next_page_token"] = page[-1].name
    return answer


@router.get(USER, summary="A user's state, active version and last calibration")
async def state(own: ServicesOf, model: ModelOf, user: UserId) -> dict[str, Any]:
    """Describe a user; 404 for one who has never calibrated."""
    async with _reading():
        store, user = own.store, known_user(user)
        found = await store.user(model.scope, user)
        older = {} if found is not None and found.active else await elsewhere(store, model.scope, user)
        if found is None and not older:
            raise UnknownUser(f"user {user!r} is not known to model {model.name!r}")
        found = found or unknown(user)
        last = await store.version(model.scope, user, found.last)
        base = await store.version(model.scope, user, found.base)
    return {
        **_pointers(found),
        "state": "calibrated" if found.active else "stale" if older else "enrolling",
        "heads_in": [{"feature_space": space.rpartition("-")[0], "version": v} for space, v in sorted(older.items())],
        "retention": "statistics",
        "classes": base.report["classes"] if base else {},
        "model": model.name,
        "model_version": str(model.version),
        "feature_space": model.bundle.manifest.feature_space,
        "last_calibration": last.report if last else None,
    }


@router.delete(USER, summary="Erase everything of a user of this model")
async def erase(own: ServicesOf, model: ModelOf, user: UserId) -> dict[str, Any]:
    """Erase samples' statistics, versions and caches. Doing it again is not an error."""
    user = known_user(user)
    async with _changing(own, model, user):
        return await _erase(own, user, model.name)


@router.delete("/v2/users/{user}", summary="Erase everything of a user of all models")
async def erase_everywhere(own: ServicesOf, user: UserId) -> dict[str, Any]:
    """Erase a user from every model."""
    user = known_user(user)
    async with AsyncExitStack() as held:
        for model in {m.name: m for m in own.models.loaded()}.values():
            await held.enter_async_context(_changing(own, model, user))
        return await _erase(own, user, None)


async def _erase(own: Services, user: str, model: str | None) -> dict[str, Any]:
    erased = await own.store.erase(user, model)
    for loaded in own.models.loaded():
        if model in (None, loaded.name):
            own.resolver.forget(user, loaded)
    return {
        "erased": True,
        "rows": erased.rows,
        "log_truncated": erased.log_truncated,
        "caches_dropped_within_s": STALENESS_SECONDS if own.store.shared else 0,
        "model": model or "*",
        "pseudonym": own.store.pseudonym(user),
        "at": datetime.datetime.now(datetime.UTC).isoformat(),
    }


@router.get(f"{USER}/versions", summary="A user's versions, oldest first")
async def versions(own: ServicesOf, model: ModelOf, user: UserId) -> dict[str, Any]:
    """List versions with their outcome and numbers."""
    async with _reading():
        store, user = own.store, known_user(user)
        found = await store.user(model.scope, user)
        listed = await store.versions(model.scope, user)
    active = found.active if found else 0
    return {"active": active or "shared", "versions": [_version(v, active) for v in listed]}


@router.get(f"{USER}/versions/{{number}}", summary="One version and the report of the calibration that made it")
async def version(own: ServicesOf, model: ModelOf, user: UserId, number: VersionNumber) -> dict[str, Any]:
    """Describe one version."""
    async with _reading():
        store, user = own.store, known_user(user)
        found = await store.version(model.scope, user, number)
        pointers = await store.user(model.scope, user)
    if found is None:
        raise UnknownVersion(f"user {user!r} has no version {number} for model {model.name!r}")
    return {**_version(found, pointers.active if pointers else 0), "report": found.report}


@router.delete(f"{USER}/versions/{{number}}", summary="Delete a version that is not active")
async def delete_version(own: ServicesOf, model: ModelOf, user: UserId, number: VersionNumber) -> dict[str, Any]:
    """Delete one version; 409 for the active one."""
    user = known_user(user)
    async with _changing(own, model, user):
        try:
            await own.store.delete_version(model.scope, user, number)
        except VersionIsActive as e:
            raise Conflict(f"version {number} is active; activate another one first") from e
        pointers = await own.store.user(model.scope, user)
        for loaded in own.models.loaded():
            if loaded.scope == model.scope:
                own.resolver.forget(user, loaded)
    return {"deleted": number, "active": (pointers.active if pointers else 0) or "shared"}


@router.put(f"{USER}/active", summary="Serve a named version, or the shared head")
async def activate(own: ServicesOf, model: ModelOf, user: UserId, wanted: Active) -> dict[str, Any]:
    """Move the active pointer."""
    user = known_user(user)
    async with _changing(own, model, user):
        number = 0 if wanted.version == "shared" else wanted.version
        pointers = await own.store.activate(model.scope, user, number)
        own.resolver.point(model.scope, user, pointers.active)
    return _pointers(pointers)


@router.post(f"{USER}/rollback", summary="Serve again what was served before the active version")
async def rollback(own: ServicesOf, model: ModelOf, user: UserId) -> dict[str, Any]:
    """Undo the last activation; before the first version there is the shared head."""
    user = known_user(user)
    async with _changing(own, model, user):
        if await own.store.user(model.scope, user) is None:
            raise UnknownUser(f"user {user!r} is not known to model {model.name!r}")
        try:
            pointers = await own.store.rollback(model.scope, user)
        except NoSuchVersion as e:
            raise Conflict(str(e)) from e
        own.resolver.point(model.scope, user, pointers.active)
    return _pointers(pointers)


def _pointers(user: User) -> dict[str, Any]:
    return {
        "user": user.name,
        "active": user.active or "shared",
        "head": "personal" if user.active else "shared",
        "latest_version": user.last,
        "created": _time(user.created) if user.created else None,
        "updated": _time(user.updated) if user.updated else None,
    }


def _version(version: Version, active: int) -> dict[str, Any]:
    report = version.report
    return {
        "version": version.version,
        "active": version.version == active,
        "created": _time(version.created),
        "calibration_id": version.calibration_id,
        "outcome": report["outcome"],
        "method": report["method"],
        "digest": version.digest,
        "metrics": report["metrics"],
    }


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()
