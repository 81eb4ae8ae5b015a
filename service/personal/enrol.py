"""Enrolling bit by bit: windows through the features, a verdict on each, and what remains to be recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.parts import signals
from models.heads.inputs import ACCEPTED, CLIPPED, NON_FINITE, OFF_DISTRIBUTION, Inspection, inspect
from models.heads.statistics import Statistics
from service.errors import Unprocessable
from service.loaded import LoadedModel
from service.personal.data_changes import Enrolled
from service.personal.kept import Kept
from service.protocol.labelled import Labelled
from service.views import features_of

WINDOWS_ADVISED = 5
"""Labelled windows a class below which an answer says how many remain to be recorded."""
TAKEN_ON_DEMAND = (CLIPPED, OFF_DISTRIBUTION)
"""Verdicts that a call may accept all the same: such a window is poor, and still one."""

LARGEST_FEATURE = 1e12
"""Of a million windows with features up to this the sums of squares stay below what statistics may hold (1e30)."""


async def inspected(model: LoadedModel, given: Labelled) -> tuple[Kept, Inspection]:
    """Run windows through the features and look at each; what is not finite goes through as zeros."""
    x = given.x
    if x.dtype.kind == "f" and not (finite := np.isfinite(x)).all():
        x = np.where(finite, x, 0)
    features = await features_of(model, x, given.tta)
    found = inspect(signals(model.bundle.manifest.input, given.x), features, model.bundle.prior)
    return Kept(features, given.y, given.repetition, given.x), found


def check_features(features: NDArray[np.floating], chosen: NDArray[np.bool_] | None = None) -> None:
    """Refuse windows, of those chosen, that statistics cannot be made of: sums of squares would overflow with them.

    Raises:
        Unprocessable: there is one; the message names the first.
    """
    most = np.abs(features).max(1)
    bad = ~(most <= LARGEST_FEATURE)  # NaN is not smaller than anything
    wrong = np.flatnonzero(bad if chosen is None else bad & chosen)
    if len(wrong):
        raise Unprocessable(
            f"window {wrong[0]} has features up to {most[wrong[0]]:.3g}: of features beyond {LARGEST_FEATURE:g} no "
            "statistics are kept; look at the unit of the samples"
        )


def taken(found: Inspection, demanded: Sequence[str]) -> NDArray[np.bool_]:
    """Which windows are enrolled, `(n,)`: accepted ones, and those of the verdicts demanded."""
    return np.array([v.verdict == ACCEPTED or v.verdict in demanded for v in found.verdicts], bool)


def verdicts(found: Inspection, chosen: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Describe the verdict on each window."""
    return [
        {
            "verdict": v.verdict,
            "enrolled": bool(enrolled),
            **({"channels": list(v.channels)} if v.channels else {}),
            **({} if v.verdict == NON_FINITE else {"distance": round(v.distance, 3)}),
        }
        for v, enrolled in zip(found.verdicts, chosen, strict=True)
    ]


def state(model: LoadedModel, enrolled: Enrolled, base: Statistics | None) -> dict[str, Any]:
    """Describe what is enrolled, what earlier calibrations were shown, and what remains a class."""
    classes = {}
    for i, label in enumerate((*model.labels, *enrolled.own)):
        windows, repetitions = enrolled.of_class(i)
        calibrated = 0 if base is None else round(float(base.n[i]))
        classes[label] = {
            "enrolled": windows,
            "repetitions": repetitions,
            "calibrated": calibrated,
            "remaining": max(0, WINDOWS_ADVISED - windows - calibrated),
        }
    total = sum(counts["enrolled"] for counts in classes.values())
    return {"retention": enrolled.settings.retention, "samples": total, "classes": classes}
