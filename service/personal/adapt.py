"""Adaptation without labels: features, maths, guard, store, pointer."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.heads import statistics
from models.heads import unlabelled as maths
from models.heads.adaptation import Anchor
from models.heads.head import Head
from models.heads.unlabelled import Adaptation
from service.errors import Unavailable, Unprocessable
from service.loaded import LoadedModel
from service.personal import targets
from service.personal.calibrate import Calibrator
from service.personal.data_changes import Enrolled
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
        data: the labelled statistics as they are stored.
        anchor: the head and the statistics, to fit from.
        report: the active version's report.
        seen: what was enrolled, and the user's settings.
        revision: of the user, when all this was read.
    """

    active: int
    version: int
    head: Head
    data: bytes
    anchor: Anchor
    report: dict[str, Any]
    seen: Enrolled
    revision: int


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
            before = await self._calibrator.answered(model, user, request.digest, idempotency_key)
            if before is not None:
                return before, True
            anchor = await self.calibrated(model, user)
            features = (await model.scheduler.submit(request.x, None, bulk=True)).features
            return await self._adapted(model, user, request, anchor, features, idempotency_key), False

    async def run_each(self, model: LoadedModel, user: str, request: AdaptationRequest) -> dict[str, dict[str, Any]]:
        """Adapt a user's heads in all outputs of a model by one forward, each under a guard of its own.

        Returns:
            Each output's report by its name; of one that cannot be adapted the outcome `refused`, and why.

        Raises:
            Conflict: as `run`; versions that were committed before stay, and the same call gives the same heads again.
            Unprocessable: no output can be adapted.
        """
        async with self._calibrator.exclusively(model, user):
            anchors, why = dict[str, CalibratedHead](), dict[str, str]()
            for output in model.outputs:
                try:
                    targets.check_adaptable(output)
                    anchors[output.output] = await self.calibrated(output, user)
                except Unprocessable as e:
                    why[output.output] = e.message
            if not anchors:
                told = "; ".join(f"{name}: {reason}" for name, reason in why.items())
                raise Unprocessable(f"no head of user {user!r} can be adapted. {told}")
            features = (await model.scheduler.submit(request.x, None, bulk=True)).features
            found = dict[str, dict[str, Any]]()
            for output in model.outputs:
                name = output.output
                if name in anchors:
                    found[name] = await self._adapted(output, user, request, anchors[name], features, None)
                else:
                    found[name] = {"outcome": "refused", "reason": why[name]}
            return found

    async def _adapted(
        self,
        model: LoadedModel,
        user: str,
        request: AdaptationRequest,
        anchor: CalibratedHead,
        features: NDArray[np.float32],
        idempotency_key: str | None,
    ) -> dict[str, Any]:
        """Adapt to the graph's features, and commit unless that is not wanted."""
        result = await asyncio.to_thread(_fitted, anchor, model.taken(features))
        report = report_of(model, anchor, result, len(request.x), activate=request.activate != "never")
        if request.dry_run:
            return {**report, "version": None}
        return await self.commit(model, user, anchor, result, report, request.digest, idempotency_key)

    async def commit(
        self,
        model: LoadedModel,
        user: str,
        anchor: CalibratedHead,
        result: Adaptation,
        report: dict[str, Any],
        digest: str | None = None,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """Write an adapted version, and serve it where its report says `promoted`; returns the report with its number.

        Raises:
            UserChanged: the user is no more as they were when `anchor` was read.
        """
        new = NewVersion(
            calibration_id=report["calibration_id"],
            # Sets of labels go by what held-out labelled windows told of the calibrated head.
            head=replace(result.candidate, floors=anchor.head.floors, own=anchor.head.own),
            statistics=anchor.data,
            report=report,
            active=report["outcome"] == "promoted",
            base=False,
            idempotency_key=idempotency_key,
            request_digest=digest,
            also=self._calibrator.data.committed(
                model.scope, user, anchor.seen, used=False, windows=None, own=anchor.seen.own
            ),
            revision=anchor.revision,
        )
        # Shielded: once begun, a commit and the pointer's cache go together, whatever becomes of the client.
        version = await asyncio.shield(self._commit(model.scope, user, new))
        return {**report, "version": version, "active_version": version if new.active else anchor.active}

    async def _commit(self, scope: Scope, user: str, new: NewVersion) -> int:
        version = await self._store.commit(scope, user, new)
        if new.active:
            self._resolver.point(scope, user, version)
        return version

    async def calibrated(self, model: LoadedModel, user: str) -> CalibratedHead:
        """What an adaptation begins from: the calibrated head, however often it was adapted since.

        Raises:
            Unprocessable: the user has no statistics, or no personal head is active.
            Unavailable: the statistics are damaged.
        """
        scope = model.scope
        seen = await self._calibrator.data.enrolled(scope, user)
        data, found = await self._store.statistics(scope, user)
        if found is not None:
            seen.settings.require("statistics", "an adaptation")
        if found is None or data is None:
            raise Unprocessable(f"user {user!r} has no statistics of labelled windows to adapt from; calibrate first")
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
        try:
            anchor = await asyncio.to_thread(Anchor, model.prior_of(head.own), known.first(len(head.bias)), head)
        except np.linalg.LinAlgError as e:  # imported, and no windows have such sums
            raise Unprocessable(f"the statistics of user {user!r} cannot be adapted from: calibrate anew ({e})") from e
        return CalibratedHead(found.active, version, head, data, anchor, report, seen, found.revision)


def _fitted(known: CalibratedHead, features: NDArray[np.float32]) -> Adaptation:
    return maths.adapt(known.anchor, features)


def report_of(
    model: LoadedModel, known: CalibratedHead, result: Adaptation, windows: int, *, activate: bool
) -> dict[str, Any]:
    """An adaptation in words and numbers, with the fields that every version's report has."""
    outcome, reason = result.outcome, result.reason
    if not activate and outcome == "promoted":
        outcome, reason = "kept", f"not activated, as demanded; the guard: {reason}"
    names = (*model.labels, *known.head.own)
    return {
        "calibration_id": str(uuid.uuid4()),
        "origin": ORIGIN,
        "model": model.name,
        "model_version": str(model.version),
        **({"task": model.output} if model.output else {}),
        "anchor": known.version,
        "outcome": outcome,
        "evidence": "unlabelled",
        "reason": reason,
        "method": "em",
        "windows": windows,
        "windows_by_class": dict(zip(names, np.round(result.windows, 1).tolist(), strict=True)),
        "drift": _rounded(result.drift),
        "metrics": {
            "shared": None,
            "previous": {k: _rounded(v) for k, v in asdict(result.calibrated).items()},
            "candidate": {k: _rounded(v) for k, v in asdict(result.adapted).items()},
        },
        "classes": known.report.get("classes", {}),
        "warnings": [],
    }


def _rounded(value: float) -> float:
    return round(float(value), 6)
