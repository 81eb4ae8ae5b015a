"""One version of a model: served, or not and why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.bundle import Bundle, Manifest
from service.engine.head_bank import HeadBank
from service.engine.memory import ModelMemory
from service.engine.runtime import Runtime
from service.engine.scheduler import Scheduler
from service.engine.statistics import ModelStatistics
from service.media import Media
from service.personal.records import Scope


def scope_of(manifest: Manifest) -> Scope:
    """Return where heads of a model are valid: rows of a head are classes, so other labels are another scope."""
    labels = hashlib.sha256("\0".join(manifest.labels).encode()).hexdigest()[:8]
    return Scope(manifest.name, f"{manifest.feature_space}-{labels}")


@dataclass(slots=True, eq=False)
class LoadedModel:
    """One version of a model that answers.

    Attributes:
        scope: where heads of this model are valid.
        label_bytes: the labels in UTF-8, an object array `(K,)`.
        media: reads what is not a tensor.
        uses: requests that are about to queue rows here, for which a version that is unloaded waits.
        answers_begun: JSON that answers of `infer` begin with, by what determines it.
        serial: its number among all that were ever loaded, by which processes name it to each other.
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
    scope: Scope = field(init=False)
    label_bytes: NDArray[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.scope = scope_of(self.bundle.manifest)
        self.label_bytes = np.array([label.encode() for label in self.bundle.manifest.labels], object)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.bundle.manifest.name

    @property
    def version(self) -> int:
        """The version's number."""
        return self.bundle.manifest.version

    @property
    def bank(self) -> HeadBank:
        """Its resident heads, in the process that owns the store."""
        assert self.resident is not None
        return self.resident

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
