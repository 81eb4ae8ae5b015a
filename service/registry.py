"""Models and versions: load, verify, warm up, find, unload."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.bundle import Bundle, BundleError
from models.heads.calibration import shared_head
from service.config import Settings
from service.engine.head_bank import HeadBank
from service.engine.runtime import Runtime, RuntimeUnavailable
from service.engine.scheduler import BatchReport, Scheduler
from service.errors import Unavailable, UnknownModel
from service.personal.records import Scope

log = logging.getLogger("headway")

INLINE_ROW_SECONDS = 0.001
"""A forward of one row shorter than this runs on the event loop: handing it to a thread and back costs more."""

OnBatch = Callable[["LoadedModel", BatchReport], None]


@dataclass(slots=True, eq=False)
class LoadedModel:
    """One version of a model that answers.

    Attributes:
        scope: where heads of this model are valid.
        label_bytes: the labels in UTF-8, an object array `(K,)`.
    """

    bundle: Bundle
    runtime: Runtime
    scheduler: Scheduler
    bank: HeadBank
    scope: Scope = field(init=False)
    label_bytes: NDArray[Any] = field(init=False)

    def __post_init__(self) -> None:
        manifest = self.bundle.manifest
        # Rows of a head are classes: the same features with other labels are another scope.
        labels = hashlib.sha256("\0".join(manifest.labels).encode()).hexdigest()[:8]
        self.scope = Scope(self.name, f"{manifest.feature_space}-{labels}")
        self.label_bytes = np.array([label.encode() for label in manifest.labels], object)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.bundle.manifest.name

    @property
    def version(self) -> int:
        """The version's number."""
        return self.bundle.manifest.version


@dataclass(frozen=True, slots=True)
class BrokenModel:
    """A version that cannot be served, and why."""

    name: str
    version: int
    reason: str


class Registry:
    """The models of one folder."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._models: dict[str, dict[int, LoadedModel | BrokenModel]] = {}
        self.on_batch: OnBatch = lambda model, report: None

    @property
    def device(self) -> str:
        """Where models run: cpu or cuda."""
        return self._settings.device

    def load_all(self) -> None:
        """Load every version found; one that fails is kept with its reason and does not stop the others.

        Raises:
            BundleError: the folder does not exist or holds no bundle.
        """
        found = bundles.find(self._settings.models)
        if not found:
            raise BundleError(f"there are no bundles in {self._settings.models}; `headway export` writes them")
        for name, versions in found.items():
            for version in versions:
                self._models.setdefault(name, {})[version] = self._load(self._settings.models / name / str(version))

    def _load(self, path: Path) -> LoadedModel | BrokenModel:
        name, version = path.parent.name, int(path.name)
        try:
            model = self._build(path)
        except Exception as e:  # whatever a bundle does wrong, the other models go on
            log.error("model %s version %s is not served: %s", name, version, e)
            return BrokenModel(name, version, str(e))
        log.info("model %s version %s is ready on %s", name, version, model.runtime.provider)
        return model

    def _build(self, path: Path) -> LoadedModel:
        s = self._settings
        bundle = bundles.load(path)
        manifest = bundle.manifest
        if (manifest.name, str(manifest.version)) != (path.parent.name, path.name):
            raise BundleError(f"{path} holds {manifest.name} version {manifest.version}")
        runtime = Runtime(bundle.backbone, device=s.device, threads=s.threads)
        row_seconds = self._warm_up(bundle, runtime)
        bank = HeadBank(shared_head(bundle.prior), s.resident_heads, max_bytes=s.head_bank_bytes)

        def report(batch: BatchReport) -> None:
            self.on_batch(model, batch)

        scheduler = Scheduler(
            f"{manifest.name}-{manifest.version}",
            runtime.run,
            bank.logits,
            max_batch=s.max_batch,
            queue_rows=s.queue_rows,
            max_delay=s.max_delay_us / 1e6,
            inline=s.dispatch == "inline"
            or (s.dispatch == "auto" and s.device == "cpu" and row_seconds < INLINE_ROW_SECONDS),
            on_batch=report,
        )
        model = LoadedModel(bundle, runtime, scheduler, bank)
        return model

    def _warm_up(self, bundle: Bundle, runtime: Runtime) -> float:
        """Run batches of zeros through the graph; returns the seconds of one row alone."""
        window, d = bundle.manifest.input.window_shape, bundle.manifest.feature_dim
        for rows in (self._settings.max_batch, 1):
            features = runtime.run(np.zeros((rows, *window), np.float32))
            if features.shape != (rows, d) or not np.isfinite(features).all():
                raise RuntimeUnavailable(
                    f"the graph gives features of shape {features.shape} for {rows} windows of zeros; "
                    f"finite ones of shape {(rows, d)} were expected"
                )
        one, seconds = np.zeros((1, *window), np.float32), []
        for _ in range(5):
            begin = time.monotonic()
            runtime.run(one)
            seconds.append(time.monotonic() - begin)
        return min(seconds)

    def by_name(self) -> dict[str, list[LoadedModel | BrokenModel]]:
        """All versions of all models, ascending."""
        return {name: [v for _, v in sorted(versions.items())] for name, versions in self._models.items()}

    def loaded(self) -> Iterator[LoadedModel]:
        """Every version that answers."""
        return (m for versions in self.by_name().values() for m in versions if isinstance(m, LoadedModel))

    def candidates(self, name: str, version: str | int | None = None) -> list[LoadedModel]:
        """Versions that may answer an (un)versioned request, newest first.

        Raises:
            UnknownModel: no such model or version.
            Unavailable: it is there but not ready.
        """
        versions = self._models.get(name)
        if versions is None:
            raise UnknownModel(f"there is no model {name!r}; there are {', '.join(sorted(self._models)) or 'none'}")
        if version is not None:
            number = int(version) if str(version).isdecimal() and len(str(version)) <= 18 else -1
            if number not in versions:
                raise UnknownModel(
                    f"model {name!r} has no version {version}; it has {', '.join(map(str, sorted(versions)))}"
                )
            versions = {number: versions[number]}
        ready = [m for _, m in sorted(versions.items(), reverse=True) if isinstance(m, LoadedModel)]
        if not ready:
            reasons = "; ".join(m.reason for m in versions.values() if isinstance(m, BrokenModel))
            raise Unavailable(f"model {name!r} is not ready: {reasons}", retry_after=5)
        return ready

    def get(self, name: str, version: str | int | None = None) -> LoadedModel:
        """Return the newest version that answers, or the one asked for."""
        return self.candidates(name, version)[0]

    def problems(self) -> list[str]:
        """Why the service is not ready; empty when it is."""
        if not self._models:
            return ["no model is loaded"]
        broken = [m for versions in self._models.values() for m in versions.values() if isinstance(m, BrokenModel)]
        return [f"{m.name} version {m.version}: {m.reason}" for m in broken]

    def stop(self) -> None:
        """Answer what is queued and end the engines."""
        for model in self.loaded():
            model.scheduler.stop()
