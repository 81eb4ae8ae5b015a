"""A head from statistics alone, with no windows to hold out: fitted, and judged by what the population gained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.heads.calibration import Calibration, calibrate, shared_head
from models.heads.fit import FITS, placed
from models.heads.guard import Verdict, unseen_classes
from models.heads.head import Head, blend
from models.heads.prior import Prior
from models.heads.statistics import Statistics


@dataclass(frozen=True, slots=True)
class Refit:
    """A head fitted anew from a user's statistics, and the guard's verdict on it; `head` is None unless promoted."""

    head: Head | None
    candidate: Head
    method: str
    verdict: Verdict
    warnings: tuple[str, ...]


def judge_statistics(stats: Statistics, prior: Prior) -> tuple[Verdict, tuple[str, ...]]:
    """Judge what a head was fitted from where no window can be held out; returns the verdict, and warnings."""
    if (refusal := unseen_classes(stats, prior)) is not None:
        return refusal, ()
    found = _fitted(stats, prior, "map")
    return found.verdict, found.warnings


def refit(stats: Statistics, prior: Prior, method: str = "map", weight: float = 1.0) -> Refit:
    """Fit a user's head from their statistics in a prior's feature space.

    Args:
        stats: of all the user's windows, in the prior's first p features.
        prior: the bundle's.
        method: as the user's head was fitted; one that needs windows is replaced by `map`.
        weight: share of the personal head in what was served (1: no blend).
    """
    chosen = method if method in FITS else "map"
    if (refusal := unseen_classes(stats, prior)) is not None:
        return Refit(None, FITS[chosen](stats, placed(stats, prior)), chosen, refusal, ())
    found = _fitted(stats, prior, chosen)
    promoted = found.verdict.outcome == "promoted" and bool(np.isfinite(found.candidate.weight).all())
    head = blend(shared_head(prior), found.candidate, weight) if promoted else None
    return Refit(head, found.candidate, chosen, found.verdict, found.warnings)


def _fitted(stats: Statistics, prior: Prior, method: str) -> Calibration:
    """Calibrate without any windows beside the statistics."""
    nothing = np.empty(0, np.int64)
    return calibrate(prior, np.empty((0, prior.dim)), nothing, nothing, before=stats, method=method)
