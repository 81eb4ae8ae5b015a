"""Baselines beside the personal head: closed-form heads on hand-made features and on the bundle's."""

from __future__ import annotations

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
from models.heads.statistics import Statistics

Array = NDArray[np.float64]
Extract = Callable[[NDArray[np.float32]], NDArray[np.floating]]
Fit = Callable[[NDArray[np.floating], NDArray[np.int64], NDArray[np.int64]], Head]

THINNING = 3
"""Of the population's overlapping windows every third is used for priors."""
SHRINKAGES = (30.0, 100.0, 300.0)
BETWEENS = (0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Baseline:
    """A named pair of features and a fit; `fit(z, y, repetition)` gives a head of all K classes."""

    name: str
    extract: Extract
    fit: Fit


def own_lda(classes: int, ridge: float = 1e-3) -> Fit:
    """The user's own linear discriminant; a class that was not shown is never predicted."""

    def fit(z: NDArray[np.floating], y: NDArray[np.int64], _: NDArray[np.int64]) -> Head:
        means, residual, shown = _means(z, y, classes)
        covariance = residual.T @ residual / max(len(z) - int(shown.sum()), 1)
        level = np.diag(covariance) if residual.any() else z.var(0)
        covariance = covariance + np.diag(ridge * level + 1e-9 * float(level.mean() or 1.0) + 1e-12)
        return _discriminant(means, np.linalg.solve(covariance, means.T).T, shown)

    return fit


def euclidean_ncm(classes: int) -> Fit:
    """Nearest class mean, Euclidean."""

    def fit(z: NDArray[np.floating], y: NDArray[np.int64], _: NDArray[np.int64]) -> Head:
        means, _residual, shown = _means(z, y, classes)
        return _discriminant(means, means, shown)

    return fit


def whitened_ncm(prior: Prior) -> Fit:
    """Nearest class mean under the population's covariance within users."""

    def fit(z: NDArray[np.floating], y: NDArray[np.int64], _: NDArray[np.int64]) -> Head:
        means, _residual, shown = _means(z[:, : prior.personal], y, prior.classes)
        weight = np.linalg.solve(prior.within, means.T).T
        head = _discriminant(means, weight, shown)
        return Head(np.pad(head.weight, ((0, 0), (0, z.shape[1] - prior.personal))), head.bias)

    return fit


def from_statistics(method: str, prior: Prior) -> Fit:
    """One of the product's own fits, unguarded."""

    def fit(z: NDArray[np.floating], y: NDArray[np.int64], repetition: NDArray[np.int64]) -> Head:
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
    spec: WindowSpec,
) -> list[Baseline]:
    """The closed-form baselines of docs/evaluation.md; those that need a population are there when there is one."""
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
                "log-TD + log-covariance: hierarchical Bayes", features.log_td_covariance, from_statistics("map", full)
            )
        )
    if local is not None:
        prior = local.bundle.prior
        found += [
            Baseline("bundle: NCM, population whitening", local.features, whitened_ncm(prior)),
            Baseline("bundle: own LDA", lambda x: local.features(x)[:, : prior.personal], own_lda(classes)),
            Baseline("bundle: map, unguarded", local.features, from_statistics("map", prior)),
        ]
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
    k, d = len(labels), people[0][0].shape[1]
    own, seen, jitter, within = np.zeros((len(people), k, d)), np.zeros((len(people), k), bool), [], np.zeros((d, d))
    degrees = 0.0
    for u, (z, w) in enumerate(people):
        stats = Statistics.of(z, w.y, w.repetition, k)
        within += stats.scatter()
        degrees += stats.degrees
        by_repetition = stats.total / np.maximum(stats.count, 1.0)[..., None]
        own[u] = by_repetition.sum(1) / np.maximum(stats.repetitions_seen, 1.0)[:, None]
        seen[u] = stats.seen
        jitter.append((by_repetition - own[u][:, None])[stats.count > 0])
    means = own.sum(0) / np.maximum(seen.sum(0), 1)[:, None]
    away, moves = (own - means)[seen], np.concatenate(jitter)
    within = within / max(degrees, 1.0)
    within += 1e-6 * np.trace(within) / d * np.eye(d)
    between = away.T @ away / max(len(away) - k, 1)
    weight = np.linalg.solve(within + between, means.T).T
    return Prior(
        labels=labels,
        generic_weight=weight,
        generic_bias=-0.5 * (weight * means).sum(1),
        means=means,
        within=within,
        between=between,
        repetition=moves.T @ moves / max(len(moves) - int(seen.sum()), 1),
        whitening=np.linalg.inv(np.linalg.cholesky(within)),
        hyper=hyper or HyperParameters(window=30.0 / THINNING, shrinkage=100.0),
    )


def tuned_prior(people: Sequence[tuple[Array, Windows]], labels: tuple[str, ...]) -> Prior:
    """A prior whose hyper-parameters win by leave-one-user-out on the population: calibrate on one repetition."""
    best = (-1.0, HyperParameters())
    left_out = [population_prior([*people[:u], *people[u + 1 :]], labels) for u in range(len(people))]
    for shrinkage in SHRINKAGES:
        for between in BETWEENS:
            hyper = HyperParameters(window=30.0 / THINNING, shrinkage=shrinkage, between=between)
            hits = [_one_repetition(replace(p, hyper=hyper), z, w) for p, (z, w) in zip(left_out, people, strict=True)]
            best = max(best, (float(np.mean(hits)), hyper), key=lambda found: found[0])
    # The population's windows were thinned; users' are not.
    hyper = best[1].model_copy(update={"window": best[1].window * THINNING})
    return population_prior(people, labels, hyper)


def _one_repetition(prior: Prior, z: Array, w: Windows) -> float:
    mask = w.repetition == w.repetition.min()
    if mask.all():
        return 0.0
    head = from_statistics("map", prior)(z[mask], w.y[mask], w.repetition[mask])
    return float((head.logits(z[~mask]).argmax(1) == w.y[~mask]).mean())
