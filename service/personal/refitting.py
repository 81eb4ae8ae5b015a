"""A user's head, fitted anew in another feature space.

From their windows where these are kept, else from their statistics over the bundle's bridge, if that is good enough.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.heads import calibration, statistics
from models.heads.calibration import CalibrationError
from models.heads.guard import Verdict
from models.heads.head import Head
from models.heads.refit import refit
from models.heads.statistics import Statistics
from service.errors import TooManyRequests
from service.loaded import LoadedModel, same_labels
from service.personal.fitted import overlap_of
from service.personal.imports import classes_of
from service.personal.kept import Kept
from service.personal.records import Scope, Version
from service.personal.store import Store
from service.personal.transfer import statistics_of
from service.personal.user_data import UserData

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Refitted:
    """A head in the new feature space, what it was fitted from, and what the guard said.

    `by` is `inputs`, `bridge` or `statistics`; `own` are labels of the user's own; `kept` the windows, in new features;
    `weight` the share of the personal head that the one before had.
    """

    head: Head
    by: str
    method: str
    statistics: Statistics
    verdict: Verdict
    warnings: tuple[str, ...]
    own: tuple[str, ...]
    kept: Kept | None = None
    weight: float = 1.0

    def report(self, model: LoadedModel, source: Scope, before: Version) -> dict[str, Any]:
        """Say what became of a version, in the words of a calibration's report."""
        verdict = self.verdict
        return {
            "model": model.name,
            "model_version": str(model.version),
            **({"task": model.output} if model.output else {}),
            "origin": "recalibration",
            "by": self.by,
            "from": {"feature_space": source.feature_space.rpartition("-")[0], "version": before.version},
            "outcome": verdict.outcome,
            "evidence": verdict.evidence,
            "reason": verdict.reason,
            "method": self.method,
            "mode": "replace",
            "weight": verdict.weight if self.by == "inputs" else self.weight,
            "remembered": True,
            "classes": classes_of(self.statistics, (*model.labels, *self.own)),
            "metrics": {
                name: None if (score := getattr(verdict, name)) is None else asdict(score)
                for name in ("shared", "previous", "candidate")
            },
            "transfer": None if verdict.transfer is None else asdict(verdict.transfer),
            "warnings": list(self.warnings),
        }


class Refitter:
    """Fits heads anew, off the event loop; `worked` counts the seconds that took, until somebody takes them."""

    def __init__(self, store: Store, data: UserData) -> None:
        self._store, self._data = store, data
        self.worked = 0.0

    async def refitted(self, model: LoadedModel, source: Scope, user: str, version: Version) -> Refitted | str:
        """Fit a user's head anew in a version's feature space, or say why not."""
        manifest, space = model.bundle.manifest, source.feature_space.rpartition("-")[0]
        if not same_labels(source, manifest):
            return "the labels of the new version are others"
        served = version.version
        if "anchor" in version.report:  # adapted without labels: what is kept is behind the version that was calibrated
            version = await self._store.version(source, user, version.report["anchor"]) or version
        method = str(version.report.get("method", "map"))
        own = (await self._data.enrolled(source, user)).own
        here = (await self._data.enrolled(model.scope, user)).own
        if len(own) > manifest.user_labels:
            return f"the new version has no room for the labels of their own, {', '.join(own)}"
        if own[: len(here)] != here[: len(own)]:
            return f"labels of their own are {', '.join(own)}, and {', '.join(here)} in the new version"
        windows = await self._data.retained(source, user, version.version)
        if windows is not None and windows.x is not None:
            return await self._from_windows(model, windows, windows.x, method, own)
        data = await statistics_of(self._store, source, user, version.version)
        if data is None and version.version != served:
            data = await statistics_of(self._store, source, user, served)
        if data is None:
            return "neither windows nor statistics are kept of them"
        stats, by = statistics.from_bytes(data).trimmed(len(model.labels) + len(own)), "statistics"
        if space != manifest.feature_space:  # else only the room for labels of their own is another
            bridge, entry = model.bundle.bridges.get(space), manifest.bridges.get(space)
            if bridge is None or entry is None:
                return f"the new version has no bridge from {space}, and no windows are kept of them"
            if not entry.parity.passes:
                loss = f"{entry.parity.mean_loss:.1%}"
                return f"the bridge from {space} is not good enough (loss {loss}), and no windows are kept of them"
            stats, by = bridge.statistics(stats), "bridge"
        weight = 1.0 if own else float(version.report.get("weight") or 1.0)
        found = await self._off_the_loop(partial(refit, stats, model.prior_of(own), method, weight))
        if found.head is None:
            return f"by their statistics: {found.verdict.reason}"
        return Refitted(found.head, by, found.method, stats, found.verdict, found.warnings, own, weight=weight)

    async def _off_the_loop(self, fit: Callable[[], T]) -> T:
        """Fit on a thread, and count the time."""
        begin = time.perf_counter()
        try:
            return await asyncio.to_thread(fit)
        finally:
            self.worked += time.perf_counter() - begin

    async def _from_windows(
        self, model: LoadedModel, windows: Kept, x: NDArray[Any], method: str, own: tuple[str, ...]
    ) -> Refitted | str:
        misfit = model.bundle.manifest.input.misfit(x.shape)
        if misfit is not None:
            return f"their windows do not fit the new version: they {misfit}"
        features = await self._features(model, x)
        known = method if method in calibration.METHODS else "map"
        fit = partial(
            calibration.calibrate,
            model.prior_of(own),
            features,
            windows.y,
            windows.repetition,
            method=known,
            overlap=overlap_of(x, model),
        )
        try:
            result = await self._off_the_loop(fit)
        except CalibrationError as e:
            return f"by their windows: {e}"
        if result.head is None:
            return f"by their windows: {result.verdict.reason}"
        kept = replace(windows, z=features)
        made = result.head, "inputs", result.method, result.statistics, result.verdict, result.warnings
        return Refitted(*made, own, kept)

    @staticmethod
    async def _features(model: LoadedModel, x: NDArray[Any]) -> NDArray[np.float32]:
        """Features of windows, behind predictions; waits while the queue is full."""
        while True:
            try:
                return model.taken((await model.scheduler.submit(x, None, bulk=True)).features)
            except TooManyRequests as e:
                await asyncio.sleep(e.retry_after or 1.0)
