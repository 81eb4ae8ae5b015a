"""The guard of regression heads: held-out errors in units of the population's, and what they allow to be served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.folds import clustered_error
from models.heads.guard import BLEND_WEIGHTS
from models.heads.regression_prior import RegressionEvidence, RegressionPrior
from models.heads.transfer import Transfer, classified, expected_claim, held_out_claim, student

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RegressionScore:
    """How a head did on windows that it was not fitted on.

    Attributes:
        rmse: root of the mean squared error by target `(T,)`, each in its own unit.
        r2: share of the targets' variance around their own mean that is explained, each target in units of its
            residual variance; None where the targets do not vary.
        n: number of windows.
        folds: number of folds they were held out in.
    """

    rmse: tuple[float, ...]
    r2: float | None
    n: int
    folds: int


@dataclass(frozen=True, slots=True)
class RegressionVerdict:
    """What the guard decided, with the numbers and the words; fields as of `models.heads.guard.Verdict`.

    `transfer` measures gains as the shared head's mean squared error less the personal one's, in units of the
    population's residual variance.
    """

    outcome: str
    evidence: str
    weight: float
    reason: str
    remember: bool = True
    shared: RegressionScore | None = None
    previous: RegressionScore | None = None
    candidate: RegressionScore | None = None
    transfer: Transfer | None = None


@dataclass(frozen=True, slots=True)
class TargetsHeldOut:
    """Held-out windows: what the heads say of them and what they should say, all `(n, T)`.

    `block` `(n,)`: the repetition a window is of, or the block of the only one. `repetitions`: how many there are.
    `compared` `(n,)`: those that the previous head was not fitted on, on which alone it can be compared with; or None.
    """

    t: Array
    block: NDArray[np.integer]
    folds: int
    repetitions: int
    shared: Array
    candidate: Array
    previous: Array | None = None
    compared: NDArray[np.bool_] | None = None


def score(values: Array, t: Array, prior: RegressionPrior, folds: int = 1) -> RegressionScore:
    """Score what a head says `(n, T)` against the targets `(n, T)`."""
    rmse = tuple(float(v) for v in np.sqrt(((values - t) ** 2).mean(0)))
    around = float(prior.errors(np.broadcast_to(t.mean(0), t.shape), t).mean())
    varies = around > 1e-18 * float(prior.errors(np.zeros_like(t), t).mean())  # beyond what rounding leaves of the mean
    r2 = 1 - float(prior.errors(values, t).mean()) / around if varies else None
    return RegressionScore(rmse, r2, len(t), folds)


def judge_held_out(held: TargetsHeldOut, prior: RegressionPrior) -> RegressionVerdict:
    """Decide on held-out errors: promote, blend or keep.

    Nothing is promoted that does not follow its targets, that is, do better than their mean beyond one standard error:
    it would gain by saying less, whatever the targets are. Nor what is worse than the active head beyond two.
    """
    shared, candidate = (prior.errors(values, held.t) for values in (held.shared, held.candidate))
    gains = shared - candidate
    gain, error = float(gains.mean()), clustered_error(gains, held.block)
    degrees = len(np.unique(held.block)) - 1
    reach = student(0.975, degrees) * error
    transfer = classified(gain, gain - reach, gain + reach, held_out_claim(held.repetitions))
    fresh = np.ones(len(held.t), bool) if held.compared is None else held.compared
    scores = (
        score(held.shared, held.t, prior, held.folds),
        None if held.previous is None else score(held.previous[fresh], held.t[fresh], prior, held.folds),
        score(held.candidate, held.t, prior, held.folds),
    )
    numbers = (
        f"mean squared error {candidate.mean():.3g} against the shared head's {shared.mean():.3g} "
        f"(1 being usual) on {len(held.t)} held-out windows"
    )

    def verdict(outcome: str, weight: float, reason: str, *, remember: bool = True) -> RegressionVerdict:
        """Return a verdict with these numbers."""
        return RegressionVerdict(outcome, "held_out", weight, reason, remember, *scores, transfer)

    if held.previous is not None:
        loss = (candidate - prior.errors(held.previous, held.t))[fresh]
        if float(loss.mean()) > 2 * clustered_error(loss, held.block[fresh]):
            return verdict("kept", 0.0, f"the active head is better, by {loss.mean():.3g}: {numbers}", remember=False)
    mean = prior.errors(np.broadcast_to(held.t.mean(0), held.t.shape), held.t) - candidate
    if not float(mean.mean()) > clustered_error(mean, held.block):
        text = f"the targets do not follow the windows, or hardly vary: their mean does as well; {numbers}"
        return verdict("kept", 0.0, text, remember=False)
    if gain > error:
        return verdict("promoted", 1.0, f"personal head better: {numbers}")
    best = _best_blend(held, prior)
    if best:
        return verdict("blended", best, f"a blend of {best:.0%} personal is better beyond chance; alone {numbers}")
    return verdict("kept", 0.0, f"the personal head is not better: {numbers}")


def _best_blend(held: TargetsHeldOut, prior: RegressionPrior) -> float:
    """The share of the personal head with the least error among those whose gain is beyond one standard error, or 0."""
    shared = prior.errors(held.shared, held.t)
    best, most = 0.0, 0.0
    for weight in BLEND_WEIGHTS:
        gains = shared - prior.errors((1 - weight) * held.shared + weight * held.candidate, held.t)
        gain = float(gains.mean())
        if gain > max(most, clustered_error(gains, held.block)):
            best, most = weight, gain
    return best


def judge_by_population(
    prior: RegressionPrior, windows: float, repetitions: float, warnings: Sequence[str]
) -> RegressionVerdict:
    """Decide without anything held out: on what as many windows did for left-out population users."""
    record = prior.evidence_for(windows, repetitions)
    if record is None:
        text = "fewer labelled windows than the population's record begins with"
        return RegressionVerdict("insufficient", "population", 0.0, text)
    transfer = _expected(record)
    if warnings:
        text = "a warning on the input needs held-out evidence: send two repetitions"
        return RegressionVerdict("insufficient", "population", 0.0, text, transfer=transfer)
    text = (
        f"{record.windows} windows lowered the mean squared error by {record.gain:.3g} (at least {record.lower:.3g}, a "
        f"one-sided 95 % bound, the shared head's being 1) for {record.users} left-out users"
    )
    if record.lower > 0:
        return RegressionVerdict("promoted", "population", 1.0, text, transfer=transfer)
    text = f"{text}: too little to promote unseen"
    return RegressionVerdict("insufficient", "population", 0.0, text, transfer=transfer)


def _expected(record: RegressionEvidence) -> Transfer:
    """Classify by what as many windows did for left-out people: the interval of their mean, not of this user."""
    degrees = record.users - 1
    reach = (record.gain - record.lower) * student(0.975, degrees) / student(0.95, degrees)
    return classified(record.gain, record.gain - reach, record.gain + reach, expected_claim(record.users))
