"""Calibration of targets: features and what they should say in, a guarded personal head out. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.heads.folds import Fold, plan_folds
from models.heads.head import Head, blend
from models.heads.inputs import Raw, inspect, rows_of
from models.heads.regression import RegressionStatistics, fit_regression
from models.heads.regression_guard import (
    RegressionVerdict,
    TargetsHeldOut,
    judge_by_population,
    judge_held_out,
)
from models.heads.regression_prior import RegressionPrior
from models.heads.regression_sums import RepetitionSums

Array = NDArray[np.float64]
HARDLY_VARY = "the targets hardly vary, and a single posture tells nothing: send windows with targets further apart"
ODD = "the targets look like another order or unit than the model's"
FAR = 3.0
"""Error of the shared head on a user's windows, in units of the worst left-out person's, beyond which it is odd."""
NOTHING_NEW = "all these windows were sent before and are in the sums already: none is left to judge by"


@dataclass(frozen=True, slots=True)
class RegressionCalibration:
    """What one calibration produced.

    Attributes:
        head: what may be served, or None when the guard keeps what was there.
        candidate: the personal head itself, unblended.
        sums: all the user's windows after this call.
        verdict: the guard's decision.
        warnings: sentences about the input.
        seconds: durations of `fit` (with the statistics) and `evaluate`.
    """

    head: Head | None
    candidate: Head
    sums: RepetitionSums
    verdict: RegressionVerdict
    warnings: tuple[str, ...]
    seconds: dict[str, float]


def calibrate_regression(
    prior: RegressionPrior,
    z: NDArray[np.floating],
    t: NDArray[np.floating],
    repetition: NDArray[np.integer],
    *,
    before: RepetitionSums | None = None,
    previous: Head | None = None,
    overlap: int = 0,
    x: Raw | None = None,
) -> RegressionCalibration:
    """Fit a personal head for targets and judge it.

    Args:
        prior: the bundle's.
        z: features `(n, d)`, in time order within a repetition.
        t: targets `(n, T)`, in the prior's order and units.
        repetition: repetition ids `(n,)`; new ones, whatever ids `before` holds.
        before: sums of earlier calls to add to, or None to begin anew.
        previous: the user's active personal head, compared with.
        overlap: how many following windows share samples with a window.
        x: the raw windows `(n, C, T)`, or those of each sensor, to warn of flat and clipped channels.

    Raises:
        ValueError: as `RegressionStatistics.of`, or sums would be too large to be kept.
    """
    begin = time.perf_counter()
    features, values = np.asarray(z, np.float64), np.asarray(t, np.float64)
    before = None if before is None else before.remembered()
    first = max(before.parts, default=-1) + 1 if before is not None else 0
    repetition = np.unique(repetition, return_inverse=True)[1] + first
    new = RepetitionSums.of(features, values, repetition, None if x is None else rows_of(x))
    again = {} if before is None else before.sent_before(new)
    earlier = None if before is None else before.without(again.values())
    fresh = new if earlier is None else new.without(earlier.merged_before(new))
    whole = fresh if earlier is None else earlier if fresh is None else earlier + fresh
    assert whole is not None  # without earlier ones all are fresh
    kept = whole.within_budget()
    kept.check_storable()
    candidate = _fitted(whole.total, prior)
    fitted = time.perf_counter()
    odd = _odd(prior, float(prior.errors(prior.generic.logits(features), values).mean()))
    judged = np.isin(repetition, [] if fresh is None else list(fresh.parts))
    z, t, ids = features[judged], values[judged], repetition[judged]
    folds = plan_folds(np.zeros(len(z), np.int64), ids, overlap)
    if fresh is None:
        verdict = RegressionVerdict("insufficient", "none", 0.0, NOTHING_NEW, remember=False)
    elif folds:
        seen_before = np.isin(ids, list(again))
        verdict = judge_held_out(_held_out(folds, whole.total, prior, z, t, ids, previous, seen_before), prior)
    elif float(prior.errors(np.broadcast_to(t.mean(0), t.shape), t).mean()) < 1.0:
        verdict = RegressionVerdict("insufficient", "population", 0.0, HARDLY_VARY)
    else:
        verdict = judge_by_population(prior, whole.windows, len(whole), odd)
    verdict = _cautious(verdict, bool(odd), earlier=before is not None)
    head = blend(prior.generic, candidate, verdict.weight) if verdict.weight else None
    seen = inspect(x, features, None).warnings
    repeated = len(again) + len(np.unique(repetition)) - (0 if fresh is None else len(fresh))
    told = "; the active head may be fitted on them, and is compared with on the others only"
    told = told if again and previous is not None else ""
    sent = (f"{repeated} of the repetitions were sent before; each counts once{told}",) if repeated else ()
    seconds = {"fit": fitted - begin, "evaluate": time.perf_counter() - fitted}
    return RegressionCalibration(head, candidate, kept, verdict, (*odd, *seen, *sent), seconds)


def _cautious(verdict: RegressionVerdict, odd: bool, *, earlier: bool) -> RegressionVerdict:
    """Neither serve nor remember targets of what looks like another order or unit, and say how to begin anew."""
    if odd:
        outcome = verdict.outcome if verdict.outcome == "insufficient" else "kept"
        verdict = replace(verdict, outcome=outcome, weight=0.0, remember=False, reason=f"{ODD}: {verdict.reason}")
    if earlier and verdict.outcome == "kept":
        verdict = replace(verdict, reason=f"{verdict.reason}; if earlier calls were wrong, mode 'replace' begins anew")
    return verdict


def refit_regression(prior: RegressionPrior, sums: RepetitionSums) -> RegressionVerdict:
    """Judge what a head was fitted from where no window can be held out."""
    return judge_by_population(prior, sums.windows, len(sums), ())


def _fitted(sums: RegressionStatistics, prior: RegressionPrior) -> Head:
    """Fit a head, in the float32 that it is stored and served in."""
    head = fit_regression(sums, prior.generic, prior.second_moment, windows=prior.settings.windows)
    return Head(head.weight.astype(np.float32).astype(np.float64), head.bias.astype(np.float32).astype(np.float64))


def _odd(prior: RegressionPrior, error: float) -> tuple[str, ...]:
    """Warn of targets that are further from the shared head's than any left-out person's."""
    most = FAR * max(prior.settings.farthest, 1.0)
    if error <= most:
        return ()
    return (
        f"the targets are far from what the shared head says (mean squared error {error:.3g}; the left-out person whom "
        f"it suited least had {prior.settings.farthest:.3g}): are their order and units the model's?",
    )


def _held_out(
    folds: Sequence[Fold],
    whole: RegressionStatistics,
    prior: RegressionPrior,
    z: Array,
    t: Array,
    repetition: NDArray[np.integer],
    previous: Head | None,
    seen_before: NDArray[np.bool_],
) -> TargetsHeldOut:
    """Leave each fold out in closed form, and gather what the heads say of it.

    The previous head was fitted on what was `seen_before`: where that is all, there is nothing to compare it on.
    """
    said, order, blocks = [], [], []
    for number, fold in enumerate(folds):
        rest = whole - RegressionStatistics.of(z[fold.removed], t[fold.removed])
        rows = np.flatnonzero(fold.scored)
        said.append(_fitted(rest, prior).logits(z[rows]))
        order.append(rows)
        blocks.append(repetition[rows] if fold.repetitions else np.full(len(rows), number))
    at = np.concatenate(order)
    fresh = ~seen_before[at]
    return TargetsHeldOut(
        t[at],
        np.concatenate(blocks),
        len(folds),
        len(np.unique(repetition[at])),
        prior.generic.logits(z[at]),
        np.concatenate(said),
        None if previous is None or not fresh.any() else previous.logits(z[at]),
        None if fresh.all() else fresh,
    )
