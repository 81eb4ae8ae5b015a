"""Which versions answer, and how one that is replaced or taken out ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator

from service.errors import Unavailable, UnknownModel
from service.loaded import BrokenModel, LoadedModel
from service.loading import OnBatch

log = logging.getLogger("headway")

RETIREMENT_SECONDS = 60.0
"""Time that requests which chose a version have to queue their rows after it was replaced or unloaded."""


class Catalogue:
    """Versions of models by name, as one process serves them.

    Attributes:
        on_batch: called where a batch ran, with its report.
        on_unload: called when a version that was taken out has answered its last request.
    """

    def __init__(self) -> None:
        self._retiring: set[asyncio.Task[None]] = set()
        self._models: dict[str, dict[int, LoadedModel | BrokenModel]] = {}
        self.on_unload: Callable[[LoadedModel], None] = lambda model: None
        self.on_batch: OnBatch = lambda model, report: None

    def put(self, name: str, version: int, model: LoadedModel | BrokenModel) -> None:
        """Serve a version from now on; what it replaces goes on with the requests that chose it."""
        before = self._models.setdefault(name, {}).get(version)
        self._models[name] = {**self._models[name], version: model}
        if isinstance(before, LoadedModel):
            self._retire(before)

    def take(self, name: str, version: int) -> None:
        """Serve a version no more; requests that chose it are answered."""
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
        each = (model, *model.outputs)
        while (any(m.uses for m in each) or model.scheduler.pending) and time.monotonic() < deadline:  # noqa: ASYNC110 - seldom
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

    def served(self) -> Iterator[LoadedModel]:
        """Every output of every version that answers, each as a model of one output."""
        return (output for model in self.loaded() for output in model.each)

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

    def stop(self) -> None:
        """Answer what is queued and end the engines."""
        for model in self.loaded():
            model.scheduler.stop()
