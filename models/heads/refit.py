"""A head from statistics alone, with no windows to hold out: fitted, and judged by what the population gained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.heads.calibration import shared_head
from models.heads.fit import FITS, placed
from models.heads.guard import Verdict, judge_by_population, off_distribution, swapped_labels, unseen_classes
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
    seen = stats.seen
    if (refusal := unseen_classes(stats, prior)) is not None:
        return refusal, ()
    at = placed(stats, prior)
    found = [
        f"windows labelled {', '.join(cycle)} look like one another's in the population: were the labels swapped?"
        for cycle in swapped_labels(stats, at)
    ]
    if (distance := off_distribution(stats, at)) is not None:
        found.append(f"the windows lie {distance:.1f} times as far from the population as users usually do")
    windows, repetitions = float(stats.n[seen].mean()), float(stats.repetitions_seen[seen].mean())
    return judge_by_population(prior, windows, repetitions, found), tuple(found)


def refit(stats: Statistics, prior: Prior, method: str = "map", weight: float = 1.0) -> Refit:
    """Fit a user's head from their statistics in a prior's feature space.

    Args:
        stats: of all the user's windows, in the prior's first p features.
        prior: the bundle's.
        method: as the user's head was fitted; one that needs windows is replaced by `map`.
        weight: share of the personal head in what was served (1: no blend).
    """
    chosen = method if method in FITS else "map"
    candidate = FITS[chosen](stats, placed(stats, prior))
    verdict, warnings = judge_statistics(stats, prior)
    promoted = verdict.outcome == "promoted" and bool(np.isfinite(candidate.weight).all())
    head = blend(shared_head(prior), candidate, weight) if promoted else None
    return Refit(head, candidate, chosen, verdict, warnings)
