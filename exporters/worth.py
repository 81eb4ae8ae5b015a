"""What heads on a graph's features are worth to people whose windows are labelled, for one output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.calibration import shared_head
from models.heads.fit import fit_map
from models.heads.head import Head
from models.heads.prior import Prior
from models.heads.regression import RegressionStatistics, fit_regression
from models.heads.regression_prior import RegressionPrior
from models.heads.statistics import Statistics

Features = NDArray[np.float32]

LARGEST_LOSS = 0.01
"""What a variant may lose, of the shared head and of personal heads, each as a mean over people: accuracy, or error in
units of what the shared head of targets has for people it does not know (root mean square)."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Windows of people: rows `(n, …)` as the graph takes them, and of them classes, people and repetitions `(m,)`.

    `y` of a regression are values `(m, T)`. `rows` `(m,)` are those of `x` that have an answer; None for all, in order:
    outputs that are known of other windows share the `x`, so that the graph runs on it once.

    A person of −1 is nobody in particular: of files and texts it may not be known whose they are.
    """

    x: NDArray[np.generic]
    y: NDArray[np.int64] | NDArray[np.float64]
    user: NDArray[np.int64]
    repetition: NDArray[np.int64]
    rows: NDArray[np.int64] | None = None

    @property
    def people(self) -> int:
        """How many people are known; 0 where it is not known whose the windows are."""
        return len(np.unique(self.user[self.user >= 0]))

    def of(self, z: Features) -> Features:
        """Return features of the windows that have an answer, given those of all."""
        return z if self.rows is None else z[self.rows]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Mean over people: of the shared head, and of heads fitted on each person's first repetition.

    `personal` is None where nobody shows every label in a first repetition and has another one.
    """

    shared: float
    personal: float | None

    @property
    def mean(self) -> float:
        """Of both where there are both: what variants are ranked by."""
        return self.shared if self.personal is None else (self.shared + self.personal) / 2

    def loss(self, variant: Accuracy) -> float:
        """The larger of what both heads lose in a variant."""
        lost = self.shared - variant.shared
        if self.personal is not None and variant.personal is not None:
            lost = max(lost, self.personal - variant.personal)
        return lost

    def __str__(self) -> str:
        return f"{self.shared:.1%}" if self.personal is None else f"{self.shared:.1%} / {self.personal:.1%}"


@dataclass(frozen=True, slots=True)
class Errors:
    """Of a regression: errors of the shared head, and of heads fitted on each person's first repetition.

    `shared` and `personal` are root mean squares over all people and targets, in units of what the shared head has for
    people it does not know; `rmse` are the shared head's by target, in its unit. `personal` is None where nobody has
    two repetitions.
    """

    shared: float
    personal: float | None
    rmse: tuple[float, ...]

    @property
    def mean(self) -> float:
        """What variants are ranked by: the nearer to 1, the better."""
        return 1 - (self.shared if self.personal is None else (self.shared + self.personal) / 2)

    def loss(self, variant: Errors) -> float:
        """The larger of what the errors of both heads rise by in a variant."""
        lost = variant.shared - self.shared
        if self.personal is not None and variant.personal is not None:
            lost = max(lost, variant.personal - self.personal)
        return lost

    def __str__(self) -> str:
        return f"RMSE {', '.join(f'{value:.4g}' for value in self.rmse)}"


Worth = Accuracy | Errors


def worth_of(z: Features, judged: Labelled, prior: Prior | RegressionPrior) -> Worth:
    """How right heads are on features `z (n, d)` of labelled windows."""
    if isinstance(prior, RegressionPrior):
        return errors_of(z, judged, prior)
    return accuracy_of(z, judged, prior)


def lost(before: Worth, after: Worth) -> float:
    """What a variant loses of an output's worth."""
    if isinstance(before, Errors):
        assert isinstance(after, Errors)
        return before.loss(after)
    assert isinstance(after, Accuracy)
    return before.loss(after)


def accuracy_of(z: Features, judged: Labelled, prior: Prior) -> Accuracy:
    """How often heads are right on features `z (n, d)` of labelled windows."""
    people = np.unique(judged.user)
    return Accuracy(_right(shared_head(prior), z, judged, people), _personal(z, judged, prior, people))


def errors_of(z: Features, judged: Labelled, prior: RegressionPrior) -> Errors:
    """How far heads of targets are off on features `z (n, d)` of labelled windows."""
    t = np.asarray(judged.y, np.float64)
    values = prior.generic.logits(z)
    found = []
    for person in np.unique(judged.user):
        shown, asked = _first_and_others(judged, person)
        if len(asked):
            stats = RegressionStatistics.of(z[shown], t[shown])
            head = fit_regression(stats, prior.generic, prior.second_moment, windows=prior.settings.windows)
            found.append(float(prior.errors(head.logits(z[asked]), t[asked]).mean()))
    rmse = np.sqrt(((values - t) ** 2).mean(0))
    shared = float(np.sqrt(prior.errors(values, t).mean()))
    return Errors(shared, float(np.sqrt(np.mean(found))) if found else None, tuple(rmse.tolist()))


def _right(head: Head, z: Features, judged: Labelled, people: NDArray[np.int64]) -> float:
    right = head.logits(z).argmax(1) == judged.y
    return float(np.mean([right[judged.user == person].mean() for person in people]))


def _personal(z: Features, judged: Labelled, prior: Prior, people: NDArray[np.int64]) -> float | None:
    """Accuracy of heads fitted on each person's first repetition, on their others; None where nobody has both."""
    found = []
    y = judged.y.astype(np.int64)
    for person in people:
        shown, asked = _first_and_others(judged, person)
        if len(asked) and len(np.unique(y[shown])) == prior.classes:
            stats = Statistics.of(z[shown, : prior.personal], y[shown], judged.repetition[shown], prior.classes)
            found.append(float((fit_map(stats, prior).logits(z[asked]).argmax(1) == y[asked]).mean()))
    return float(np.mean(found)) if found else None


def _first_and_others(judged: Labelled, person: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    own = np.flatnonzero(judged.user == person)
    first = judged.repetition[own] == judged.repetition[own].min()
    return own[first], own[~first]
