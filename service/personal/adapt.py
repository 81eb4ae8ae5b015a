"""Adaptation without labels: features, maths, guard, store, pointer."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.heads import statistics
from models.heads import unlabelled as maths
from models.heads.adaptation import Anchor
from models.heads.head import Head
from models.heads.statistics import Statistics
from models.heads.unlabelled import Adaptation
from service.errors import Conflict, Unavailable, Unprocessable
from service.loaded import LoadedModel
from service.personal.calibrate import Calibrator
from service.personal.records import NewVersion, Scope
from service.personal.resolve import Resolver
from service.personal.store import Store
from service.protocol.adaptation import AdaptationRequest

ORIGIN = "adaptation"
"""`origin` in the report of a version that an adaptation made."""


@dataclass(frozen=True, eq=False)
class CalibratedHead:
    """What an adaptation begins from.

    Attributes:
        active: the version served now, perhaps an adapted one.
        version: the version that was calibrated.
        head: its head.
        data: the labelled statistics as they are stored, and statistics: decoded.
        report: the active version's report.
    """

    active: int
    version: int
    head: Head
    data: bytes
    statistics: Statistics
    report: dict[str, Any]


class Adapter:
    """Runs adaptations: one at a time a user, and none beside a calibration."""

    def __init__(self, store: Store, resolver: Resolver, calibrator: Calibrator) -> None:
        self._store, self._resolver, self._calibrator = store, resolver, calibrator

    async def run(
        self, model: LoadedModel, user: str, request: AdaptationRequest, idempotency_key: str | None
    ) -> tuple[dict[str, Any], bool]:
        """Adapt; returns the report, and whether it is an earlier call's answer given again.

        Raises:
            Conflict: a calibration or another change of this user is running, or the key was used with another body.
            Unprocessable: the user has no statistics, or no personal head is active.
            Unavailable: the store is out of reach; nothing has changed.
        """
        async with self._calibrator.exclusively(model, user):
            if idempotency_key is not None:
                before = await self._store.by_idempotency_key(model.scope, user, idempotency_key)
                if before is not None and before.request_digest != request.digest:
                    raise Conflict("this Idempotency-Key was used with another body")
                if before is not None:
                    return before.report, True
            revision = await self._store.revision(model.scope, user)
            return await self._adapt(model, user, request, idempotency_key, revision), False

    async def _adapt(
        self, model: LoadedModel, user: str, request: AdaptationRequest, idempotency_key: str | None, revision: int
    ) -> dict[str, Any]:
        anchor = await self.calibrated(model.scope, user)
        begin = time.perf_counter()
        features = (await model.scheduler.submit(request.x, None, bulk=True)).features
        extracted = time.perf_counter()
        result = await asyncio.to_thread(_fitted, model, anchor, features)
        timings = {"features": _ms(extracted - begin), "fit": _ms(time.perf_counter() - extracted), "store": 0.0}
        report = _report(model, anchor, request, result)
        if request.dry_run:
            return {**report, "version": None, "timings_ms": timings}
        stored = time.perf_counter()
        new = NewVersion(
            calibration_id=report["calibration_id"],
            head=replace(result.candidate, floors=anchor.head.floors, own=anchor.head.own),
            statistics=anchor.data,
            report={**report, "timings_ms": timings},
            active=report["outcome"] == "promoted",
            base=False,
            idempotency_key=idempotency_key,
            request_digest=request.digest,
            revision=revision,
        )
        # Shielded: once begun, a commit and the pointer's cache go together, whatever becomes of the client.
        version = await asyncio.shield(self._commit(model.scope, user, new))
        timings = {**timings, "store": _ms(time.perf_counter() - stored)}
        active = version if new.active else anchor.active
        return {**report, "version": version, "active_version": active, "timings_ms": timings}

    async def _commit(self, scope: Scope, user: str, new: NewVersion) -> int:
        version = await self._store.commit(scope, user, new)
        if new.active:
            self._resolver.point(scope, user, version)
        return version

    async def calibrated(self, scope: Scope, user: str) -> CalibratedHead:
        """What an adaptation begins from: the calibrated head, however often it was adapted since.

        Raises:
            Unprocessable: the user has no statistics, or no personal head is active.
        """
        data, found = await self._store.statistics(scope, user)
        if found is None or data is None:
            raise Unprocessable(
                f"user {user!r} has no statistics of labelled windows to adapt from; calibrate first "
                "(and keep retention at 'statistics' or above)"
            )
        if not found.active:
            raise Unprocessable(f"the shared head is active for user {user!r}; an adaptation needs a personal head")
        served = await self._store.version(scope, user, found.active)
        report = {} if served is None else served.report
        version = int(report.get("anchor", found.active))
        head = await self._store.head(scope, user, version)
        if head is None:
            raise Unprocessable(f"version {version} of user {user!r}, which was calibrated, is gone; calibrate anew")
        try:
            known = statistics.from_bytes(data)
        except ValueError as e:
            raise Unavailable(
                f"the statistics of user {user!r} are damaged: calibrate with mode 'replace' ({e})"
            ) from e
        return CalibratedHead(found.active, version, head, data, known, report)


def _fitted(model: LoadedModel, anchor: CalibratedHead, features: NDArray[np.float32]) -> Adaptation:
    own = anchor.head.own
    known = anchor.statistics.first(len(model.labels) + len(own))  # not of labels that came later than this head
    return maths.adapt(Anchor(model.prior_of(own), known, anchor.head), features)


def _report(
    model: LoadedModel, anchor: CalibratedHead, request: AdaptationRequest, result: Adaptation
) -> dict[str, Any]:
    """The answer, with the fields that every version's report has."""
    outcome, reason = result.outcome, result.reason
    if request.activate == "never" and outcome == "promoted":
        outcome, reason = "kept", f"not activated, as demanded; the guard: {reason}"
    return {
        "calibration_id": str(uuid.uuid4()),
        "origin": ORIGIN,
        "model": model.name,
        "model_version": str(model.version),
        "anchor": anchor.version,
        "outcome": outcome,
        "evidence": "unlabelled",
        "reason": reason,
        "method": "em",
        "windows": len(request.x),
        "windows_by_class": dict(
            zip((*model.labels, *anchor.head.own), np.round(result.windows, 1).tolist(), strict=True)
        ),
        "drift": _rounded(result.drift),
        "metrics": {
            "shared": None,
            "previous": {k: _rounded(v) for k, v in asdict(result.calibrated).items()},
            "candidate": {k: _rounded(v) for k, v in asdict(result.adapted).items()},
        },
        "classes": anchor.report.get("classes", {}),
        "warnings": [],
    }


def _rounded(value: float) -> float:
    return round(float(value), 6)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
