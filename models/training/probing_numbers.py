"""What comes behind an encoder for a regression: its shared head, the prior of personal heads, and how they did."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.tasks import Measured
from models.heads.head import Head as Affine
from models.heads.regression_population import Stranger, prior_of_strangers
from models.heads.regression_prior import MOST_FEATURES, RegressionPrior, RegressionSettings
from models.training.config import TrainingError
from models.training.pooling import Space, space_of
from models.training.probe_fit import folds_of, stacked
from models.training.probing import FEWEST_PEOPLE, Head, Judge, by_user, unit

__all__ = ["FittedNumbers", "fit_numbers", "fit_ridge"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
PULLS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Weights of the squared norm tried, for features whose mean square is 1 and targets of variance 1."""
POOLED = 30.0
"""Labelled items that the shared head counts for in a personal one where fewer than three people tell:
`fit_regression`'s default. There is no record of personal heads then."""


@dataclass(frozen=True, eq=False)
class FittedNumbers:
    """The shared head `(d, T)` and `(T,)` on features of length 1 less the space's centre, in deviations of the targets
    from their means, so that features are of one size whatever a target's unit; the prior over `[personal | values by
    that head]`, and how it did on what was left out."""

    weight: Array
    bias: Array
    prior: RegressionPrior
    evaluation: dict[str, Any]


def fit_ridge(z: Array, t: Array, pull: float) -> tuple[Array, Array]:
    """Weight `(T, d)` and bias `(T,)` of least mean squared error, in variances of the targets, + pull·‖W‖².

    `pull` is for features whose mean square is 1, as that of `fit_probe`.
    """
    centre, mean, deviation = z.mean(0), t.mean(0), np.maximum(t.std(0), 1e-12)
    scale = float(np.sqrt((z**2).sum(1).mean())) or 1.0
    x, y = (z - centre) / scale, (t - mean) / deviation
    gram = x.T @ x / len(x) + pull * np.eye(x.shape[1])
    weight = np.linalg.solve(gram, x.T @ y / len(x)).T * deviation[:, None] / scale
    return weight, mean - weight @ centre


def fit_numbers(
    features: Array, data: Measured, personal: int, seed: int, space: Space, head: Head | None = None
) -> FittedNumbers:
    """Fit all that comes behind an encoder for a regression on its features `(n, d)`, or `(n, views, d)`.

    As `models.training.probing.fit_top`, whose space this is, of labels. Without a `head` the encoder has not seen the
    items, and a ridge is the shared head, its strength by what folds leave out; with one the figures are of networks
    that had left the items out, in their own features. A share of the way from the mean is what the shared head's
    values are worth by what was left out, as a temperature is of labels.

    Raises:
        TrainingError: too many features for a regression.
    """
    views, t, people = unit(features), data.t, by_user(data)
    z = views if views.ndim == 2 else views[:, 0]
    if space.projection.shape[1] + t.shape[1] > MOST_FEATURES:
        raise TrainingError(
            f"A regression reads at most {MOST_FEATURES} features: personal={MOST_FEATURES - t.shape[1]} or fewer."
        )
    if head is None:
        folds = folds_of(np.zeros(len(t), np.int64), data.user, people, seed)
        pull, values = _left_out_values(space.reduced(views), t, folds)
        x, rows = space.reduced(views), np.arange(len(t))
        weight, bias = fit_ridge(*_rows(x, t, rows), pull)
        weight, told = space.basis @ weight.T, {"pull": pull}
        judged = np.ones(len(t), bool)
        judges = [Judge(judged, z, values)]
    else:
        judges = [Judge(j.out, unit(j.features), j.logits) for j in head.judges]
        judged, values = np.any([j.out for j in judges], 0), np.zeros_like(t)
        for j in judges:
            values[j.out] = j.logits[j.out]
        weight, bias, told = head.weight.T, head.bias + space.centre @ head.weight.T, {}
    middle, share = _share(values[judged], t[judged])
    units = _Units(t.mean(0), np.maximum(t.std(0), 1e-12))
    judges = [Judge(j.out, j.features, units.off(middle[0] + share * (j.logits - middle[1]))) for j in judges]
    values = middle[0] + share * (values - middle[1])
    weight, bias = weight * share / units.deviation, units.off(middle[0] + share * (bias - middle[1]))
    own = np.concatenate([space.personal(z), (z - space.centre) @ weight + bias], 1)
    prior = _prior(own, values, judged, judges, data, personal, units)
    evaluation = _figures(values, judged, data, people)
    evaluation["zero_shot"] |= {**told, "share": share.tolist()}
    return FittedNumbers(weight, bias, prior, evaluation)


def _rows(x: Array, t: Array, rows: NDArray[np.int64]) -> tuple[Array, Array]:
    """Some items' features, of all views, and their targets."""
    found, index = stacked(x[rows], rows)
    return found, t[index]


def _left_out_values(x: Array, t: Array, folds: Sequence[Mask]) -> tuple[float, Array]:
    """Choose the pull by what folds leave out; return it and the values `(n, T)` by ridges that had not seen them."""
    best: tuple[float, float, Array] | None = None
    first = x if x.ndim == 2 else x[:, 0]
    for pull in PULLS:
        values = np.zeros_like(t)
        for out in folds:
            w, b = fit_ridge(*_rows(x, t, np.flatnonzero(~out)), pull)
            values[out] = first[out] @ w.T + b
        error = float((((values - t) / t.std(0)) ** 2).mean())
        if best is None or error < best[0]:
            best = (error, pull, values)
    assert best is not None
    return best[1:]


def _share(values: Array, t: Array) -> tuple[tuple[Array, Array], Array]:
    """Means of targets and values `(T,)`, and the share in [0, 1] of a value's way from its mean with least error."""
    mean, middle = t.mean(0), values.mean(0)
    away = values - middle
    share = ((t - mean) * away).sum(0) / np.maximum((away**2).sum(0), 1e-24)
    return (mean, middle), np.clip(share, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class _Units:
    """What targets are measured in within the graph: deviations `(T,)` from their means `(T,)`."""

    mean: Array
    deviation: Array

    def off(self, values: Array) -> Array:
        """Values in their own units as deviations."""
        return np.asarray((values - self.mean) / self.deviation)

    def shared(self, personal: int) -> Affine:
        """The head that reads the values behind the personal features, in their own units."""
        return Affine(np.concatenate([np.zeros((len(self.mean), personal)), np.diag(self.deviation)], 1), self.mean)


def _moment(z: Array, user: NDArray[np.int64]) -> Array:
    """Mean of (z, 1)(z, 1)ᵀ, every person weighing the same."""
    x = np.concatenate([z, np.ones((len(z), 1))], 1)
    return np.asarray(np.mean([x[user == u].T @ x[user == u] / (user == u).sum() for u in np.unique(user)], 0))


def _prior(
    own: Array, values: Array, judged: Mask, judges: Sequence[Judge], data: Measured, personal: int, units: _Units
) -> RegressionPrior:
    """The prior over `own (n, p + T)`, from people left out where there are some."""
    t, names = data.t, tuple(target.name for target in data.targets)
    shared = units.shared(own.shape[1] - len(names))
    people = by_user(data)
    moment = _moment(own, data.user if people else np.zeros(len(t), np.int64))
    strangers = _strangers(judges, data, personal, units) if people else []
    if len(strangers) >= FEWEST_PEOPLE:
        return prior_of_strangers(strangers, shared, moment, t.var(0), targets=names)
    error = np.maximum(((values - t)[judged] ** 2).mean(0), 1e-9 * t.var(0))
    settings = RegressionSettings(windows=POOLED, farthest=1.0)
    return RegressionPrior(names, shared, moment, error, settings)


def _strangers(judges: Sequence[Judge], data: Measured, personal: int, units: _Units) -> list[Stranger]:
    """People with two repetitions or more, each in the space and under the shared head of others."""
    found, nothing = list[Stranger](), np.zeros(len(data), np.int64)
    for u in range(len(data.users)):
        rows = np.flatnonzero(data.user == u)
        judge = next((j for j in judges if j.out[rows].all()), None)
        repetition = np.unique(data.repetition[rows], return_inverse=True)[1].reshape(-1)
        if judge is None or repetition.max() == 0:
            continue
        known = data.user != u if judge.out.all() else ~judge.out
        space = space_of(judge.features[known], nothing[known], personal)
        z = np.concatenate([space.personal(judge.features), judge.logits], 1)
        rows, repetition = rows[order := np.argsort(repetition, kind="stable")], repetition[order]
        shared = units.shared(space.projection.shape[1])
        found.append(Stranger(z[rows], data.t[rows], repetition, shared, _moment(z[known], data.user[known])))
    return found


def _figures(values: Array, judged: Mask, data: Measured, people: bool) -> dict[str, Any]:
    error, names = (values - data.t) ** 2, [target.name for target in data.targets]
    group = data.user if people else np.zeros(len(data), np.int64)
    by = np.array([error[judged & (group == g)].mean(0) for g in np.unique(group[judged])])
    around = ((data.t - data.t[judged].mean(0))[judged] ** 2).mean(0)

    def named(figures: Array) -> dict[str, float]:
        """By target."""
        return dict(zip(names, map(float, figures), strict=True))

    return {
        "protocol": "people of the population, each left out" if people else "parts of all items, each left out",
        "zero_shot": {
            "rmse": named(np.sqrt(error[judged].mean(0))),
            "r2": named(1 - error[judged].mean(0) / around),
            "worst_rmse": named(np.sqrt(by.max(0))),
            "of": "users" if people else "items",
        },
        "users": len(by) if people else 0,
    }
