"""One call: features, fit, guard, store, pointer."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.parts import signals
from models.data.windows import stride_of
from models.heads import calibration as maths
from models.heads import statistics
from models.heads.calibration import Calibration, CalibrationError
from models.heads.confidence import LEVELS, Confidence, measure
from models.heads.guard import Score
from models.heads.head import Head
from models.heads.labels import recalls
from service.errors import Conflict, Unavailable, Unprocessable
from service.loaded import LoadedModel
from service.personal import targets
from service.personal.enrol import WINDOWS_ADVISED, check_features
from service.personal.fitted import Fitted, milliseconds, overlap_of, rounded
from service.personal.gather import NEEDS, gather
from service.personal.records import NewVersion, StoreError, UserChanged
from service.personal.resolve import Resolver
from service.personal.store import Store
from service.personal.user_data import UserData
from service.protocol.calibration import CalibrationRequest
from service.views import features_of


class Calibrator:
    """Runs calibrations: one at a time a user, fits off the event loop.

    Attributes:
        data: what is kept of users beside their heads.
    """

    def __init__(self, store: Store, resolver: Resolver) -> None:
        self._store, self._resolver = store, resolver
        self.data = UserData(store)
        self._running: set[tuple[str, str]] = set()

    @asynccontextmanager
    async def exclusively(self, model: LoadedModel, user: str) -> AsyncIterator[None]:
        """Hold a user's heads for a change.

        Raises:
            Conflict: a calibration or another change of this user is running, here or in another service.
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
        except UserChanged as e:
            raise Conflict(f"user {user!r} of model {model.name!r}: {e}") from e
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
            before = await self.answered(model, user, request.digest, idempotency_key)
            if before is not None:
                return before, True
            # Read before all that the fit goes by: a commit over what another service did meanwhile is refused.
            revision = await self._store.revision(model.scope, user)
            try:
                return await self._calibrate(model, user, request, idempotency_key, revision), False
            except UserChanged:
                before = await self.answered(model, user, request.digest, idempotency_key)
                if before is None:
                    raise
                return before, True

    async def answered(
        self, model: LoadedModel, user: str, digest: str, idempotency_key: str | None
    ) -> dict[str, Any] | None:
        """Return what a call with this key was answered, by whichever service; `digest` is of the call's body.

        Raises:
            Conflict: the key was used with another body.
        """
        if idempotency_key is None:
            return None
        before = await self._store.by_idempotency_key(model.scope, user, idempotency_key)
        if before is not None and before.request_digest != digest:
            raise Conflict("this Idempotency-Key was used with another body")
        return None if before is None else before.report

    async def _calibrate(
        self, model: LoadedModel, user: str, request: CalibrationRequest, idempotency_key: str | None, revision: int
    ) -> dict[str, Any]:
        _check_repetitions(request, model)
        begin = time.perf_counter()
        features = np.empty((0, model.bundle.population.dim), np.float32)
        if not request.enrolled:
            features = await features_of(model, request.x, request.tta)
            if not model.targets:  # whose sums have a check of their own
                check_features(features)
        extracted = time.perf_counter()
        fit = targets.fitted if model.targets else _fitted
        made = await fit(self._store, self.data, model, user, request, features)
        report = {**made.report, **({"task": model.output} if model.output else {})}
        report["timings_ms"] = {
            "features": milliseconds(extracted - begin),
            **{stage: milliseconds(seconds) for stage, seconds in made.seconds.items()},
        }
        if request.dry_run:
            return {**report, "version": None, "timings_ms": {**report["timings_ms"], "store": 0.0}}
        stored = time.perf_counter()
        new = NewVersion(
            calibration_id=report["calibration_id"],
            head=made.head,
            statistics=made.statistics,
            report=report,
            active=made.serves,
            base=report["remembered"],
            idempotency_key=idempotency_key,
            request_digest=request.digest,
            also=self.data.committed(model.scope, user, made.seen, used=made.used, windows=made.kept, own=made.own),
            revision=revision,
        )
        # Shielded: once begun, a commit and the pointer's cache go together, whatever becomes of the client.
        version, active = await asyncio.shield(self._commit(model, user, new))
        timings = {**report["timings_ms"], "store": milliseconds(time.perf_counter() - stored)}
        return {**report, "version": version, "active_version": active, "timings_ms": timings}

    async def _commit(self, model: LoadedModel, user: str, new: NewVersion) -> tuple[int, int]:
        version = await self._store.commit(model.scope, user, new)
        if new.active:
            self._resolver.point(model.scope, user, version)
            return version, version
        found = await self._store.user(model.scope, user)
        return version, found.active if found else 0


async def _fitted(
    store: Store,
    data: UserData,
    model: LoadedModel,
    user: str,
    request: CalibrationRequest,
    features: NDArray[np.float32],
) -> Fitted:
    """Fit and judge a head for labels.

    Raises:
        Unprocessable: nothing can be fitted.
    """
    given = await gather(store, data, model, user, request, features)
    x = given.windows.x
    names = (*model.labels, *given.own)
    fit = partial(
        maths.calibrate,
        model.prior_of(given.own),
        given.windows.z,
        given.windows.y,
        given.windows.repetition,
        before=None if given.before is None else given.before.trimmed(len(names)),
        previous=given.previous,
        method=request.method,
        overlap=overlap_of(x, model),
        only_shown=request.among == "shown",
        x=None if x is None or not len(x) else signals(model.bundle.manifest.input, x),
    )
    try:
        result = await asyncio.to_thread(fit)
    except CalibrationError as e:
        raise Unprocessable(str(e)) from e
    outcome, head = _served(result, request.activate)
    report = _report(model, names, request, result, outcome)
    keeps = given.seen.settings.keeps("statistics")
    report["remembered"] = report["remembered"] and keeps
    report |= {"retention": given.seen.settings.retention, "needs": NEEDS.get(result.method, "statistics")}
    report["warnings"] += given.warnings
    used = request.enrolled and report["remembered"]
    if request.enrolled and not used:
        report["warnings"].append("the enrolled windows stay enrolled; DELETE …/samples forgets them")
    stored_head = (head or result.candidate).cut(len(names), given.own)
    if result.held is not None:
        weight = result.verdict.weight if head is not None and request.activate != "always" else 1.0
        population = model.bundle.prior.hyper.set_floors
        confidence = measure(result.held, result.temperature, weight, population)
        report["confidence"] = _confidence(confidence)
        stored_head = replace(stored_head, floors=confidence.floors)
        mixed = (1 - weight) * result.held.shared + weight * result.held.candidate
        held = replace(result.held, candidate=mixed)
        held = held.beside_previous() or replace(held, previous=None)
        before = held.shared if held.previous is None else held.previous
        report["recall"] = [asdict(r) for r in recalls(before, held.candidate, held.y, names)]
    return Fitted(
        stored_head,
        head is not None,
        statistics.to_bytes(result.statistics.padded(model.columns)) if keeps else None,
        report,
        result.seconds,
        given.seen,
        used,
        given.kept,
        given.own,
    )


def _check_repetitions(request: CalibrationRequest, model: LoadedModel) -> None:
    """Refuse repetitions that share samples: leaving one out would leave its samples in.

    Raises:
        Unprocessable: neighbouring windows overlap and are said to be of different repetitions.
    """
    if request.enrolled:
        return
    edge = np.flatnonzero((np.diff(request.repetition) != 0) & (np.diff(request.y) == 0))[:256]
    for sensor in signals(model.bundle.manifest.input, request.x) if len(edge) else ():
        x, stride = sensor.x, stride_of(sensor.x)
        if stride is None:
            continue
        for i in edge:
            same = sensor.there[i : i + 2].all() and np.array_equal(x[i][:, stride:], x[i + 1][:, :-stride])
            if not same or x[i].std() == 0:
                continue
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


def _report(
    model: LoadedModel, names: Sequence[str], request: CalibrationRequest, result: Calibration, outcome: str
) -> dict[str, Any]:
    verdict, stats = result.verdict, result.statistics
    classes = {
        label: {
            "samples": round(float(stats.n[i])),
            "repetitions": int(stats.repetitions_seen[i]),
            "remaining": max(0, WINDOWS_ADVISED - round(float(stats.n[i]))),
        }
        for i, label in enumerate(names)
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
        "among": request.among,
        "weight": verdict.weight,
        "remembered": verdict.remember or request.activate == "always",
        "seed": request.seed,
        "transfer": None if verdict.transfer is None else rounded(asdict(verdict.transfer)),
        "classes": classes,
        "metrics": {name: _score(getattr(verdict, name)) for name in ("shared", "previous", "candidate")},
        "warnings": list(result.warnings),
    }


def _confidence(found: Confidence) -> dict[str, Any]:
    return {
        "windows": found.windows,
        "calibration_error": {"before": round(found.before, 6), "after": round(found.after, 6)},
        "temperature": found.temperature,
        "coverage": None
        if found.floors is None
        else {str(level): round(float(p), 6) for level, p in zip(LEVELS, found.floors, strict=True)},
    }


def _score(score: Score | None) -> dict[str, Any] | None:
    return None if score is None else rounded(asdict(score))
