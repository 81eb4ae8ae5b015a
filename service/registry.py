"""The models folder: load what it holds, and keep to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from exporters import bundle as bundles
from exporters.bundle import BundleError
from service import loading
from service.catalogue import Catalogue
from service.config import Settings
from service.errors import UnknownModel, Unprocessable
from service.loaded import BrokenModel, LoadedModel

log = logging.getLogger("headway")

OnChange = Callable[[str, int, LoadedModel | BrokenModel | None], Awaitable[None]]


async def _nobody_follows(name: str, version: int, model: LoadedModel | BrokenModel | None) -> None:
    """No other process serves the same."""


class Registry(Catalogue):
    """The models of one folder, in the process that owns the store.

    Attributes:
        on_change: awaited before a change is answered, with a version and what it is now (None: gone).
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self._changing = asyncio.Lock()
        self.on_change: OnChange = _nobody_follows

    @property
    def device(self) -> str:
        """Where models run: cpu or cuda."""
        return self.settings.device

    def load_all(self) -> None:
        """Load every version found; one that fails is kept with its reason and does not stop the others.

        Raises:
            BundleError: the folder does not exist or holds no bundle.
        """
        found = bundles.find(self.settings.models)
        if not found:
            raise BundleError(f"there are no bundles in {self.settings.models}; `headway export` writes them")
        for name, versions in found.items():
            for version in versions:
                self._models.setdefault(name, {})[version] = self._load(self._path(name, version))

    def _path(self, name: str, version: int) -> Path:
        return self.settings.models / name / str(version)

    def _load(self, path: Path) -> LoadedModel | BrokenModel:
        name, version = path.parent.name, int(path.name)
        try:
            model = loading.load(path, self.settings, lambda model, report: self.on_batch(model, report))
        except Exception as e:  # whatever a bundle does wrong, the other models go on
            log.error("model %s version %s is not served: %s", name, version, e)
            return BrokenModel(name, version, str(e))
        placed = model.runtime.placement
        shares = {} if placed is None else placed.shares
        where = ", ".join(f"{share:.0%} of nodes on {provider}" for provider, share in shares.items())
        log.info("model %s version %s is ready on %s (%s)", name, version, model.runtime.provider, where)
        return model

    async def index(self) -> list[dict[str, str]]:
        """List versions that are served, that could not be, and that lie in the folder and are not loaded."""
        found = await asyncio.to_thread(bundles.find, self.settings.models)
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
            found = (await asyncio.to_thread(bundles.find, self.settings.models)).get(name)
            if not found:
                raise UnknownModel(f"there is no bundle of a model {name!r} in the models folder")
            held = self._models.get(name, {})
            loaded, failed = [], []
            for version in found:
                path = self._path(name, version)
                before = held.get(version)
                if isinstance(before, LoadedModel) and await asyncio.to_thread(_unchanged, before, path):
                    continue
                made = await asyncio.to_thread(self._load, path)
                if isinstance(made, LoadedModel):
                    loaded.append(version)
                    await self._change(name, version, made)
                    continue
                failed.append(made)
                if not isinstance(before, LoadedModel):
                    await self._change(name, version, replace(made, blocking=False))
            gone = [version for version in self._models.get(name, {}) if version not in found]
            for version in gone:
                await self._change(name, version, None)
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
                await self._change(name, version, None)
            return versions

    async def _change(self, name: str, version: int, model: LoadedModel | BrokenModel | None) -> None:
        if model is None:
            self.take(name, version)
        else:
            self.put(name, version, model)
        await self.on_change(name, version, model)

    def problems(self) -> list[str]:
        """Why the service is not ready; empty when it is."""
        if not self._models:
            return ["no model is loaded"]
        broken = [m for versions in self._models.values() for m in versions.values() if isinstance(m, BrokenModel)]
        return [f"{m.name} version {m.version}: {m.reason}" for m in broken if m.blocking]


def _unchanged(model: LoadedModel, path: Path) -> bool:
    """Whether a version's folder still holds what is served."""
    try:
        return bundles.read_manifest(path)[1] == model.bundle.digest
    except (BundleError, OSError):
        return False
