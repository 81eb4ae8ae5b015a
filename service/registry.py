"""Models and versions: load, verify, warm up, find, unload."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from exporters import bundle as bundles
from exporters.bundle import Bundle, BundleError
from models.heads.calibration import shared_head
from service.config import Settings
from service.engine.head_bank import HeadBank
from service.engine.jobs import BatchReport
from service.engine.machine import this_machine
from service.engine.runtime import Runtime
from service.engine.scheduler import Scheduler
from service.errors import Unavailable, UnknownModel, Unprocessable
from service.loaded import BrokenModel, LoadedModel

log = logging.getLogger("headway")

RETIREMENT_SECONDS = 60.0
"""Time that requests which chose a version have to queue their rows after it was replaced or unloaded."""
INLINE_ROW_SECONDS = 0.001
"""A forward of one row shorter than this runs on the event loop: handing it to a thread and back costs more."""


def threads_of(settings: Settings) -> int:
    """Threads of one forward: as set, or else by the machine."""
    return settings.threads or (this_machine().threads if settings.device == "cpu" else 1)


OnBatch = Callable[["LoadedModel", BatchReport], None]


class Registry:
    """The models of one folder."""

    def __init__(self, settings: Settings) -> None:
        self.settings = self._settings = settings
        self._changing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self.on_unload: Callable[[LoadedModel], None] = lambda model: None
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
        placed = model.runtime.placement
        shares = {} if placed is None else placed.shares
        where = ", ".join(f"{share:.0%} of nodes on {provider}" for provider, share in shares.items())
        log.info("model %s version %s is ready on %s (%s)", name, version, model.runtime.provider, where)
        return model

    def _build(self, path: Path) -> LoadedModel:
        s = self._settings
        bundle = bundles.load(path)
        manifest = bundle.manifest
        if (manifest.name, str(manifest.version)) != (path.parent.name, path.name):
            raise BundleError(f"{path} holds {manifest.name} version {manifest.version}")
        runtime = Runtime.of(bundle, device=s.device, threads=threads_of(s), max_batch=s.max_batch)
        row_seconds = _row_seconds(bundle, runtime)
        bank = HeadBank(shared_head(bundle.prior), s.resident_heads, max_bytes=s.head_bank_bytes)

        def report(batch: BatchReport) -> None:
            model.statistics.batch(batch)
            self.on_batch(model, batch)

        scheduler = Scheduler(
            f"{manifest.name}-{manifest.version}",
            runtime.run,
            bank.scores,
            max_batch=s.max_batch,
            queue_rows=s.queue_rows,
            max_delay=s.max_delay_us / 1e6,
            padding=manifest.input.padding,
            inline=s.dispatch == "inline"
            or (s.dispatch == "auto" and s.device == "cpu" and row_seconds < INLINE_ROW_SECONDS),
            on_batch=report,
        )
        model = LoadedModel(bundle, runtime, scheduler, bank)
        return model

    async def index(self) -> list[dict[str, str]]:
        """List versions that are served, that could not be, and that lie in the folder and are not loaded."""
        found = await asyncio.to_thread(bundles.find, self._settings.models)
        entries = []
        for name in sorted({*found, *self._models}):
            held = self._models.get(name, {})
            for version in sorted({*found.get(name, []), *held}):
                m = held.get(version)
                state, reason = "UNAVAILABLE", "unloaded" if m is None else ""
                if isinstance(m, LoadedModel):
                    state = "READY"
                elif m is not None:
                    reason = m.reason
                entries.append({"name": name, "version": str(version), "state": state, "reason": reason})
        return entries

    async def load(self, name: str) -> dict[str, list[int]]:
        """Bring a model to what its folder holds: new versions are served, vanished ones retired.

        Raises:
            UnknownModel: the folder holds no version of it.
            Unprocessable: a version cannot be served; the others are, and what was served before goes on.
        """
        async with self._changing:
            found = (await asyncio.to_thread(bundles.find, self._settings.models)).get(name)
            if not found:
                raise UnknownModel(f"there is no bundle of a model {name!r} in the models folder")
            held = self._models.get(name, {})
            loaded, failed = [], []
            for version in found:
                path = self._settings.models / name / str(version)
                before = held.get(version)
                if isinstance(before, LoadedModel) and await asyncio.to_thread(_unchanged, before, path):
                    continue
                made = await asyncio.to_thread(self._load, path)
                if isinstance(made, LoadedModel):
                    loaded.append(version)
                    self._put(name, version, made)
                    continue
                failed.append(made)
                if not isinstance(before, LoadedModel):
                    self._put(name, version, replace(made, blocking=False))
            gone = [version for version in self._models.get(name, {}) if version not in found]
            for version in gone:
                self._take(name, version)
            if failed:
                reasons = "; ".join(f"version {m.version}: {m.reason}" for m in failed)
                going_on = [str(v) for v, m in sorted(self._models[name].items()) if isinstance(m, LoadedModel)]
                raise Unprocessable(
                    f"model {name!r} {reasons}; " + (f"served: {', '.join(going_on)}" if going_on else "none is served")
                )
            return {"loaded": loaded, "unloaded": gone, "serving": sorted(self._models[name])}

    async def unload(self, name: str) -> list[int]:
        """Take all versions of a model out of service; rows that are queued are still answered.

        Raises:
            UnknownModel: there is no such model.
        """
        async with self._changing:
            if name not in self._models:
                raise UnknownModel(f"there is no model {name!r} to unload")
            versions = sorted(self._models[name])
            for version in versions:
                self._take(name, version)
            return versions

    def _put(self, name: str, version: int, model: LoadedModel | BrokenModel) -> None:
        before = self._models.setdefault(name, {}).get(version)
        self._models[name] = {**self._models[name], version: model}
        if isinstance(before, LoadedModel):
            self._retire(before)

    def _take(self, name: str, version: int) -> None:
        versions = {v: m for v, m in self._models[name].items() if v != version}
        gone = self._models[name][version]
        if versions:
            self._models[name] = versions
        else:
            del self._models[name]
        if isinstance(gone, LoadedModel):
            self._retire(gone)

    def _retire(self, model: LoadedModel) -> None:
        """End an engine when the requests that chose it have queued their rows and been answered."""
        task = asyncio.get_running_loop().create_task(self._end(model))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _end(self, model: LoadedModel) -> None:
        deadline = time.monotonic() + RETIREMENT_SECONDS
        while (model.uses or model.scheduler.pending) and time.monotonic() < deadline:  # noqa: ASYNC110 - seldom
            await asyncio.sleep(0.05)
        await asyncio.to_thread(model.scheduler.stop)
        self.on_unload(model)
        log.info("model %s version %s is unloaded", model.name, model.version)

    async def retired(self) -> None:
        """Wait until every engine that was taken out of service has ended."""
        await asyncio.gather(*self._retiring, return_exceptions=True)

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
        return [f"{m.name} version {m.version}: {m.reason}" for m in broken if m.blocking]

    def stop(self) -> None:
        """Answer what is queued and end the engines."""
        for model in self.loaded():
            model.scheduler.stop()


def _unchanged(model: LoadedModel, path: Path) -> bool:
    """Whether a version's folder still holds what is served."""
    try:
        return bundles.read_manifest(path)[1] == model.bundle.digest
    except (BundleError, OSError):
        return False


def _row_seconds(bundle: Bundle, runtime: Runtime) -> float:
    """Seconds of a forward of one row."""
    spec, seconds = bundle.manifest.input, []
    one = np.zeros((1, *spec.sized(None if spec.padding is None else spec.padding.multiple_of)), spec.dtype)
    for _ in range(5):
        begin = time.monotonic()
        runtime.run(one)
        seconds.append(time.monotonic() - begin)
    return min(seconds)
