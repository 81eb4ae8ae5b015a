"""What leaves the service and comes back: a head as ONNX or safetensors, a user as one file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import safetensors
import safetensors.numpy
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from models.heads.calibration import shared_head
from models.heads.head import Head
from models.heads.regression_prior import RegressionPrior
from service.errors import Conflict, HeadwayError, Unavailable, UnknownUser, UnknownVersion, Unprocessable
from service.loaded import LoadedModel
from service.personal import outputsfile, targets, transfer, userfile
from service.personal.export import ExportedHead, onnx_model, weights_file
from service.personal.imports import (
    as_version,
    check_own,
    check_space,
    head_of,
    metadata_of,
    own_labels_in,
    read_head,
    rows_key,
    statistics_of,
)
from service.personal.kept import UserSettings
from service.personal.records import NewVersion, StoreError, head_from_bytes, head_to_bytes
from service.personal.userfile import UserFile
from service.protocol.body import json_bytes, json_response, read_body
from service.state import ModelName, Services, ServicesOf, TaskName, UserId, known_user, note, services

router = APIRouter(tags=["users"])

USER = "/v2/models/{model}/users/{user}"
LARGEST_VERSION = 2**62


def _file_body(media_type: str) -> dict[str, Any]:
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {"requestBody": {"required": True, "content": content}}


SAFETENSORS_BODY, ZIP_BODY = _file_body("application/octet-stream"), _file_body("application/zip")

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
    return _file(content, name, heads[0].digest if len(heads) == 1 else userfile.digest(content))


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
    return _file(weights_file(model, head, number, digest, data), name, digest)


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
    _accepting(own)
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


@router.get(f"{USER}/export", summary="All of a user as one file")
async def export_user(own: ServicesOf, model: ModelOf, user: UserId, task: TaskName = None) -> Response:
    """Return a zip: every version's head, statistics and report, the pointers. The same user gives the same bytes.

    Of a model with several outputs it holds such a zip of each, or `task` picks one.
    """
    user = known_user(user)
    together = bool(model.outputs) and task is None
    files: dict[str, UserFile] = {}
    for output in model.outputs if together else (model.of(task),):
        manifest = output.bundle.manifest
        async with _reading():
            file = await transfer.take_out(
                own.store,
                output.scope,
                user,
                model_version=model.version,
                feature_space=manifest.feature_space,
                labels=manifest.head_rows,
            )
        if file is not None:
            files[output.output] = file
    if not files:
        raise UnknownUser(f"user {user!r} is not known to model {model.name!r} version {model.version}")
    if together:
        content = await asyncio.to_thread(outputsfile.write, user, model.name, files)
    else:
        (alone,) = files.values()
        content = await asyncio.to_thread(userfile.write, alone)
    return _file(content, f"{model.name}-user.zip", userfile.digest(content))


@router.post(f"{USER}/import", summary="Restore a user from such a file", status_code=201, openapi_extra=ZIP_BODY)
async def import_user(
    request: Request,
    own: ServicesOf,
    model: ModelOf,
    user: UserId,
    replace: Annotated[bool, Query(description="replace all that is known of the user; else that is a 409")] = False,
    task: TaskName = None,
) -> Response:
    """Restore versions, statistics and pointers, all or nothing; 409 for another feature space, 422 for damage.

    Of a model with several outputs the file holds some of them, or `task` says which one it is of.
    """
    user = known_user(user)
    _accepting(own)
    body = await read_body(request)
    together = bool(model.outputs) and task is None
    files = await asyncio.to_thread(_read_outputs if together else _read_one, body, model, task)
    async with own.calibrator.exclusively(model, user):
        try:
            settings = await asyncio.shield(_restore(own, model, user, files, replace))
        except transfer.UserExists as e:
            raise Conflict(
                f"user {user!r} is known to model {model.name!r}: erase them, or import with replace=true (--replace)"
            ) from e
    answer = {"user": user, "retention": settings.retention}
    told = {output.output: _restored(user, file.index, settings) for output, file in files.items()}
    return json_response(answer | ({"outputs": told} if together else next(iter(told.values()))), 201)


def _restored(user: str, index: userfile.Index, settings: UserSettings) -> dict[str, Any]:
    """Say what came of a file, as the user's settings allow it."""
    return {
        "versions": len(index.versions),
        "statistics": sum(v.statistics is not None for v in index.versions) if settings.keeps("statistics") else 0,
        "active": index.active or "shared",
        "feature_space": index.feature_space,
        "warnings": _not_relaxed(user, index.settings, settings),
    }


def _not_relaxed(user: str, told: dict[str, Any], held: UserSettings) -> list[str]:
    """Say where less is kept of a user than their file allows: what holds here, chosen or not, is not relaxed by it."""
    wanted = UserSettings.of(told).retention if told else held.retention
    if held.keeps(wanted):
        return []
    return [
        f"retention stays {held.retention!r}, as this user has it here; the file's is {wanted!r}: "
        f"PUT …/users/{user} sets another"
    ]


async def _restore(
    own: Services, model: LoadedModel, user: str, files: dict[LoadedModel, UserFile], replace: bool
) -> UserSettings:
    scopes = {output.scope: file for output, file in files.items()}
    await transfer.bring_in(own.store, scopes, user, model.sizes, replace=replace)
    for loaded in own.models.served():
        if loaded.scope in scopes:
            own.resolver.forget(user, loaded)
    own.following.begin_anew(model.name, user)
    settings = await own.calibrator.data.settings(model.scope, user)
    own.following.set_mode(model.name, user, settings.adapt)
    return settings


def _read_one(body: bytes, model: LoadedModel, task: str | None) -> dict[LoadedModel, UserFile]:
    """Read and check the file of one output."""
    output = model.of(task)
    return {output: _checked(userfile.read(body), output, model)}


def _read_outputs(body: bytes, model: LoadedModel, _: str | None) -> dict[LoadedModel, UserFile]:
    """Read and check the file of several outputs."""
    found = {model.of(name): file for name, file in outputsfile.read(body).items()}
    return {output: _checked(file, output, model) for output, file in found.items()}


def _checked(file: UserFile, model: LoadedModel, whole: LoadedModel) -> UserFile:
    """See that each head and statistics of a user's file fits the output, and its settings the model."""
    manifest, prior = model.bundle.manifest, model.population
    check_space({"feature_space": file.index.feature_space, rows_key(manifest): list(file.index.labels)}, manifest)
    check_own(file.index.own_labels, manifest)
    targets.check_settings(whole, file.index.settings)
    try:
        json_bytes(file.index.settings)
    except TypeError as e:
        raise Unprocessable(f"the user's settings cannot be kept as JSON: {e}") from e
    for number, content in file.contents.items():
        try:
            tensors = safetensors.numpy.load(content.head)
            own = own_labels_in(metadata_of(content.head))
            head_of(tensors, manifest, own)
            if own != file.index.own_labels[: len(own)]:
                raise Unprocessable(f"its labels beyond the model's, {', '.join(own)}, are not the user's")
            if content.statistics is not None:
                statistics_of(content.statistics, prior)
        except (HeadwayError, safetensors.SafetensorError) as e:
            raise Unprocessable(f"version {number}: {e}") from e
    return file


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


def _accepting(own: Services) -> None:
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


def _file(content: bytes, name: str, digest: str) -> Response:
    headers = {"ETag": f'"{digest}"', "Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, headers=headers, media_type="application/octet-stream")
