"""Heads that leave the service and come back: as ONNX, as safetensors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from models.heads.calibration import shared_head
from models.heads.head import Head
from models.heads.regression_prior import RegressionPrior
from service.errors import Unavailable, UnknownUser, UnknownVersion
from service.loaded import LoadedModel
from service.personal import transfer, userfile
from service.personal.export import ExportedHead, onnx_model, weights_file
from service.personal.imports import (
    as_version,
    read_head,
)
from service.personal.records import NewVersion, StoreError, head_from_bytes, head_to_bytes
from service.protocol.body import json_response, read_body
from service.state import ModelName, Services, ServicesOf, TaskName, UserId, known_user, note, services

router = APIRouter(tags=["users"])

USER = "/v2/models/{model}/users/{user}"
LARGEST_VERSION = 2**62


def file_body(media_type: str) -> dict[str, Any]:
    """Describe a body that is a file."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {"requestBody": {"required": True, "content": content}}


SAFETENSORS_BODY = file_body("application/octet-stream")

Number = Annotated[int, Field(ge=1, le=LARGEST_VERSION)]
VersionNumber = Annotated[Number, Path(description="number of a version")]
VersionOrWord = Annotated[
    Number | Literal["active", "shared"], Path(description="number of a version, or active, or shared")
]


async def _model(
    request: Request,
    model: ModelName,
    model_version: Annotated[str | None, Query(description="version of the model; by default the newest")] = None,
) -> AsyncIterator[LoadedModel]:
    """Find the version of a model that is meant, and hold it until the request ends."""
    with services(request).models.get(model, model_version).used() as found:
        yield note(request, found)


ModelOf = Annotated[LoadedModel, Depends(_model)]


def _output(model: ModelOf, task: TaskName = None) -> LoadedModel:
    """Find the output of it that is meant."""
    return model.of(task)


OutputOf = Annotated[LoadedModel, Depends(_output)]


@router.get(f"{USER}/versions/{{number}}/onnx", summary="A standalone ONNX model: raw input to probabilities")
async def onnx(own: ServicesOf, model: ModelOf, user: UserId, number: VersionOrWord, task: TaskName = None) -> Response:
    """Return the backbone with a head behind it: outputs `features`, `logits`, `probabilities`, `label` (an index).

    Of targets they are `features` and `value`. `active` is the user's active head, `shared` that of those who have
    none. Of a model with several outputs these two give a head of each, or of the one that `task` names; a number is of
    one output. Labels, digests and licence are in the model's properties.
    """
    user = known_user(user)
    each = model.outputs if model.outputs and task is None and isinstance(number, str) else (model.of(task),)
    if number == "shared":
        heads = [_shared(output) for output in each]
    elif number == "active":
        heads = await _active(own, each, user)
    else:
        heads = [await _personal(own, each[0], user, number)]
    content = await asyncio.to_thread(onnx_model, model, heads)
    name = f"{model.name}-{model.version}-head-{number}.onnx"
    return file_of(content, name, heads[0].digest if len(heads) == 1 else userfile.digest(content))


@router.get(f"{USER}/versions/{{number}}/weights", summary="A version's head as safetensors")
async def weights(
    own: ServicesOf,
    model: OutputOf,
    user: UserId,
    number: VersionNumber,
    statistics: Annotated[bool, Query(description="add the version's statistics, where they are kept")] = False,
) -> Response:
    """Return `weight (K, d)` and `bias (K,)`, with feature space and labels in the metadata; the digest is the ETag."""
    user = known_user(user)
    head, digest = await _head(own, model, user, number)
    data = None
    if statistics:
        async with _reading():
            data = await transfer.statistics_of(own.store, model.scope, user, number)
    name = f"{model.name}-{model.version}-head-{number}.safetensors"
    return file_of(weights_file(model, head, number, digest, data), name, digest)


@router.post(f"{USER}/versions", summary="Import a head", status_code=201, openapi_extra=SAFETENSORS_BODY)
async def import_version(
    request: Request,
    own: ServicesOf,
    model: OutputOf,
    user: UserId,
    activate: Annotated[
        Literal["if_better", "always", "never"],
        Query(description="if_better: where statistics came along and speak for it"),
    ] = "if_better",
    if_match: Annotated[str | None, Header(description="digest that the head must have")] = None,
) -> Response:
    """Take safetensors as `weights` gives them; 409 for another feature space or other labels, 422 for damage."""
    user = known_user(user)
    accepting(own)
    body = await read_body(request)
    digest = None if if_match is None else if_match.strip().strip('"')
    imported = await asyncio.to_thread(read_head, body, model.bundle.manifest, model.population, digest)
    async with own.calibrator.exclusively(model, user):
        keeps = (await own.calibrator.data.settings(model.scope, user)).keeps("statistics")
        new = as_version(model, user, imported, activate, keeps=keeps)
        # Shielded: once begun, a commit and the pointer's cache go together, whatever becomes of the client.
        number, active = await asyncio.shield(_commit(own, model, user, new))
    return json_response({**new.report, "version": number, "active_version": active or "shared"}, 201)


async def _commit(own: Services, model: LoadedModel, user: str, new: NewVersion) -> tuple[int, int]:
    number = await own.store.commit(model.scope, user, new)
    if new.active:
        own.resolver.point(model.scope, user, number)
        return number, number
    found = await own.store.user(model.scope, user)
    return number, found.active if found else 0


async def _head(own: Services, model: LoadedModel, user: str, number: int) -> tuple[Head, str]:
    async with _reading():
        blob = await own.store.weights(model.scope, user, number)
        if blob is None:
            raise UnknownVersion(f"user {user!r} has no version {number} for model {model.name!r}")
        return head_from_bytes(*blob), blob[1]


@asynccontextmanager
async def _reading() -> AsyncIterator[None]:
    """Turn a store that does not answer into a 503."""
    try:
        yield
    except StoreError as e:
        raise Unavailable(str(e), retry_after=2) from e


def accepting(own: Services) -> None:
    """Refuse changes while the service ends."""
    if own.draining:
        raise Unavailable("the service is draining", retry_after=1)


def _shared(output: LoadedModel) -> ExportedHead:
    population = output.bundle.population
    head = population.generic if isinstance(population, RegressionPrior) else shared_head(population)
    return ExportedHead(output, head, 0, userfile.digest(head_to_bytes(head)))


async def _active(own: Services, outputs: Sequence[LoadedModel], user: str) -> list[ExportedHead]:
    """Find the heads that answer a user, the shared one where none of theirs is active.

    Raises:
        UnknownUser: the user is known to none of the outputs.
    """
    async with _reading():
        found = [await own.store.user(output.scope, user) for output in outputs]
    if not any(found):
        raise UnknownUser(f"user {user!r} is not known to model {outputs[0].name!r}; the shared head is at shared")
    heads = []
    for output, pointers in zip(outputs, found, strict=True):
        version = pointers.active if pointers is not None else 0
        heads.append(await _personal(own, output, user, version) if version else _shared(output))
    return heads


async def _personal(own: Services, output: LoadedModel, user: str, version: int) -> ExportedHead:
    head, digest = await _head(own, output, user, version)
    return ExportedHead(output, head, version, digest)


def file_of(content: bytes, name: str, digest: str) -> Response:
    """Answer with a file."""
    headers = {"ETag": f'"{digest}"', "Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, headers=headers, media_type="application/octet-stream")
