"""One call: features, fit, guard, store, pointer."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from models.data.windows import shared_samples, stride_of
from models.heads import calibration as maths
from models.heads import statistics
from models.heads.calibration import Calibration, CalibrationError
from models.heads.guard import Score
from models.heads.head import Head
from models.heads.statistics import Statistics
from service.errors import Conflict, Unavailable, Unprocessable
from service.loaded import LoadedModel
from service.personal.records import NewVersion, StoreError
from service.personal.resolve import Resolver
from service.personal.store import Store
from service.protocol.calibration import CalibrationRequest

WINDOWS_ADVISED = 5
"""Labelled windows a class below which an answer says how many remain to be recorded."""


class Calibrator:
    """Runs calibrations: one at a time a user, fits off the event loop."""

    def __init__(self, store: Store, resolver: Resolver) -> None:
        self._store, self._resolver = store, resolver
        self._running: set[tuple[str, str]] = set()

    @asynccontextmanager
    async def exclusively(self, model: LoadedModel, user: str) -> AsyncIterator[None]:
        """Hold a user's heads for a change.

        Raises:
            Conflict: a calibration or another change of this user is running.
            Unavailable: the store is out of reach.
        """
        key = (model.name, user)
        if key in self._running:
            raise Conflict(
                f"a calibration of user {user!r} for model {model.name!r} is running; try again when it has ended"
            )
        self._running.add(key)
        try:
            yield
        except StoreError as e:
            raise Unavailable(str(e), retry_after=2) from e
        finally:
            self._running.discard(key)

    async def run(
        self, model: LoadedModel, user: str, request: CalibrationRequest, idempotency_key: str | None
    ) -> tuple[dict[str, Any], bool]:
        """Calibrate; returns the report, and whether it is an earlier call's answer given again.

        Raises:
            Conflict: one is running for this user, or the key was used with another body.
            Unprocessable: nothing can be fitted.
            Unavailable: the store is out of reach; nothing has changed.
        """
        async with self.exclusively(model, user):
            if idempotency_key is not None:
                before = await self._store.by_idempotency_key(model.scope, user, idempotency_key)
                if before is not None and before.request_digest != request.digest:
                    raise Conflict("this Idempotency-Key was used with another body")
                if before is not None:
                    return before.report, True
            return await self._calibrate(model, user, request, idempotency_key), False

    async def _calibrate(
        self, model: LoadedModel, user: str, request: CalibrationRequest, idempotency_key: str | None
    ) -> dict[str, Any]:
        if _is_signal(model):
            _check_repetitions(request)
        begin = time.perf_counter()
        features = (await model.scheduler.submit(request.x, None, bulk=True)).features
        extracted = time.perf_counter()
        base, lost = await self._base(model, user) if request.mode == "update" else (None, False)
        _, previous = await self._store.active(model.scope, user)
        fit = partial(
            maths.calibrate,
            model.bundle.prior,
            features,
            request.y,
            request.repetition,
            before=base,
            previous=previous,
            method=request.method,
            overlap=shared_samples(request.x) if _is_signal(model) else 0,
        )
        try:
            result = await asyncio.to_thread(fit)
        except CalibrationError as e:
            raise Unprocessable(str(e)) from e
        outcome, head = _served(result, request.activate)
        report = _report(model, request, result, outcome)
        if lost:
            report["warnings"].append("the statistics of the version that was chosen are kept no longer: begun anew")
        report["timings_ms"] = {
            "features": _ms(extracted - begin),
            **{stage: _ms(seconds) for stage, seconds in result.seconds.items()},
        }
        if request.dry_run:
            return {**report, "version": None, "timings_ms": {**report["timings_ms"], "store": 0.0}}
        stored = time.perf_counter()
        new = NewVersion(
            calibration_id=report["calibration_id"],
            head=head or result.candidate,
            statistics=statistics.to_bytes(result.statistics),
            report=report,
            active=head is not None,
            base=report["remembered"],
            idempotency_key=idempotency_key,
            request_digest=request.digest,
        )
        # Shielded: once begun, a commit and the pointer's cache go together, whatever becomes of the client.
        version, active = await asyncio.shield(self._commit(model, user, new))
        timings = {**report["timings_ms"], "store": _ms(time.perf_counter() - stored)}
        return {**report, "version": version, "active_version": active, "timings_ms": timings}

    async def _base(self, model: LoadedModel, user: str) -> tuple[Statistics | None, bool]:
        """Statistics to add to, and whether the user's base has none any more."""
        data, found = await self._store.statistics(model.scope, user)
        if data is None:
            return None, found is not None and found.base > 0
        try:
            return statistics.from_bytes(data), False
        except ValueError as e:
            raise Unavailable(
                f"the statistics of user {user!r} are damaged: calibrate with mode 'replace' ({e})"
            ) from e

    async def _commit(self, model: LoadedModel, user: str, new: NewVersion) -> tuple[int, int]:
        version = await self._store.commit(model.scope, user, new)
        if new.active:
            self._resolver.point(model.scope, user, version)
            return version, version
        found = await self._store.user(model.scope, user)
        return version, found.active if found else 0


def _is_signal(model: LoadedModel) -> bool:
    """Whether windows are cut from a signal `(C, T)`, hence may share samples; images, clips and texts do not."""
    spec = model.bundle.manifest.input
    return spec.media is None and len(spec.window_shape) == 2


def _check_repetitions(request: CalibrationRequest) -> None:
    """Refuse repetitions that share samples: leaving one out would leave its samples in.

    Raises:
        Unprocessable: neighbouring windows overlap and are said to be of different repetitions.
    """
    stride = stride_of(request.x)
    if stride is None:
        return
    edge = np.flatnonzero((np.diff(request.repetition) != 0) & (np.diff(request.y) == 0))
    for i in edge[:256]:
        if np.array_equal(request.x[i][:, stride:], request.x[i + 1][:, :-stride]) and request.x[i].std() > 0:
            raise Unprocessable(
                f"windows {i} and {i + 1} share samples but are given as different repetitions; "
                "a repetition is what was recorded in one go"
            )


def _served(result: Calibration, activate: str) -> tuple[str, Head | None]:
    """Combine the guard's verdict with what the caller wants activated."""
    if activate == "always":
        return "promoted", result.candidate
    if activate == "never":
        return result.verdict.outcome, None
    return result.verdict.outcome, result.head


def _report(model: LoadedModel, request: CalibrationRequest, result: Calibration, outcome: str) -> dict[str, Any]:
    verdict, stats = result.verdict, result.statistics
    labels = model.bundle.manifest.labels
    classes = {
        label: {
            "samples": int(stats.n[i]),
            "repetitions": int(stats.repetitions_seen[i]),
            "remaining": max(0, WINDOWS_ADVISED - int(stats.n[i])),
        }
        for i, label in enumerate(labels)
    }
    return {
        "calibration_id": str(uuid.uuid4()),
        "model": model.name,
        "model_version": str(model.version),
        "outcome": outcome,
        "evidence": verdict.evidence,
        "reason": verdict.reason
        if request.activate != "always"
        else f"activated as demanded; the guard: {verdict.reason}",
        "method": result.method,
        "mode": request.mode,
        "weight": verdict.weight,
        "remembered": verdict.remember or request.activate == "always",
        "seed": request.seed,
        "classes": classes,
        "metrics": {name: _score(getattr(verdict, name)) for name in ("shared", "previous", "candidate")},
        "warnings": list(result.warnings),
    }


def _score(score: Score | None) -> dict[str, Any] | None:
    return None if score is None else {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(score).items()}


def _ms(seconds: float) -> float:
    return float(np.round(seconds * 1e3, 3))
