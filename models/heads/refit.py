"""A head from statistics alone, with no windows to hold out: fitted, and judged by what the population gained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.heads.calibration import shared_head
from models.heads.doubts import doubts
from models.heads.fit import FITS, placed
from models.heads.guard import Shots, Verdict, judge_by_population, judge_partial
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
    """Judge what a head was fitted from where no window can be held out; returns the verdict, and warnings.

    The prior is that of the placement at which the user wears the sensor (`fit.placed`).
    """
    seen = stats.seen
    missing = [label for label, shown in zip(prior.labels[: prior.known], seen, strict=False) if not shown]
    if missing:
        return judge_partial(None, missing, None, clean=False), ()
    looks = doubts(stats, prior)
    shots = Shots(float(stats.n[seen].mean()), float(stats.repetitions_seen[seen].mean()))
    return judge_by_population(prior, shots, looks.against), (*looks.against, *looks.beside)


def refit(stats: Statistics, prior: Prior, method: str = "map", weight: float = 1.0) -> Refit:
    """Fit a user's head from their statistics in a prior's feature space.

    Args:
        stats: of all the user's windows, in the prior's first p features.
        prior: the bundle's.
        method: as the user's head was fitted; one that needs windows is replaced by `map`.
        weight: share of the personal head in what was served (1: no blend).
    """
    chosen = method if method in FITS else "map"
    at = placed(stats, prior)
    candidate = FITS[chosen](stats, at)
    verdict, warnings = judge_statistics(stats, at)
    promoted = verdict.outcome == "promoted" and bool(np.isfinite(candidate.weight).all())
    head = blend(shared_head(prior), candidate, weight) if promoted else None
    return Refit(head, candidate, chosen, verdict, warnings)
