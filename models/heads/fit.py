"""Fits: from sufficient statistics and the population prior to a head."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.heads.head import Head
from models.heads.prior import Prior
from models.heads.statistics import Statistics

Array = NDArray[np.float64]

LOG_ODDS = 6.0
"""Log-odds that least squares aims at for a window's class; softmax then gives it about 0.98 among seven."""


def gaussian_head(means: Array, covariance: Array, temperature: float = 1.0) -> Head:
    """Return the linear discriminant of classes with `means (K, d)`, one `covariance (d, d)` and equal priors."""
    dim = covariance.shape[0]
    ridge = 1e-9 * max(float(np.trace(covariance)) / dim, 1e-12)
    weight = _solve(covariance + ridge * np.eye(dim), means.T).T
    bias = -0.5 * np.einsum("kd,kd->k", means, weight)
    return Head(weight / temperature, bias / temperature)


def _solve(matrix: Array, right: Array) -> Array:
    """Solve a symmetric positive (semi-)definite system; least squares where it is singular."""
    try:
        lower = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(matrix, right, rcond=None)[0])
    return np.asarray(np.linalg.solve(lower.T, np.linalg.solve(lower, right)))


def map_means(stats: Statistics, prior: Prior) -> Array:
    """Return posterior class means `(K, d)` under the population's hierarchical Gaussian prior.

    M̃ = Mp + Sb (Sb + Sr/r + Sw/n_eff)⁻¹ (M − Mp), with r repetitions and n_eff windows net of their autocorrelation.
    A class without windows keeps the population's mean, moved by a share of the user's common offset.
    Source: heads as hierarchical Bayes, after Friedman 1989 and Vidovic et al. 2016.
    """
    h = prior.hyper
    moved = prior.means.copy()
    n, r, own = stats.n, stats.repetitions_seen, stats.means
    between = h.between * prior.between
    for n_c, r_c in {(float(a), float(b)) for a, b in zip(n, r, strict=True) if a > 0}:
        rows = (n == n_c) & (r == r_c)
        noise = h.repetition * prior.repetition / r_c + h.window * prior.within / n_c
        gain = _solve(between + noise, between).T
        moved[rows] += (own[rows] - prior.means[rows]) @ gain.T
    seen = stats.seen
    if h.offset and seen.any() and not seen.all():
        moved[~seen] += h.offset * (moved[seen] - prior.means[seen]).mean(0)
    return moved


def blended_covariance(stats: Statistics, prior: Prior) -> Array:
    """Return S = (1−λ) S_user + λ Sw, λ falling with the effective number of windows."""
    h = prior.hyper
    degrees = stats.degrees
    if degrees <= 0:
        return prior.within
    effective = degrees / h.window
    lam = h.shrinkage / (h.shrinkage + effective)
    return np.asarray((1 - lam) * stats.scatter() / degrees + lam * prior.within)


def fit_map(stats: Statistics, prior: Prior) -> Head:
    """Fit the default head: posterior means and blended covariance. With no data it is the population's own LDA."""
    return gaussian_head(map_means(stats, prior), blended_covariance(stats, prior), prior.hyper.temperature)


def fit_ncm(stats: Statistics, prior: Prior) -> Head:
    """Fit nearest class mean in the population's whitened space; unseen classes keep the population's mean."""
    means = np.where(stats.seen[:, None], stats.means, prior.means)
    return gaussian_head(means, prior.within, prior.hyper.temperature)


def fit_lda(stats: Statistics, prior: Prior) -> Head:
    """Fit the user's own linear discriminant (Ledoit–Wolf-like trace shrinkage only where n is small).

    Classes without windows keep the population's mean.
    """
    means = np.where(stats.seen[:, None], stats.means, prior.means)
    degrees = stats.degrees
    if degrees <= 0:
        return gaussian_head(means, prior.within, prior.hyper.temperature)
    own = stats.scatter() / degrees
    lam = min(1.0, stats.dim / degrees) * 0.1
    own = (1 - lam) * own + lam * np.trace(own) / stats.dim * np.eye(stats.dim)
    return gaussian_head(means, own, prior.hyper.temperature)


def fit_ridge(stats: Statistics, prior: Prior) -> Head:
    """Fit least squares on targets of `LOG_ODDS` for the class and 0 else, pulled towards the population's solution.

    Every class weighs the same however many windows it has. Source: L2-SP, Xuhong et al. 2018, in closed form.
    """
    k, d = stats.classes, stats.dim
    weight = np.where(stats.seen, 1.0 / np.maximum(stats.n, 1.0), 0.0)
    second = np.einsum("k,kij->ij", weight, stats.class_moment)
    mean = stats.means * stats.seen[:, None]
    count = float(stats.seen.sum())
    pull = prior.hyper.shrinkage * prior.hyper.window / max(float(stats.n.sum()), 1.0)
    p_second = prior.within * k + prior.means.T @ prior.means
    gram = np.zeros((d + 1, d + 1))
    gram[:d, :d] = second + pull * p_second
    gram[:d, d] = gram[d, :d] = mean.sum(0) + pull * prior.means.sum(0)
    gram[d, d] = count + pull * k
    target = np.zeros((d + 1, k))
    target[:d] = (mean + pull * prior.means).T
    target[d] = stats.seen + pull
    gram[np.diag_indices(d)] += 1e-9 * np.trace(gram) / (d + 1)
    solution = np.linalg.solve(gram, target) * LOG_ODDS
    return Head(np.asarray(solution[:d].T, np.float64), np.asarray(solution[d], np.float64))


FITS: dict[str, Callable[[Statistics, Prior], Head]] = {
    "map": fit_map,
    "ncm": fit_ncm,
    "lda": fit_lda,
    "ridge": fit_ridge,
}
"""Methods that need statistics only. Each maps to one affine head."""
