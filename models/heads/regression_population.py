"""The population prior of a regression, from the features and targets of people, each left out in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.heads.head import Head
from models.heads.regression import RegressionStatistics, fit_regression
from models.heads.regression_prior import MOST_FEATURES, RegressionEvidence, RegressionPrior, RegressionSettings
from models.heads.transfer import student

Array = NDArray[np.float64]
PULLS = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Windows that the population's solution may count for in a personal head."""
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
"""Strengths of the shared head's ridge, in units of each feature's variance."""
FEW = (5, 20)
"""Windows of one repetition that calibrations are tried with, beside whole repetitions."""
MOST_REPETITIONS = 4
PARTS = 4
"""Parts that the windows of a person without repetition ids are taken in."""
FEWEST_USERS = 3


class _Person(NamedTuple):
    """One person: features, targets and repetition of each window, in time order, and the sums over them."""

    z: Array
    t: Array
    repetition: NDArray[np.int64]
    sums: RegressionStatistics


@dataclass(frozen=True, slots=True)
class Stranger:
    """A person whom a shared head does not know, in the features that go with it.

    Attributes:
        z: features `(n, d)`, in time order.
        t: targets `(n, T)`.
        repetition: index of each window's repetition, ascending, from 0.
        shared: the head, that of others.
        moment: `(d + 1, d + 1)` mean of (z, 1)(z, 1)ᵀ over others, each weighing the same.
    """

    z: Array
    t: Array
    repetition: NDArray[np.int64]
    shared: Head
    moment: Array


class _Trial(NamedTuple):
    """A calibration with whole repetitions, or (`windows` above 0) with the first windows of one."""

    repetitions: int
    windows: int = 0


class _Outcome(NamedTuple):
    """What a trial did for one person left out: windows shown, the shared head's error, and one a pull `(P,)`."""

    windows: float
    shared: float
    personal: Array


def fit_population(
    z: NDArray[np.floating],
    t: NDArray[np.floating],
    user: NDArray[np.generic],
    repetition: NDArray[np.integer] | None = None,
    *,
    targets: Sequence[str],
) -> RegressionPrior:
    """Fit the shared head and all that personal heads go by; every person weighs the same.

    The strength of the shared head's ridge, and the number of windows that it counts for in a personal head, are chosen
    by leave-one-user-out; the same left-out people give the residual variance, and the record that the guard goes by
    where it cannot hold anything out.

    Args:
        z: features `(n, d)`, each person's in time order.
        t: targets `(n, T)`.
        user: who each window is of, `(n,)`.
        repetition: repetition ids `(n,)`, ascending in time; without them a person's windows count as four repetitions.
        targets: the T names.

    Raises:
        ValueError: fewer than three people, a person with a single repetition, more than 256 features, a target that
            does not vary, or arrays that do not fit each other or are not finite.
    """
    features, values, who = np.asarray(z, np.float64), np.asarray(t, np.float64), np.asarray(user)
    _check(features, values, who, repetition, targets)
    people = _people(features, values, who, repetition)
    spread = values.var(0)
    errors = {r: np.array([_errors(_solved(_others(people, i), r), p) for i, p in enumerate(people)]) for r in RIDGES}
    ridge = min(RIDGES, key=lambda r: float((errors[r] / spread).mean()))
    left_out = [
        Stranger(p.z, p.t, p.repetition, _solved(others, ridge), others.moment)
        for p, others in ((p, _others(people, i)) for i, p in enumerate(people))
    ]
    everyone = _mean([p.sums for p in people])
    return prior_of_strangers(left_out, _solved(everyone, ridge), everyone.moment, spread, targets=targets)


def prior_of_strangers(
    strangers: Sequence[Stranger], generic: Head, moment: Array, spread: Array, *, targets: Sequence[str]
) -> RegressionPrior:
    """Make the prior of a shared head from people each left out of one that was made alike.

    They say how much the shared head counts for in a personal one, its residual variance, and the record that the guard
    goes by.

    Args:
        strangers: three people or more, each with two repetitions or more.
        generic: the shared head of everybody.
        moment: `(d + 1, d + 1)` mean of (z, 1)(z, 1)ᵀ over everybody, each weighing the same.
        spread: `(T,)` variance of the targets.
        targets: the T names.
    """
    errors = np.array([_errors(s.shared, s) for s in strangers])
    residual = np.maximum(errors.mean(0), 1e-9 * spread)
    outcomes = {trial: [_outcome(s, trial, residual) for s in strangers] for trial in _trials(strangers)}
    means = np.array([[o.personal for o in found] for found in outcomes.values()]).mean((0, 1))
    best = int(means.argmin())
    settings = RegressionSettings(
        windows=PULLS[best],
        farthest=float((errors / residual).mean(1).max()),
        evidence=tuple(_evidence(trial, found, best) for trial, found in outcomes.items()),
    )
    return RegressionPrior(tuple(targets), generic, moment, residual, settings)


def left_out_figures(prior: RegressionPrior, values: NDArray[np.floating]) -> dict[str, dict[str, float]]:
    """Error of the shared head on people it does not know, by target, in its unit, and the variance of the population's
    values `(n, T)` that it explains."""
    r2 = 1 - prior.residual_variance / np.asarray(values, np.float64).var(0)
    pairs = zip(prior.targets, np.sqrt(prior.residual_variance).tolist(), r2.tolist(), strict=True)
    told = {name: (float(f"{error:.6g}"), float(f"{share:.6g}")) for name, error, share in pairs}
    return {"rmse": {n: e for n, (e, _) in told.items()}, "r2": {n: share for n, (_, share) in told.items()}}


def _check(
    z: Array, t: Array, user: NDArray[np.generic], repetition: NDArray[np.integer] | None, targets: Sequence[str]
) -> None:
    n = len(z)
    if z.ndim != 2 or t.shape != (n, len(targets)) or user.shape != (n,):
        raise ValueError(
            f"features {z.shape}, targets {t.shape} and users {user.shape} do not fit: (n, d), (n, {len(targets)}) and "
            "(n,) were expected"
        )
    if repetition is not None and np.shape(repetition) != (n,):
        raise ValueError(f"there are {n} windows and {np.shape(repetition)} repetition ids; one a window was expected")
    if not (np.isfinite(z).all() and np.isfinite(t).all()):
        raise ValueError("features and targets must be finite; some are not")
    if not 1 <= z.shape[1] <= MOST_FEATURES:
        raise ValueError(f"there are {z.shape[1]} features; a regression has 1 to {MOST_FEATURES}: project them first")
    if len(np.unique(user)) < FEWEST_USERS:
        raise ValueError(f"there are {len(np.unique(user))} people; a population has {FEWEST_USERS} or more")
    if not (t.std(0) > 0).all():
        raise ValueError(f"target {targets[int(t.std(0).argmin())]!r} never varies: nothing can be learned of it")


def _people(z: Array, t: Array, user: NDArray[np.generic], repetition: NDArray[np.integer] | None) -> list[_Person]:
    found = []
    for name in np.unique(user):
        rows = np.flatnonzero(user == name)
        ids = np.arange(len(rows)) * PARTS // len(rows) if repetition is None else np.asarray(repetition)[rows]
        order = np.argsort(ids, kind="stable")
        rows, ids = rows[order], np.unique(ids[order], return_inverse=True)[1]
        if ids[-1] == 0:
            raise ValueError(f"user {name} has windows of one repetition only; two or more are needed")
        found.append(_Person(z[rows], t[rows], ids, RegressionStatistics.of(z[rows], t[rows])))
    return found


def _mean(sums: Sequence[RegressionStatistics]) -> RegressionStatistics:
    """Mean over people, each of whom counts 1."""
    first, *rest = [s.scaled(1 / (s.count * len(sums))) for s in sums]
    for other in rest:
        first = first + other
    return first


def _others(people: Sequence[_Person], left_out: int) -> RegressionStatistics:
    return _mean([p.sums for i, p in enumerate(people) if i != left_out])


def _solved(sums: RegressionStatistics, ridge: float) -> Head:
    """Least squares over means of people, with a ridge in units of each feature's variance; the bias has none."""
    d = len(sums.moment) - 1
    mean = sums.moment[d, :d]
    variance = np.append(np.maximum(np.diag(sums.moment)[:d] - mean**2, 0.0), 0.0)
    gram = sums.moment + np.diag(ridge * variance)
    scale = 1 / np.sqrt(np.maximum(np.diag(gram), 1e-300))
    unit = gram * scale * scale[:, None]
    unit[np.diag_indices(d + 1)] += 1e-12
    theta = np.linalg.solve(unit, sums.cross * scale[:, None]) * scale[:, None]
    return Head(theta[:d].T.copy(), theta[d].copy())


def _errors(head: Head, person: _Person | Stranger) -> Array:
    """Mean squared error by target, `(T,)`."""
    return np.asarray(((head.logits(person.z) - person.t) ** 2).mean(0))


def _trials(people: Sequence[Stranger]) -> list[_Trial]:
    """Calibrations that every person has windows for, and as many left to score."""
    repetitions = min(int(p.repetition[-1]) for p in people)
    shortest = min(int(np.bincount(p.repetition).min()) for p in people)
    few = [_Trial(1, windows) for windows in FEW if windows < shortest]
    return few + [_Trial(r) for r in range(1, min(repetitions, MOST_REPETITIONS) + 1)]


def _outcome(person: Stranger, trial: _Trial, residual: Array) -> _Outcome:
    """Calibrate a person left out, beginning with each repetition in turn, and score what no repetition shown has."""
    shared, count = person.shared, int(person.repetition[-1]) + 1
    shown, before, after = [], [], []
    for start in range(count):
        chosen = (np.arange(trial.repetitions) + start) % count
        inside = np.isin(person.repetition, chosen)
        rows = np.flatnonzero(inside)[: trial.windows or None]
        sums = RegressionStatistics.of(person.z[rows], person.t[rows])
        heads = [shared, *(fit_regression(sums, shared, person.moment, windows=pull) for pull in PULLS)]
        z, t = person.z[~inside], person.t[~inside]
        found = [float(((head.logits(z) - t) ** 2 / residual).mean()) for head in heads]
        shown.append(len(rows))
        before.append(found[0])
        after.append(found[1:])
    return _Outcome(float(np.median(shown)), float(np.mean(before)), np.mean(after, 0))


def _evidence(trial: _Trial, outcomes: Sequence[_Outcome], best: int) -> RegressionEvidence:
    gains = np.array([o.shared - o.personal[best] for o in outcomes])
    reach = student(0.95, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    return RegressionEvidence(
        windows=max(1, int(np.median([o.windows for o in outcomes]))),
        repetitions=trial.repetitions,
        users=len(gains),
        gain=float(gains.mean()),
        lower=float(gains.mean() - reach),
    )
