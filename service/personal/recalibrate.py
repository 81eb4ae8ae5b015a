"""After a backbone upgrade: users' heads are fitted anew in the new feature space, in the background.

From their windows where these are kept, else from their statistics over the bundle's bridge, if that is good enough.
Whoever cannot be moved stays on the older version, which goes on answering them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from models.data.windows import shared_samples
from models.heads import calibration, statistics
from models.heads.calibration import CalibrationError
from models.heads.guard import Verdict
from models.heads.head import Head
from models.heads.refit import refit
from models.heads.statistics import Statistics
from service.catalogue import Catalogue
from service.errors import Conflict, HeadwayError, TooManyRequests, Unavailable
from service.loaded import LoadedModel
from service.personal import data_changes
from service.personal.acting import acting
from service.personal.calibrate import Calibrator
from service.personal.imports import classes_of
from service.personal.kept import Kept
from service.personal.operations import DONE, FAILED, NotOurs, Operation, Operations
from service.personal.records import NewVersion, Scope, StoreError, UserChanged, Version
from service.personal.resolve import Resolver
from service.personal.rows import owned
from service.personal.schema import users
from service.personal.store import Store
from service.personal.transfer import statistics_of

log = logging.getLogger("headway")

T = TypeVar("T")

USERS_A_LOOK = 100
LOOK_SECONDS = 3.0
"""Between two looks for work that another service has left."""
RETRY_SECONDS = 1.0
SHARE = 0.25
"""Of the time of one core that recalibration takes at most: predictions come first."""


@dataclass(frozen=True, slots=True)
class _Refitted:
    """A head in the new feature space, what it was fitted from, and what the guard said."""

    head: Head
    by: str
    method: str
    statistics: Statistics
    verdict: Verdict
    warnings: tuple[str, ...]
    own: tuple[str, ...]
    kept: Kept | None = None


class Recalibrator:
    """Does operations, one after the other, as long as `run` is not cancelled."""

    def __init__(
        self,
        store: Store,
        models: Catalogue,
        calibrator: Calibrator,
        resolver: Resolver,
    ) -> None:
        self._store, self._models = store, models
        self._calibrator, self._resolver, self._data = calibrator, resolver, calibrator.data
        self._wake = asyncio.Event()
        self._worked = 0.0
        self.operations = Operations(store)

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    async def run(self) -> None:
        """Do operations until cancelled: those begun here, and those that another service or a kill left."""
        while True:
            self._wake.clear()
            try:
                operation = await self.operations.claim()
                if operation is not None:
                    await self._do(operation)
                    continue
            except NotOurs as e:
                log.info("operation %s was cancelled, or is done elsewhere", e)
            except StoreError as e:
                log.warning("an operation waits for the store: %s", e)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            except Exception:
                log.exception("an operation failed; it is tried again")
                await asyncio.sleep(LOOK_SECONDS)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()

    async def _do(self, operation: Operation) -> None:
        acting.set(f"operation {operation.id}")
        log.info(
            "operation %s: %d of %d users are left", operation.id, operation.total - operation.done, operation.total
        )
        try:
            await self._pass_over(operation)
            await self.operations.finish(operation, DONE)
            log.info("operation %s is done", operation.id)
        except asyncio.CancelledError:
            with contextlib.suppress(StoreError):
                await self.operations.release(operation)
            raise

    async def _pass_over(self, operation: Operation) -> None:
        """Go through the users by name, and once more while there were some who were just being changed."""
        busy, after = False, ""
        while True:
            batch = await self.operations.batch(operation, after, USERS_A_LOOK)
            for user, spaces in batch:
                busy |= not await self._one(operation, user, spaces)
                worked, self._worked = self._worked, 0.0
                await asyncio.sleep(worked * (1 - SHARE) / SHARE)
                after = user
            if not batch and not busy:
                return
            if not batch:
                busy, after = False, ""
                await self.operations.say(operation, "waits for users who are being calibrated")
                await asyncio.sleep(RETRY_SECONDS)

    async def _one(self, operation: Operation, user: str, spaces: list[str]) -> bool:
        """Move a user, or note why that cannot be; false if they are being changed just now."""
        model = await self._model(operation)
        try:
            with model.used():
                async with self._calibrator.exclusively(model, user):
                    outcome, reason = await self._move(operation, model, user, spaces)
                    if outcome != "moved" or operation.dry_run:
                        await self.operations.note(operation, user, outcome, reason)
        except Conflict:
            return False
        except (NotOurs, StoreError):
            raise
        except HeadwayError as e:
            if isinstance(e.__cause__, StoreError):
                raise e.__cause__ from None
            if isinstance(e, Unavailable):  # the version is being replaced, or the service ends
                return False
            await self.operations.note(operation, user, "failed", e.message)
        except Exception as e:
            log.exception("recalibrating a user failed")
            await self.operations.note(operation, user, "failed", f"{type(e).__name__}: the log says more")
        return True

    async def _model(self, operation: Operation) -> LoadedModel:
        """Return the version that users are moved to, when it is served."""
        while True:
            try:
                model = self._models.get(operation.scope.model, operation.model_version)
            except HeadwayError as e:
                await self.operations.say(operation, f"waits: {e.message}")
            else:
                if model.scope == operation.scope:
                    return model
                text = f"version {model.version} computes {model.scope.feature_space} now"
                await self.operations.finish(operation, FAILED, text)
                raise NotOurs(operation.id)
            await asyncio.sleep(RETRY_SECONDS)

    async def _move(self, operation: Operation, model: LoadedModel, user: str, spaces: list[str]) -> tuple[str, str]:
        reason = "no head is active any more"
        revision = await self._store.revision(model.scope, user)
        for space in spaces:
            source = Scope(model.name, space, operation.scope.tenant)
            found = await self._store.user(source, user)
            version = None if found is None else await self._store.version(source, user, found.active)
            if version is None:
                continue
            refitted = await self._refit(model, source, user, version)
            if isinstance(refitted, str):
                reason = refitted
                continue
            if not operation.dry_run:
                new = self._version(operation, model, user, source, version, refitted, revision)
                # Shielded: once begun, a commit and the pointer's cache go together.
                await asyncio.shield(self._commit(model, user, new))
            return "moved", refitted.by
        return "needs_enrolment", reason

    async def _commit(self, model: LoadedModel, user: str, new: NewVersion) -> None:
        number = await self._store.commit(model.scope, user, new)
        self._resolver.point(model.scope, user, number)

    async def _refit(self, model: LoadedModel, source: Scope, user: str, version: Version) -> _Refitted | str:
        """Fit a user's head anew, or say why not."""
        if source.feature_space.rpartition("-")[2] != model.scope.feature_space.rpartition("-")[2]:
            return "the labels of the new version are others"
        method = str(version.report.get("method", "map"))
        own = (await self._data.enrolled(source, user)).own
        windows = await self._data.retained(source, user, version.version)
        if windows is not None and windows.x is not None:
            return await self._from_windows(model, windows, windows.x, method, own)
        data = await statistics_of(self._store, source, user, version.version)
        if data is None:
            return "neither windows nor statistics are kept of them"
        space = source.feature_space.rpartition("-")[0]
        bridge, entry = model.bundle.bridges.get(space), model.bundle.manifest.bridges.get(space)
        if bridge is None or entry is None:
            return f"the new version has no bridge from {space}, and no windows are kept of them"
        if not entry.parity.passes:
            loss = f"{entry.parity.mean_loss:.1%}"
            return f"the bridge from {space} is not good enough (loss {loss}), and no windows are kept of them"
        stats = bridge.statistics(statistics.from_bytes(data).trimmed(len(model.labels) + len(own)))
        weight = 1.0 if own else float(version.report.get("weight") or 1.0)
        found = await self._off_the_loop(partial(refit, stats, model.prior_of(own), method, weight))
        if found.head is None:
            return f"by their statistics: {found.verdict.reason}"
        return _Refitted(found.head, "bridge", found.method, stats, found.verdict, found.warnings, own)

    async def _off_the_loop(self, fit: Callable[[], T]) -> T:
        """Fit on a thread, and count the time."""
        begin = time.perf_counter()
        try:
            return await asyncio.to_thread(fit)
        finally:
            self._worked += time.perf_counter() - begin

    async def _from_windows(
        self, model: LoadedModel, windows: Kept, x: NDArray[Any], method: str, own: tuple[str, ...]
    ) -> _Refitted | str:
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
            overlap=shared_samples(x),
        )
        try:
            result = await self._off_the_loop(fit)
        except CalibrationError as e:
            return f"by their windows: {e}"
        if result.head is None:
            return f"by their windows: {result.verdict.reason}"
        kept = replace(windows, z=features)
        made = result.head, "inputs", result.method, result.statistics, result.verdict, result.warnings
        return _Refitted(*made, own, kept)

    @staticmethod
    async def _features(model: LoadedModel, x: NDArray[Any]) -> NDArray[np.float32]:
        """Features of windows, behind predictions; waits while the queue is full."""
        while True:
            try:
                return (await model.scheduler.submit(x, None, bulk=True)).features
            except TooManyRequests as e:
                await asyncio.sleep(e.retry_after or RETRY_SECONDS)

    def _version(
        self,
        operation: Operation,
        model: LoadedModel,
        user: str,
        source: Scope,
        before: Version,
        refitted: _Refitted,
        revision: int,
    ) -> NewVersion:
        verdict, identifier = refitted.verdict, str(uuid.uuid4())
        report = {
            "calibration_id": identifier,
            "model": model.name,
            "model_version": str(model.version),
            "origin": "recalibration",
            "operation": operation.id,
            "by": refitted.by,
            "from": {"feature_space": source.feature_space.rpartition("-")[0], "version": before.version},
            "outcome": verdict.outcome,
            "evidence": verdict.evidence,
            "reason": verdict.reason,
            "method": refitted.method,
            "mode": "replace",
            "weight": before.report.get("weight", 1.0) if refitted.by == "bridge" else verdict.weight,
            "remembered": True,
            "classes": classes_of(refitted.statistics, (*model.labels, *refitted.own)),
            "metrics": {
                name: None if (score := getattr(verdict, name)) is None else asdict(score)
                for name in ("shared", "previous", "candidate")
            },
            "transfer": None if verdict.transfer is None else asdict(verdict.transfer),
            "warnings": list(refitted.warnings),
        }

        async def also(c: AsyncConnection, number: int) -> None:
            """Count the move with it; and undo both if the user was erased or changed where they come from."""
            row = select(users.c.active).where(owned(users, source, user)).with_for_update()
            if await c.scalar(row) != before.version:
                raise UserChanged
            await self.operations.count(c, operation, user, "moved", refitted.by)
            if refitted.own:
                await data_changes.add_own_labels(c, model.scope, user, refitted.own)
            if refitted.kept is not None:
                await data_changes.retain(c, model.scope, user, number, refitted.kept)

        # Who lets nothing be kept has neither windows nor statistics that anything could be refitted from.
        data = statistics.to_bytes(refitted.statistics.padded(model.columns))
        head = refitted.head.cut(len(model.labels) + len(refitted.own), refitted.own)
        return NewVersion(identifier, head, data, report, True, True, revision=revision, also=also)
