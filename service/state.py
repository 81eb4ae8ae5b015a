"""What routes work with: one object on the app, and shorthands to reach it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, TypeVar

from fastapi import Depends, Path, Query, Request

from service.config import Settings
from service.errors import InvalidRequest, NotFound, Unavailable
from service.loaded import LoadedModel
from service.observability import Metrics
from service.personal.adapt import Adapter
from service.personal.calibrate import Calibrator
from service.personal.following import Following
from service.personal.recalibrate import Recalibrator
from service.personal.resolve import Resolver
from service.personal.store import Store
from service.protocol.inputs import user_id
from service.registry import Registry

if TYPE_CHECKING:
    from service.answered import Answer
    from service.data_plane import DataPlane

T = TypeVar("T")

ModelName = Annotated[str, Path(description="name of a model")]
VersionName = Annotated[str, Path(description="version of a model")]
TaskName = Annotated[str | None, Query(description="which of several outputs; a model with one has no name for it")]


def known_query(request: Request) -> None:
    """Refuse misspelt query parameters, which would do something else than was meant.

    Raises:
        InvalidRequest: the route has no such parameter.
    """
    if not request.query_params:
        return
    route = request.app.openapi()["paths"][request.scope["route"].path][request.method.lower()]
    known = sorted(p["name"] for p in route.get("parameters", ()) if p["in"] == "query")
    for name in request.query_params:
        if name not in known:
            raise InvalidRequest(f"unknown query parameter {name[:64]!r}; known are: {', '.join(known) or 'none'}")


@dataclass(slots=True)
class Services:
    """The parts of a running service.

    Attributes:
        answered_elsewhere: finds a prediction that another process answered, by its number and the prediction's id.
        erased_elsewhere: lets other processes drop all that they remember of a user.
    """

    settings: Settings
    models: Registry
    metrics: Metrics
    plane: DataPlane
    answered_elsewhere: Callable[[int, str], Awaitable[Answer | None]] | None = None
    erased_elsewhere: Callable[[str], None] = lambda user: None
    _store: Store | None = None
    _resolver: Resolver | None = None
    _calibrator: Calibrator | None = None
    _adapter: Adapter | None = None
    _following: Following | None = None
    _recalibrator: Recalibrator | None = None
    _problems: list[str] = field(default_factory=lambda: ["starting"])

    def opened(self, store: Store) -> None:
        """Take the opened store into use; the service is ready when its models are."""
        self._store = store
        self.plane.heads = self._resolver = Resolver(store, self.models.served)
        self._calibrator = Calibrator(store, self._resolver)
        self._adapter = Adapter(store, self._resolver, self._calibrator)
        self._following = Following(
            store, self._resolver, self._calibrator, self._adapter, self.models.served, self.metrics.drifted
        )
        self.plane.observations = self._following.observations
        self._resolver.on_erase = self.erased
        self._recalibrator = Recalibrator(store, self.models, self._calibrator, self._resolver)
        self._problems = []

    def erased(self, model: str | None, user: str) -> None:
        """Let nothing be left in memory of a user who is erased, of a model or (None) of all."""
        self.plane.feedback.forget(user)
        self.following.forget(model, user)
        self.erased_elsewhere(user)

    @property
    def problems(self) -> list[str]:
        """Why the service is not ready; empty when it is."""
        if self.draining:
            return ["draining"]
        return self._problems or self.models.problems()

    @property
    def draining(self) -> bool:
        """Whether the service is ending."""
        return self.plane.draining

    @property
    def store(self) -> Store:
        """The opened store."""
        return _started(self._store)

    @property
    def resolver(self) -> Resolver:
        """The resolver of heads."""
        return _started(self._resolver)

    @property
    def calibrator(self) -> Calibrator:
        """The calibrator."""
        return _started(self._calibrator)

    @property
    def adapter(self) -> Adapter:
        """What adapts heads without labels."""
        return _started(self._adapter)

    @property
    def following(self) -> Following:
        """What lets heads follow their users."""
        return _started(self._following)

    @property
    def recalibrator(self) -> Recalibrator:
        """What moves users' heads to another feature space."""
        return _started(self._recalibrator)


def _started(part: T | None) -> T:
    if part is None:
        raise Unavailable("the service is starting", retry_after=1)
    return part


def services(request: Request) -> Services:
    """Return the parts of the running service."""
    found: Services = request.app.state.services
    return found


async def model_of(request: Request, model: ModelName) -> AsyncIterator[LoadedModel]:
    """Find a model's newest version, note it for the request's metrics, and hold it until the request ends.

    Raises:
        UnknownModel, Unavailable: as the registry does.
    """
    with services(request).models.get(model).used() as found:
        yield note(request, found)


async def output_of(request: Request, model: ModelName, task: TaskName = None) -> AsyncIterator[LoadedModel]:
    """Do the same with the output that `task` names, which may be left out where there is one.

    Raises:
        InvalidRequest: there is no such output, or there are several and none is named.
    """
    with services(request).models.get(model).used() as found:
        yield note(request, found.of(task))


async def version_of(request: Request, model: ModelName, version: VersionName) -> AsyncIterator[LoadedModel]:
    """Do the same with one version of a model."""
    with services(request).models.get(model, version).used() as found:
        yield note(request, found)


def note(request: Request, model: LoadedModel) -> LoadedModel:
    """Note which model answers, for the request's metrics."""
    request.state.model, request.state.model_version = model.name, model.version
    return model


def known_user(user: str) -> str:
    """Check the user in a path.

    Raises:
        NotFound: it cannot be a user's id.
    """
    try:
        return user_id(user)
    except Exception as e:
        raise NotFound(str(e)) from e


ServicesOf = Annotated[Services, Depends(services)]
ModelOf = Annotated[LoadedModel, Depends(model_of)]
OutputOf = Annotated[LoadedModel, Depends(output_of)]


def classifier_of(model: OutputOf) -> LoadedModel:
    """Find an output as `output_of` does, for what models of labels only offer.

    Raises:
        Unprocessable: it is a regression.
    """
    return model.classifier()


ClassifierOf = Annotated[LoadedModel, Depends(classifier_of)]
VersionOf = Annotated[LoadedModel, Depends(version_of)]
UserId = Annotated[str, Path(description="user id: 1 to 256 printable characters")]
