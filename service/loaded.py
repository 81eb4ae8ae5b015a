"""One version of a model: served, or not and why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.bundle import MOST_USER_LABELS, Bundle, Manifest
from models.heads.calibration import shared_head
from models.heads.head import Head
from models.heads.prior import Prior
from models.heads.regression_prior import RegressionPrior
from service.engine.head_bank import HeadBank
from service.engine.head_table import HeadReader
from service.engine.memory import ModelMemory
from service.engine.runtime import Runtime
from service.engine.scheduler import Scheduler
from service.engine.statistics import ModelStatistics
from service.errors import InvalidRequest, Unprocessable
from service.media import Media
from service.personal.records import Scope


def scope_of(manifest: Manifest) -> Scope:
    """Return where heads of a model are valid: rows of a head are classes or targets, so others are another scope."""
    return Scope(manifest.name, f"{manifest.feature_space}-{_rows_mark(manifest, manifest.user_labels)}")


def _rows_mark(manifest: Manifest, room: int) -> str:
    names = (*(["regression"] if manifest.targets else []), *manifest.head_rows, *([f"+{room}"] if room else []))
    return hashlib.sha256("\0".join(names).encode()).hexdigest()[:8]


def columns_of(manifest: Manifest) -> NDArray[np.int64] | None:
    """Columns of the graph's features that heads are over, where these are not all."""
    return np.concatenate([np.arange(*pair) for pair in manifest.features]) if manifest.features else None


def same_labels(scope: Scope, manifest: Manifest) -> bool:
    """Whether a scope's labels are those of a manifest, whatever room either has for labels of users' own."""
    mark = scope.feature_space.rpartition("-")[2]
    return any(_rows_mark(manifest, room) == mark for room in range(MOST_USER_LABELS + 1))


def shared_of(bundle: Bundle) -> Head:
    """The head of those who have none, with room for labels of users' own."""
    if isinstance(bundle.population, RegressionPrior):
        return bundle.population.generic
    return shared_head(bundle.population.with_own(bundle.manifest.user_labels))


@dataclass(slots=True, eq=False, weakref_slot=True)
class LoadedModel:
    """One version of a model that answers, or one of several outputs of it.

    Where there are several outputs, each is a model of one output for all that is of users: heads, calibrations,
    versions. They share runtime and scheduler: one forward answers all.

    Attributes:
        scope: where heads of this model are valid.
        columns: of a head's logits: the labels, and room for those of users' own; or the targets.
        label_bytes: the labels in UTF-8, an object array `(K,)`; or the targets `(T,)`.
        targets: of a regression; none of a classification.
        media: reads what is not a tensor.
        uses: requests that are about to queue rows here, for which a version that is unloaded waits.
        answers_begun: JSON that answers of `infer` begin with, by what determines it.
        serial: its number among all that were ever loaded, by which processes name it to each other.
        outputs: where there are several, each of them, the first one first, which shares heads and serial with this.
        output: its name, where it is one of several.
        reads: columns of the graph's features that its heads are over; None for all.
    """

    bundle: Bundle
    runtime: Runtime
    scheduler: Scheduler
    memory: ModelMemory
    statistics: ModelStatistics
    serial: int
    resident: HeadBank | None
    media: Media
    uses: int = 0
    answers_begun: dict[Any, bytes] = field(default_factory=dict)
    outputs: tuple[LoadedModel, ...] = ()
    output: str = field(init=False)
    reads: NDArray[np.int64] | None = field(init=False)
    scope: Scope = field(init=False)
    targets: tuple[str, ...] = field(init=False)
    columns: int = field(init=False)
    label_bytes: NDArray[Any] = field(init=False)
    _prior: Prior | None = field(init=False)

    def __post_init__(self) -> None:
        manifest, population = self.bundle.manifest, self.bundle.population
        self.scope = scope_of(manifest)
        self.output = "" if manifest.outputs else manifest.output
        self.reads = columns_of(manifest) if self.output else None
        self.targets = tuple(target.name for target in manifest.targets)
        self._prior = population.with_own(manifest.user_labels) if isinstance(population, Prior) else None
        self.columns = len(self.targets) or self.prior.classes
        self.label_bytes = np.array([name.encode() for name in self.labels or self.targets], object)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.bundle.manifest.name

    @property
    def version(self) -> int:
        """The version's number."""
        return self.bundle.manifest.version

    @property
    def called(self) -> str:
        """The model's name as sentences have it, with the output's."""
        return f"{self.name!r} (output {self.output!r})" if self.output else repr(self.name)

    @property
    def each(self) -> tuple[LoadedModel, ...]:
        """Its outputs; itself where it has one."""
        return self.outputs or (self,)

    def of(self, task: str | None) -> LoadedModel:
        """Return the output named; of a model with one output, which has no name, that.

        Raises:
            InvalidRequest: there is no such output, or there are several and none is named.
        """
        if not self.outputs:
            if task is not None:
                raise InvalidRequest(f"model {self.name!r} has one output, which has no name: leave task out")
            return self
        names = ", ".join(output.output for output in self.outputs)
        if task is None:
            raise InvalidRequest(f"model {self.name!r} has several outputs: name one by task, one of {names}")
        for output in self.outputs:
            if output.output == task:
                return output
        raise InvalidRequest(f"model {self.name!r} has no output {task[:64]!r}; it has {names}")

    def taken(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return of the graph's features `(n, d)` those that heads of this output are over."""
        return features if self.reads is None else features[:, self.reads]

    @property
    def labels(self) -> tuple[str, ...]:
        """The bundle's K labels."""
        return self.bundle.manifest.labels

    @property
    def prior(self) -> Prior:
        """The population's, with room for labels of users' own.

        Raises:
            Unprocessable: the model is a regression.
        """
        if self._prior is None:
            raise Unprocessable(
                f"model {self.called} is a regression of {', '.join(self.targets)}; samples, corrections, adaptations, "
                "and moving users to another feature space are offered by models of labels only"
            )
        return self._prior

    @property
    def sizes(self) -> dict[Scope, tuple[int, int]]:
        """Classes and personal features of each output with labels, by scope: what windows are counted in."""
        return {each.scope: (each.prior.classes, each.prior.personal) for each in self.each if not each.targets}

    @property
    def population(self) -> Prior | RegressionPrior:
        """What training knows of people: `prior`, or the one of a regression."""
        return self.bundle.regression if self._prior is None else self._prior

    def classifier(self) -> LoadedModel:
        """Return the model, for what models of labels only offer.

        Raises:
            Unprocessable: it is a regression.
        """
        _ = self.prior
        return self

    def prior_of(self, own: tuple[str, ...]) -> Prior:
        """Return the population's prior, with a user's own labels behind the bundle's."""
        return self.bundle.prior.with_own(len(own)).named((*self.labels, *own))

    @property
    def bank(self) -> HeadBank:
        """Its resident heads, in the process that owns the store."""
        assert self.resident is not None
        return self.resident

    def floors(self, slots: NDArray[np.int64], level: int) -> NDArray[np.float32]:
        """Floors of sets of labels `(n,)` at a level of coverage, of the heads in slots (or handles, in a front end).

        Raises:
            HeadMoved: a handle is void.
        """
        table = self.memory.table
        return (HeadReader(table) if self.resident is None else table).floors_at(slots, level)

    @contextmanager
    def used(self) -> Iterator[LoadedModel]:
        """Keep the engine from ending while a request that chose this version goes on."""
        self.uses += 1
        try:
            yield self
        finally:
            self.uses -= 1


@dataclass(frozen=True, slots=True)
class BrokenModel:
    """A version that cannot be served, and why."""

    name: str
    version: int
    reason: str
    blocking: bool = True
    """Whether the service is not ready for it: so at the start, not when an older version goes on in its place."""
