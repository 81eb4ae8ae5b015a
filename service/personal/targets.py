"""Calibrations of a regression: what is fitted, judged and reported for targets."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.parts import signals
from models.heads import regression_sums
from models.heads.regression_calibration import RegressionCalibration, calibrate_regression
from models.heads.regression_guard import RegressionScore
from models.heads.regression_sums import RepetitionSums
from service.errors import Unprocessable
from service.loaded import LoadedModel
from service.personal.fitted import Fitted, overlap_of, rounded
from service.personal.gather import base_of
from service.personal.store import Store
from service.personal.user_data import UserData
from service.protocol.calibration import CalibrationRequest

METHOD = "ridge"


async def fitted(
    store: Store,
    data: UserData,
    model: LoadedModel,
    user: str,
    request: CalibrationRequest,
    features: NDArray[np.float32],
) -> Fitted:
    """Fit and judge a head for targets.

    Raises:
        Unprocessable: nothing can be fitted.
        Unavailable: what is kept is damaged.
    """
    seen = await data.enrolled(model.scope, user)
    before: RepetitionSums | None = None
    warnings: list[str] = []
    if request.mode == "update":
        read = partial(regression_sums.from_bytes, dim=features.shape[1], targets=len(model.targets))
        before, _, warnings = await base_of(store, model, user, seen, read)
    _, previous = await store.active(model.scope, user)
    assert request.targets is not None
    fit = partial(
        calibrate_regression,
        model.bundle.regression,
        features,
        request.targets,
        request.repetition,
        before=before,
        previous=previous,
        overlap=overlap_of(request.x, model),
        x=signals(model.bundle.manifest.input, request.x),
    )
    try:
        result = await asyncio.to_thread(fit)
    except (ValueError, np.linalg.LinAlgError) as e:
        raise Unprocessable(f"no head can be fitted: {e}") from e
    keeps = seen.settings.keeps("statistics")
    report = _report(model, request, result)
    report["remembered"] = report["remembered"] and keeps
    report |= {"retention": seen.settings.retention, "needs": "statistics"}
    report["warnings"] += warnings
    head = {"always": result.candidate, "never": None}.get(request.activate, result.head)
    return Fitted(
        head or result.candidate,
        head is not None,
        regression_sums.to_bytes(result.sums) if keeps else None,
        report,
        result.seconds,
        seen,
        own=seen.own,
    )


def _report(model: LoadedModel, request: CalibrationRequest, result: RegressionCalibration) -> dict[str, Any]:
    verdict, always = result.verdict, request.activate == "always"
    scores = ("shared", verdict.shared), ("previous", verdict.previous), ("candidate", verdict.candidate)
    return {
        "calibration_id": str(uuid.uuid4()),
        "model": model.name,
        "model_version": str(model.version),
        "outcome": "promoted" if always else verdict.outcome,
        "evidence": verdict.evidence,
        "reason": f"activated as demanded; the guard: {verdict.reason}" if always else verdict.reason,
        "method": METHOD,
        "mode": request.mode,
        "weight": verdict.weight,
        "remembered": verdict.remember or always,
        "seed": request.seed,
        "transfer": None if verdict.transfer is None else rounded(asdict(verdict.transfer)),
        **counted(result.sums),
        "metrics": {name: None if found is None else shown(found, model.targets) for name, found in scores},
        "warnings": list(result.warnings),
    }


def counted(sums: RepetitionSums) -> dict[str, int]:
    """Count windows, and the repetitions that are kept apart, as reports do."""
    return {"windows": round(sums.windows), "repetitions": len(sums)}


def shown(score: RegressionScore, targets: tuple[str, ...]) -> dict[str, Any]:
    """Return a score as JSON has it: root mean squared errors by target to six digits, each in its own unit."""
    rmse = {name: float(f"{value:.6g}") for name, value in zip(targets, score.rmse, strict=True)}
    return rounded({"rmse": rmse, "r2": score.r2, "n": score.n, "folds": score.folds})


def check_settings(model: LoadedModel, chosen: Mapping[str, Any]) -> None:
    """Refuse settings of a user that a regression does not offer.

    Settings are of a user of a model: of several outputs one with labels is enough to offer them.

    Raises:
        Unprocessable: windows are to be kept, or the head is to follow its user without labels.
    """
    if not all(output.targets for output in model.each):
        return
    if chosen.get("retention") in ("features", "inputs"):
        raise Unprocessable(
            f"model {model.name!r} is a regression and keeps no windows: retention is none or statistics, "
            f"not {chosen['retention']}"
        )
    if chosen.get("adapt", "off") != "off":
        raise Unprocessable(
            f"model {model.name!r} is a regression, whose heads are not adapted without labels: adapt is off, "
            f"not {chosen['adapt']}"
        )


def check_adaptable(model: LoadedModel) -> None:
    """Refuse to adapt a regression to windows without labels (docs/adaptation.md says why).

    Raises:
        Unprocessable: it is one.
    """
    if model.targets:
        raise Unprocessable(
            f"model {model.called} is a regression of {', '.join(model.targets)}: windows without targets do not tell "
            "a sensor that moved from values that did, so its heads are not adapted; calibrate with targets"
        )
