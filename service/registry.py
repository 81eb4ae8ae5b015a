"""Models and versions: load, verify, warm up, find, unload."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from exporters import bundle as bundles
from exporters.bundle import Bundle, BundleError
from models.heads.calibration import shared_head
from service.config import Settings
from service.engine.head_bank import HeadBank
from service.engine.machine import this_machine
from service.engine.runtime import Runtime
from service.engine.scheduler import BatchReport, Scheduler
from service.errors import Unavailable, UnknownModel
from service.personal.records import Scope

log = logging.getLogger("headway")


def threads_of(settings: Settings) -> int:
    """Threads of one forward: as set, or else by the machine."""
    return settings.threads or (this_machine().threads if settings.device == "cpu" else 1)


OnBatch = Callable[["LoadedModel", BatchReport], None]


@dataclass(slots=True)
class LoadedModel:
    """One version of a model that answers."""

    bundle: Bundle
    runtime: Runtime
    scheduler: Scheduler
    bank: HeadBank

    @property
    def name(self) -> str:
        """The model's name."""
        return self.bundle.manifest.name

    @property
    def version(self) -> int:
        """The version's number."""
        return self.bundle.manifest.version

    @property
    def scope(self) -> Scope:
        """Where heads of this model are valid."""
        # Rows of a head are classes: the same features with other labels are another scope.
        labels = hashlib.sha256("\0".join(self.bundle.manifest.labels).encode()).hexdigest()[:8]
        return Scope(self.name, f"{self.bundle.manifest.feature_space}-{labels}")


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
            manifest = model.bundle.manifest
            if (manifest.name, manifest.version) != (name, version):
                raise BundleError(f"{path} holds {manifest.name} version {manifest.version}")
        except Exception as e:  # whatever a bundle does wrong, the other models go on
            log.error("model %s version %s is not served: %s", name, version, e)
            return BrokenModel(name, version, str(e))
        placed = model.runtime.placement
        shares = {} if placed is None else placed.shares
        where = ", ".join(f"{share:.0%} of nodes on {provider}" for provider, share in shares.items())
        log.info("model %s version %s is ready on %s (%s)", name, version, model.runtime.provider, where)
        return model

    def _build(self, path: Path) -> LoadedModel:
        s = self._settings
        bundle = bundles.load(path)
        runtime = Runtime.of(bundle, device=s.device, threads=threads_of(s), max_batch=s.max_batch)
        bank = HeadBank(shared_head(bundle.prior), s.resident_heads)

        def report(batch: BatchReport) -> None:
            self.on_batch(model, batch)

        scheduler = Scheduler(
            f"{bundle.manifest.name}-{bundle.manifest.version}",
            runtime.run,
            bank.logits,
            max_batch=s.max_batch,
            queue_rows=s.queue_rows,
            on_batch=report,
        )
        model = LoadedModel(bundle, runtime, scheduler, bank)
        return model

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
