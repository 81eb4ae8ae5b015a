"""The population prior of a classification on features that a graph computes. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.heads.prior import HyperParameters, Prior
from models.heads.spread import spread
from models.heads.tuning import LeftOut, Trial, evidence, trials_of, tune

FEWEST_USERS = 3
START = HyperParameters(growth=1.0, window=10.0, shrinkage=100.0)

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


class _Person(NamedTuple):
    """One person: features, class and repetition of each window, in time order."""

    z: Array
    y: Labels
    repetition: Labels


def fit_classification(
    z: NDArray[np.floating],
    y: NDArray[np.generic],
    user: NDArray[np.generic],
    repetition: NDArray[np.integer] | None = None,
    *,
    labels: Sequence[str],
) -> tuple[Prior, dict[str, Any]]:
    """Fit the shared head (a linear discriminant over people) and the prior; settings and record by leaving people out.

    Args:
        z: features `(n, d)`, each person's in time order.
        y: class indices `(n,)`.
        user: whose each window is, `(n,)`.
        repetition: ids `(n,)` of what was recorded in one go; without them a person's windows of a class count as one.
        labels: names of the K classes.

    Returns:
        The prior, and for the manifest's `evaluation` the shared head's accuracy for people left out.

    Raises:
        ValueError: fewer than three people, a class that nobody showed, or arrays that do not fit each other.
    """
    index, ids = np.asarray(y), np.zeros(len(z), np.int64) if repetition is None else np.asarray(repetition, np.int64)
    if not len(z) == len(index) == len(user) == len(ids) or index.dtype.kind not in "iu":
        raise ValueError("features, class indices, users and repetitions do not fit each other: one of each a window")
    if not set(np.unique(index).tolist()) == set(range(len(labels))):
        raise ValueError(f"class indices must be 0 to {len(labels) - 1}, each at least once, for {', '.join(labels)}")
    if not np.isfinite(z).all():
        raise ValueError("the features are not finite")
    everyone = [user == u for u in np.unique(user)]
    if len(everyone) < FEWEST_USERS:
        raise ValueError(f"a prior needs {FEWEST_USERS} people or more, not {len(everyone)}")
    people = [_Person(np.asarray(z[own], np.float64), index[own].astype(np.int64), ids[own]) for own in everyone]
    names = tuple(labels)
    left, trials, hits = list[LeftOut](), list[Trial](), list[float]()
    for number, person in enumerate(people):
        others = _prior([*people[:number], *people[number + 1 :]], names, START)
        generic = person.z @ others.generic_weight.T + others.generic_bias
        hits.append(float((generic.argmax(1) == person.y).mean()))
        session = np.zeros(len(person.y), np.int64)
        left.append(LeftOut(others, person.z, person.y, session, person.repetition, generic))
        trials += trials_of(number, left[-1])
    if not trials:
        raise ValueError("nobody has enough windows of two labels to be calibrated and scored")
    hyper = tune(left, trials, START)
    records, figures = evidence(left, trials, hyper, 1, place=False)
    prior = _prior(people, names, hyper.model_copy(update={"evidence": records}))
    told = {"accuracy": float(np.mean(hits)), "worst": min(hits), "people": len(people)}
    return prior, {"left_out_people": told, "personal": figures}


def _prior(people: Sequence[_Person], labels: tuple[str, ...], hyper: HyperParameters) -> Prior:
    """Class means over people, and what windows, repetitions and people differ by."""
    means, within, between, moves, repeats = spread(people, len(labels))
    d = len(within)
    between = between + 1e-6 * float(np.trace(within)) / d * np.eye(d)
    # One repetition each: its spread cannot be told from the people's.
    repetition = moves / repeats if repeats > 0 else 0.3 * between
    weight = np.asarray(np.linalg.solve(within + between, means.T).T, np.float64)
    return Prior(
        labels=labels,
        generic_weight=weight,
        generic_bias=-0.5 * (weight * means).sum(1),
        means=means,
        within=within,
        between=between,
        repetition=repetition,
        whitening=np.linalg.inv(np.linalg.cholesky(within)),
        hyper=hyper,
    )
