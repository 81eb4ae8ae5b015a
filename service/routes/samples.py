"""Enrolling bit by bit: labelled windows that a later calibration uses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from models.heads import statistics
from models.heads.inputs import Inspection
from models.heads.statistics import Statistics
from service.data_plane import DECODED_HERE
from service.errors import InvalidRequest, Unavailable, UnknownUser, Unprocessable
from service.loaded import LoadedModel, same_labels
from service.personal import enrol
from service.personal.data_changes import Enrolled
from service.personal.kept import Kept
from service.protocol import labelled, oip
from service.protocol.body import json_response, read_body
from service.protocol.labelled import LABELLED_FIELDS, Labelled
from service.protocol.openapi import SAMPLES_BODY
from service.routes.of_user import USER, changing, reading
from service.state import ClassifierOf, Services, ServicesOf, UserId, known_user, services

router = APIRouter(tags=["users"])

SAMPLES = f"{USER}/samples"
FIELDS = (*LABELLED_FIELDS, "accept")
Key = Annotated[str | None, Header(description="a repeated call with the same key answers the same")]


@router.post(SAMPLES, summary="Enrol labelled windows", status_code=201, openapi_extra=SAMPLES_BODY)
async def add(request: Request, model: ClassifierOf, user: UserId, idempotency_key: Key = None) -> Response:
    """Give a verdict on each window, and keep the accepted ones as the user's retention allows."""
    own, user = services(request), known_user(user)
    if own.draining:
        raise Unavailable("the service is draining", retry_after=1)
    check_key(idempotency_key)
    body = await read_body(request)
    asked = body, request.headers.get(oip.HEADER_LENGTH), model
    slow = model.media.slow or len(body) > DECODED_HERE
    given, demanded = await asyncio.to_thread(_decode, *asked) if slow else _decode(*asked)
    data, digest = own.calibrator.data, labelled.digest_of(body)
    async with reading():  # before the forward, which is the dear part
        (await data.settings(model.scope, user)).require("statistics", "enrolling samples")
        if idempotency_key is not None:
            before = await data.answered(model.scope, user, idempotency_key, digest)
            if before is not None:
                return json_response(before, 201, {"Idempotent-Replay": "true"})
    kept, found = await enrol.inspected(model, given)
    return json_response(*await enrolled(own, model, user, kept, given.own, found, demanded, idempotency_key, digest))


async def enrolled(
    own: Services,
    model: LoadedModel,
    user: str,
    kept: Kept,
    names: tuple[str, ...],
    found: Inspection,
    demanded: Sequence[str],
    key: str | None,
    digest: str,
) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Keep the windows of a call whose verdicts allow it; returns content, status and headers of its answer.

    `names` are labels that the bundle does not know, as `Labelled.own`.

    Raises:
        Unprocessable, Conflict, Unavailable: as `UserData.enrol`.
    """
    chosen = enrol.taken(found, demanded)
    enrol.check_features(kept.z, chosen)
    new = kept.at(chosen)
    verdicts, warnings = enrol.verdicts(found, chosen), list(found.warnings)
    base = await _base(own, model, user)

    def answer(held: Enrolled) -> dict[str, Any]:
        """Describe the call's windows and all that is enrolled."""
        counts = {"accepted": len(new), "rejected": len(kept) - len(new)}
        return {**counts, "verdicts": verdicts, "warnings": warnings, **enrol.state(model, held, base)}

    prior = model.prior
    async with reading():
        made, again = await own.calibrator.data.enrol(
            model.scope,
            user,
            new,
            classes=prior.classes,
            personal=prior.personal,
            own=names,
            room=prior.own,
            answer=answer,
            key=key,
            digest=digest,
        )
    return made, 201, {"Idempotent-Replay": "true"} if again else {}


@router.get(SAMPLES, summary="What is enrolled of a user, and what remains a label")
async def show(own: ServicesOf, model: ClassifierOf, user: UserId) -> dict[str, Any]:
    """Count windows by label; 404 for a user who is unknown."""
    return await _state(own, model, known_user(user))


@router.delete(SAMPLES, summary="Forget windows of a label, or all, enrolled or calibrated with")
async def forget(
    own: ServicesOf,
    model: ClassifierOf,
    user: UserId,
    label: Annotated[str | None, Query(description="the label to forget; without it all")] = None,
) -> dict[str, Any]:
    """Delete enrolled windows, and windows and statistics behind versions; heads stay until the next calibration."""
    user, labels = known_user(user), list(model.labels)
    served = {m.scope: m.labels for m in own.models.served()}
    async with reading():
        labels += await own.calibrator.data.own_labels(model.scope, user)
    if label is not None and label not in labels:
        raise Unprocessable(f"unknown label {label[:64]!r}; the labels are {', '.join(labels)}")
    async with changing(own, model, user):
        manifest = model.bundle.manifest
        if not await own.calibrator.data.forget(
            model.scope, user, label, lambda s: manifest.labels if same_labels(s, manifest) else served.get(s)
        ):
            raise UnknownUser(f"user {user!r} is not known to model {model.name!r}")
        own.following.begin_anew(model.name, user)
    return {"forgotten": label or "all", **await _told(own, model, user)}


def check_key(key: str | None) -> None:
    """Check an Idempotency-Key.

    Raises:
        InvalidRequest: it is empty or too long.
    """
    if key is not None and not 0 < len(key) <= 255:
        raise InvalidRequest("Idempotency-Key must have 1 to 255 characters")


def _decode(body: bytes, length: str | None, model: LoadedModel) -> tuple[Labelled, list[str]]:
    message, binary = labelled.message_of(body, length, FIELDS)
    demanded = message.get("accept", [])
    if not isinstance(demanded, list) or not all(v in enrol.TAKEN_ON_DEMAND for v in demanded):
        taken = ", ".join(enrol.TAKEN_ON_DEMAND)
        raise InvalidRequest(f"accept must be a list of verdicts to take all the same: {taken}")
    return labelled.labelled(message, binary, model.bundle.manifest, model.media.rows, finite=False), demanded


async def _state(own: Services, model: LoadedModel, user: str) -> dict[str, Any]:
    async with reading():
        if await own.store.user(model.scope, user) is None:
            raise UnknownUser(f"user {user!r} is not known to model {model.name!r}")
    return await _told(own, model, user)


async def _told(own: Services, model: LoadedModel, user: str) -> dict[str, Any]:
    async with reading():
        held = await own.calibrator.data.enrolled(model.scope, user)
    return enrol.state(model, held, await _base(own, model, user))


async def _base(own: Services, model: LoadedModel, user: str) -> Statistics | None:
    """Statistics of the windows that the next update adds to."""
    async with reading():
        blob, _ = await own.store.statistics(model.scope, user)
    return None if blob is None else statistics.from_bytes(blob)
