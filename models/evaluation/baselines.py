"""Baselines beside the personal head: closed-form heads on hand-made features and on the bundle's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.data.recordings import Recordings
from models.data.windows import Windows, WindowSpec, windows
from models.evaluation import features
from models.evaluation.personaliser import LocalPersonaliser
from models.heads.fit import FITS
from models.heads.head import Head
from models.heads.prior import HyperParameters, Prior
from models.heads.spread import spread
from models.heads.statistics import Statistics

Array = NDArray[np.float64]
Extract = Callable[[NDArray[np.float32]], NDArray[np.floating]]
Fit = Callable[[NDArray[np.floating], NDArray[np.int64], NDArray[np.int64]], Head]

THINNING = 3
"""Of the population's overlapping windows every third is used for priors."""
WINDOWS = (10.0, 30.0)
SHRINKAGES = (30.0, 100.0, 300.0)
BETWEENS = (0.5, 1.0, 2.0)
GROWTHS = (0.0, 1.0)
"""Settings of the hierarchical baseline that are tried on the population."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A named pair of features and a fit; `fit(z, y, repetition)` gives a head of all K classes."""

    name: str
    extract: Extract
    fit: Fit


def own_lda(classes: int) -> Fit:
    """The user's own linear discriminant; a class that was not shown is never predicted.

    The covariance is shrunk towards its diagonal as far as few windows demand (Ledoit–Wolf 2004): a near-singular one
    would make this baseline worse at five windows a class than at one. With one window a class there is no covariance
    within classes, and features are only scaled.
    """

    def fit(z: NDArray[np.floating], y: NDArray[np.int64], _: NDArray[np.int64]) -> Head:
        """Fit the discriminant of these windows alone."""
        means, residual, shown = _means(z, y, classes)
        if residual.any():
            covariance = _shrunk(residual, max(len(z) - int(shown.sum()), 1))
        else:
            level = np.asarray(z, np.float64).var(0)
            # The floor keeps features of tiny variance (crossing rates beside lengths) from deciding: by one window a
            # class they are noise, and without the floor this baseline loses 13 points on classic TD.
            covariance = np.diag(level + 1e-6 * float(level.mean() or 1.0) + 1e-9)
        return _discriminant(means, np.linalg.solve(covariance, means.T).T, shown)

    return fit


def _shrunk(residual: Array, degrees: int) -> Array:
    """Covariance `(d, d)` of centred rows `(n, d)`, in unit deviations shrunk towards the identity."""
    deviation = np.sqrt((residual**2).sum(0) / degrees)
    deviation = np.maximum(deviation, 1e-6 * deviation.max() + 1e-12)
    unit = residual / deviation
    correlation = unit.T @ unit / degrees
    identity = np.eye(len(deviation))
    noise = max(float(((unit**2).sum(1) ** 2).mean() - (correlation**2).sum()) / len(unit), 0.0)
    share = min(1.0, noise / max(float(((correlation - identity) ** 2).sum()), 1e-12))
    correlation = (1 - share) * correlation + (share + 1e-6) * identity
    return np.asarray(correlation * deviation * deviation[:, None])


def euclidean_ncm(classes: int) -> Fit:
    """Nearest class mean, Euclidean."""

    def fit(z: NDArray[np.floating], y: NDArray[np.int64], _: NDArray[np.int64]) -> Head:
        """Take the class means as they are."""
        means, _residual, shown = _means(z, y, classes)
        return _discriminant(means, means, shown)

    return fit


def whitened_ncm(prior: Prior) -> Fit:
    """Nearest class mean under the population's covariance within users."""

    def fit(z: NDArray[np.floating], y: NDArray[np.int64], _: NDArray[np.int64]) -> Head:
        """Whiten the personal features; the others have no weight."""
        means, _residual, shown = _means(z[:, : prior.personal], y, prior.classes)
        weight = np.linalg.solve(prior.within, means.T).T
        head = _discriminant(means, weight, shown)
        return Head(np.pad(head.weight, ((0, 0), (0, z.shape[1] - prior.personal))), head.bias)

    return fit


def from_statistics(method: str, prior: Prior) -> Fit:
    """One of the product's own fits, unguarded."""

    def fit(z: NDArray[np.floating], y: NDArray[np.int64], repetition: NDArray[np.int64]) -> Head:
        """Fit by the statistics of the personal features."""
        return FITS[method](Statistics.of(z[:, : prior.personal], y, repetition, prior.classes), prior)

    return fit


def _means(z: NDArray[np.floating], y: NDArray[np.int64], classes: int) -> tuple[Array, Array, NDArray[np.bool_]]:
    values: Array = np.asarray(z, np.float64)
    count = np.bincount(y, minlength=classes)
    total = np.zeros((classes, z.shape[1]))
    np.add.at(total, y, values)
    means: Array = total / np.maximum(count, 1)[:, None]
    return means, values - means[y], count > 0


def _discriminant(means: Array, weight: NDArray[np.floating], shown: NDArray[np.bool_]) -> Head:
    bias = -0.5 * (means * weight).sum(1)
    return Head(
        np.where(shown[:, None], np.asarray(weight, np.float64), 0.0), np.where(shown, bias, -1e9).astype(np.float64)
    )


def baselines(
    classes: int,
    local: LocalPersonaliser | None,
    population: Sequence[Recordings],
    labels: Sequence[str],
    spec: WindowSpec | None,
) -> list[Baseline]:
    """The closed-form baselines of docs/evaluation.md; those that need a population are there when there is one.

    Without a `spec`, of models whose windows are not one sensor's, those on hand-made features are left out.
    """
    found = [] if spec is None else _handmade(classes, population, labels, spec)
    if local is not None:
        prior = local.bundle.prior
        found += [
            Baseline("bundle: NCM, population whitening", local.features, whitened_ncm(prior)),
            Baseline("bundle: own LDA", lambda x: local.features(x)[:, : prior.personal], own_lda(classes)),
            Baseline("bundle: map, unguarded", local.features, from_statistics("map", prior)),
        ]
    return found


def _handmade(
    classes: int, population: Sequence[Recordings], labels: Sequence[str], spec: WindowSpec
) -> list[Baseline]:
    found = [
        Baseline("classic TD: own LDA", features.classic_td, own_lda(classes)),
        Baseline("log-variance: own LDA", features.log_variance, own_lda(classes)),
        Baseline("log-TD: Euclidean NCM", features.log_td, euclidean_ncm(classes)),
        Baseline("log-TD + log-covariance: own LDA", features.log_td_covariance, own_lda(classes)),
    ]
    if len(population) >= 3:
        people = [_person(rec, labels, spec) for rec in population]
        td = population_prior([(features.log_td(p.x), p) for p in people], tuple(labels))
        full = tuned_prior([(features.log_td_covariance(p.x), p) for p in people], tuple(labels))
        found.insert(3, Baseline("log-TD: NCM, population whitening", features.log_td, whitened_ncm(td)))
        found.append(
            Baseline(
                "log-TD + log-covariance: hierarchical Bayes",
                features.log_td_covariance,
                from_statistics("map", full),
            )
        )
    return found


def _person(rec: Recordings, labels: Sequence[str], spec: WindowSpec) -> Windows:
    first = rec.session_names[0]
    found = windows(rec, WindowSpec(spec.length, spec.stride * THINNING), sessions={first})
    index = np.array([labels.index(name) if name in labels else -1 for name in rec.label_names], np.int64)
    return replace(found, y=index[found.y])


def population_prior(
    people: Sequence[tuple[Array, Windows]], labels: tuple[str, ...], hyper: HyperParameters | None = None
) -> Prior:
    """Estimate a prior from people's features and windows: class means, and covariances pooled over classes."""
    told = [(z, w.y, w.repetition) for z, w in people]
    means, within, between, moves, repeats = spread(told, len(labels))
    weight = np.asarray(np.linalg.solve(within + between, means.T).T, np.float64)
    return Prior(
        labels=labels,
        generic_weight=weight,
        generic_bias=-0.5 * (weight * means).sum(1),
        means=means,
        within=within,
        between=between,
        repetition=moves / max(repeats, 1),
        whitening=np.linalg.inv(np.linalg.cholesky(within)),
        hyper=hyper or HyperParameters(window=30.0 / THINNING, shrinkage=100.0),
    )


def tuned_prior(people: Sequence[tuple[Array, Windows]], labels: tuple[str, ...]) -> Prior:
    """A prior whose hyper-parameters win by leave-one-user-out on the population, at one repetition and at all but one.

    Tuned at one repetition alone, it loses to the user's own LDA as repetitions come in.
    """
    best = (-1.0, HyperParameters())
    left_out = [population_prior([*people[:u], *people[u + 1 :]], labels) for u in range(len(people))]
    for window, shrinkage, between, growth in itertools.product(WINDOWS, SHRINKAGES, BETWEENS, GROWTHS):
        hyper = HyperParameters(window=window / THINNING, shrinkage=shrinkage, between=between, growth=growth)
        hits = [_left_out(replace(p, hyper=hyper), z, w) for p, (z, w) in zip(left_out, people, strict=True)]
        best = max(best, (float(np.mean(hits)), hyper), key=lambda found: found[0])
    # The population's windows were thinned; users' are not.
    hyper = best[1].model_copy(update={"window": best[1].window * THINNING})
    return population_prior(people, labels, hyper)


def _left_out(prior: Prior, z: Array, w: Windows) -> float:
    """Mean accuracy on the last repetition, after the first one and after all others."""
    ids = np.unique(w.repetition)
    if len(ids) < 2:
        return 0.0
    test, found = w.repetition == ids[-1], []
    for known in {1, len(ids) - 1}:
        mask = np.isin(w.repetition, ids[:known])
        head = from_statistics("map", prior)(z[mask], w.y[mask], w.repetition[mask])
        found.append(float((head.logits(z[test]).argmax(1) == w.y[test]).mean()))
    return float(np.mean(found))
