"""A user of a model as one file, out of a service and into one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import safetensors
import safetensors.numpy
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from service.errors import Conflict, HeadwayError, UnknownUser, Unprocessable
from service.loaded import LoadedModel
from service.personal import outputsfile, targets, transfer, userfile
from service.personal.imports import (
    check_own,
    check_space,
    head_of,
    metadata_of,
    own_labels_in,
    rows_key,
    statistics_of,
)
from service.personal.kept import UserSettings
from service.personal.records import Scope
from service.personal.userfile import UserFile
from service.protocol.body import json_bytes, json_response, read_body
from service.routes.of_user import USER, reading
from service.routes.portable import accepting, file_body, file_of
from service.state import ModelName, Services, ServicesOf, TaskName, UserId, known_user, note, services

router = APIRouter(tags=["users"])

ZIP_BODY = file_body("application/zip")


class Place(NamedTuple):
    """An output of a version, where heads of a user may be; `part` is what a file of several outputs calls it."""

    part: str
    version: LoadedModel
    output: LoadedModel


@dataclass(frozen=True, slots=True)
class Places:
    """The version of a model that is meant, and those in which its users may still have heads, the newest first."""

    model: LoadedModel
    versions: Sequence[LoadedModel]

    def of(self, task: str | None) -> list[Place]:
        """Return the places of the output that is named, or of all; the newest first, each feature space once.

        Raises:
            InvalidRequest: there is no such output.
        """
        wanted = None if task is None else self.model.of(task).output
        first, found = self.model.each[0].output, dict[Scope, Place]()
        for version in self.versions:
            for output in version.each:
                name = output.output or first  # an older version may have had one output, which had no name
                part = name if version is self.model else f"{name}{outputsfile.MARK}{version.version}"
                if wanted in (None, name):
                    found.setdefault(output.scope, Place(part, version, output))
        return list(found.values())


async def _places(
    request: Request,
    model: ModelName,
    model_version: Annotated[str | None, Query(description="version of the model; by default all")] = None,
) -> AsyncIterator[Places]:
    """Find the versions of a model that are meant, and hold the newest until the request ends."""
    newest, *older = services(request).models.candidates(model, model_version)
    with newest.used():
        yield Places(note(request, newest), (newest, *older))


PlacesOf = Annotated[Places, Depends(_places)]


@router.get(f"{USER}/export", summary="All of a user as one file")
async def export_user(own: ServicesOf, places: PlacesOf, user: UserId, task: TaskName = None) -> Response:
    """Return a zip: every version's head, statistics and report, the pointers. The same user gives the same bytes.

    Of a model with several outputs it holds such a zip of each, or `task` picks one. Heads in feature spaces that only
    older versions have go along; a zip of one output is of the newest version in which the user has any.
    """
    user, model = known_user(user), places.model
    files: list[tuple[Place, UserFile]] = []
    async with reading():
        for place in places.of(task):
            manifest = place.output.bundle.manifest
            file = await transfer.take_out(
                own.store,
                place.output.scope,
                user,
                model_version=place.output.version,
                feature_space=manifest.feature_space,
                labels=manifest.head_rows,
            )
            if file is not None:
                files.append((place, file))
    if not files:
        raise UnknownUser(f"user {user!r} is not known to model {model.name!r} version {model.version}")
    if model.outputs and task is None:
        parts = {place.part: file for place, file in files}
        content = await asyncio.to_thread(outputsfile.write, user, model.name, parts)
    else:
        found = [file for _, file in files]
        alone = next((file for file in found if file.index.versions), found[0])
        content = await asyncio.to_thread(userfile.write, alone)
    return file_of(content, f"{model.name}-user.zip", userfile.digest(content))


@router.post(f"{USER}/import", summary="Restore a user from such a file", status_code=201, openapi_extra=ZIP_BODY)
async def import_user(
    request: Request,
    own: ServicesOf,
    places: PlacesOf,
    user: UserId,
    replace: Annotated[bool, Query(description="replace all that is known of the user; else that is a 409")] = False,
    task: TaskName = None,
) -> Response:
    """Restore versions, statistics and pointers, all or nothing; 409 for another feature space, 422 for damage.

    Of a model with several outputs the file holds some of them, or `task` says which one it is of. Heads go into the
    version that computes their feature space.
    """
    user, model = known_user(user), places.model
    accepting(own)
    body = await read_body(request)
    together = bool(model.outputs) and task is None
    files = await asyncio.to_thread(_read_parts if together else _read_one, body, places, task)
    async with own.calibrator.exclusively(model, user):
        try:
            settings = await asyncio.shield(_restore(own, places, user, files, replace))
        except transfer.UserExists as e:
            raise Conflict(
                f"user {user!r} is known to model {model.name!r}: erase them, or import with replace=true (--replace)"
            ) from e
    answer = {"user": user, "retention": settings.retention}
    told = {place.part: _restored(user, file.index, settings) for place, file in files.items()}
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
    own: Services, places: Places, user: str, files: dict[Place, UserFile], replace: bool
) -> UserSettings:
    model, scopes = places.model, {place.output.scope: file for place, file in files.items()}
    sizes = {scope: size for version in places.versions for scope, size in version.sizes.items()}
    await transfer.bring_in(own.store, scopes, user, sizes, replace=replace)
    for loaded in own.models.served():
        if loaded.scope in scopes:
            own.resolver.forget(user, loaded)
    own.following.begin_anew(model.name, user)
    settings = await own.calibrator.data.settings(model.scope, user)
    own.following.set_mode(model.name, user, settings.adapt)
    return settings


def _read_one(body: bytes, places: Places, task: str | None) -> dict[Place, UserFile]:
    """Read and check the file of one output."""
    file = userfile.read(body)
    place = _place_for(file, places.of(task))
    return {place: _checked(file, place.output, place.version)}


def _read_parts(body: bytes, places: Places, _: str | None) -> dict[Place, UserFile]:
    """Read and check the file of several outputs."""
    found = dict[Place, UserFile]()
    for part, file in outputsfile.read(body).items():
        name, _, version = part.partition(outputsfile.MARK)
        there = places.of(name)
        place = _place_for(file, [each for each in there if each not in found] or there)
        if version and place.output.bundle.manifest.feature_space != file.index.feature_space:
            raise Conflict(
                f"the file has heads of output {name!r} in feature space {file.index.feature_space}, which no version "
                f"of model {places.model.name!r} computes here: serve version {version} here too, or export with "
                "model_version, which takes the heads of that version alone"
            )
        if place in found:
            raise Unprocessable(f"the file has output {name!r} twice in one feature space")
        found[place] = _checked(file, place.output, place.version)
    return found


def _place_for(file: UserFile, places: Sequence[Place]) -> Place:
    """Find where a file's heads are valid; the newest version where that is nowhere, which `_checked` refuses."""
    space = file.index.feature_space
    return next((place for place in places if place.output.bundle.manifest.feature_space == space), places[0])


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
