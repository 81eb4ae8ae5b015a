"""Users of a model: list, state, settings, erasure."""

from __future__ import annotations

import contextlib
import datetime
from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, field_validator

from service.errors import UnknownUser
from service.loaded import LoadedModel
from service.personal import targets
from service.personal.database import STALENESS_SECONDS
from service.personal.kept import LONGEST_HALF_LIFE
from service.personal.states import State, elsewhere, unknown, users_in
from service.protocol.body import json_bytes
from service.routes.of_user import USER, changing, pointers, reading
from service.state import ModelOf, OutputOf, Services, ServicesOf, TaskName, UserId, known_user

router = APIRouter(tags=["users"])

LARGEST_METADATA = 16 * 1024
OF_ALL_OUTPUTS = frozenset(("user", "retention", "adapt", "half_life_days", "metadata", "model", "model_version"))
"""What is said of a user of a model, whatever the output."""


class Wanted(BaseModel):
    """What is to be set; what is not named stays."""

    model_config = ConfigDict(extra="forbid")

    retention: Literal["none", "statistics", "features", "inputs"] | None = None
    adapt: Literal["off", "suggest", "on"] | None = None
    metadata: dict[str, Any] | None = None
    half_life_days: Annotated[float, Field(ge=0, le=LONGEST_HALF_LIFE, allow_inf_nan=False)] | None = None

    @field_validator("metadata")
    @classmethod
    def _small(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            size = len(json_bytes(value))
        except TypeError as e:
            raise ValueError(f"metadata cannot be kept as JSON: {e}") from e
        if size > LARGEST_METADATA:
            raise ValueError(f"metadata is larger than {LARGEST_METADATA} bytes of JSON")
        return value


@router.get("/v2/models/{model}/users", summary="List users, by name")
async def list_users(
    own: ServicesOf,
    model: OutputOf,
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
    page_token: Annotated[str, Query(max_length=256)] = "",
    state: Annotated[State | None, Query(description="only users in this state")] = None,
) -> dict[str, Any]:
    """List users page by page; `next_page_token` is there while more follow.

    `stale` are users who have a head in an older feature space only (docs/upgrades.md).
    """
    async with reading():
        if state is None:
            found = await own.store.users(model.scope, page_token, page_size + 1)
        else:
            found = await users_in(own.store, model.scope, state, page_token, page_size + 1)
    page = found[:page_size]
    answer: dict[str, Any] = {"users": [pointers(u) for u in page]}
    if len(found) > page_size:
        answer["next_page_token"] = page[-1].name
    return answer


@router.get(USER, summary="A user's state, active version and last calibration")
async def state(own: ServicesOf, model: ModelOf, user: UserId, task: TaskName = None) -> dict[str, Any]:
    """Describe a user; 404 for one who is unknown. Of a model with several outputs one by `task`, else all by name."""
    user = known_user(user)
    if task is not None or not model.outputs:
        return await _state(own, model.of(task), user)
    found: dict[str, dict[str, Any]] = {}
    for output in model.outputs:
        with contextlib.suppress(UnknownUser):
            found[output.output] = await _state(own, output, user)
    if not found:
        raise UnknownUser(f"user {user!r} is not known to model {model.name!r}")
    common = {name: value for name, value in next(iter(found.values())).items() if name in OF_ALL_OUTPUTS}
    outputs = {name: {k: v for k, v in said.items() if k not in OF_ALL_OUTPUTS} for name, said in found.items()}
    return {**common, "outputs": outputs}


async def _state(own: Services, model: LoadedModel, user: str) -> dict[str, Any]:
    async with reading():
        store = own.store
        found = await store.user(model.scope, user)
        older = {} if found is not None and found.active else await elsewhere(store, model.scope, user)
        if found is None and not older:
            raise UnknownUser(f"user {user!r} is not known to model {model.called}")
        found = found or unknown(user)
        last = await store.version(model.scope, user, found.last)
        base = await store.version(model.scope, user, found.base)
        settings = await own.calibrator.data.settings(model.scope, user)
    return {
        **pointers(found),
        "state": "calibrated" if found.active else "stale" if older else "enrolling",
        "heads_in": [{"feature_space": space.rpartition("-")[0], "version": v} for space, v in sorted(older.items())],
        "retention": settings.retention,
        "adapt": settings.adapt,
        "half_life_days": settings.half_life,
        "adaptation": own.following.state((model.scope, user)),
        "metadata": settings.attributes,
        "classes": base.report.get("classes", {}) if base else {},
        "model": model.name,
        "model_version": str(model.version),
        "feature_space": model.bundle.manifest.feature_space,
        "last_calibration": last.report if last else None,
    }


@router.put(USER, summary="Set what may be kept of a user, and how their head may change")
async def configure(own: ServicesOf, model: ModelOf, user: UserId, wanted: Wanted) -> dict[str, Any]:
    """Set retention, adaptation and metadata; makes the user. What may be kept no longer is deleted at once."""
    user = known_user(user)
    chosen = {
        name: value
        for name, value in (
            ("retention", wanted.retention),
            ("adapt", wanted.adapt),
            ("attributes", wanted.metadata),
            ("half_life", wanted.half_life_days),
        )
        if value is not None
    }
    targets.check_settings(model, chosen)
    async with changing(own, model, user):
        after, lowered = await own.calibrator.data.configure(model.scope, user, chosen, model.sizes)
        own.following.set_mode(model.name, user, after.adapt)
        if not after.keeps("statistics"):
            own.plane.feedback.forget(user)
            own.erased_elsewhere(user)
            own.following.begin_anew(model.name, user)
    return {**await state(own, model, user), "deleted": lowered}


@router.delete(USER, summary="Erase everything of a user of this model")
async def erase(own: ServicesOf, model: ModelOf, user: UserId) -> dict[str, Any]:
    """Erase samples' statistics, versions and caches. Doing it again is not an error."""
    user = known_user(user)
    async with changing(own, model, user):
        return await _erase(own, user, model.name)


@router.delete("/v2/users/{user}", summary="Erase everything of a user of all models")
async def erase_everywhere(own: ServicesOf, user: UserId) -> dict[str, Any]:
    """Erase a user from every model."""
    user = known_user(user)
    async with AsyncExitStack() as held:
        for model in {m.name: m for m in own.models.loaded()}.values():
            await held.enter_async_context(changing(own, model, user))
        return await _erase(own, user, None)


async def _erase(own: Services, user: str, model: str | None) -> dict[str, Any]:
    erased = await own.store.erase(user, model)
    for loaded in own.models.served():
        if model in (None, loaded.name):
            own.resolver.forget(user, loaded)
    own.erased(model, user)
    return {
        "erased": True,
        "rows": erased.rows,
        "log_truncated": erased.log_truncated,
        "caches_dropped_within_s": STALENESS_SECONDS if own.store.shared else 0,
        "model": model or "*",
        "pseudonym": own.store.pseudonym(user),
        "at": datetime.datetime.now(datetime.UTC).isoformat(),
    }
