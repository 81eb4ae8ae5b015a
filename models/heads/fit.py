"""Fits: from sufficient statistics and the population prior to a head."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.heads.head import Head
from models.heads.prior import HyperParameters, Prior
from models.heads.statistics import Statistics

Array = NDArray[np.float64]

LOG_ODDS = 6.0
"""Log-odds that least squares aims at for a window's class; softmax then gives it about 0.98 among seven."""


def gaussian_head(means: Array, covariance: Array, temperature: float = 1.0, width: int = 0) -> Head:
    """Return the linear discriminant of classes with `means (K, p)`, one `covariance (p, p)` and equal priors.

    With `width` d > p the head takes d features and looks at the first p.
    """
    dim = covariance.shape[0]
    ridge = 1e-9 * max(float(np.trace(covariance)) / dim, 1e-12)
    weight = _solve(covariance + ridge * np.eye(dim), means.T).T
    bias = -0.5 * np.einsum("kd,kd->k", means, weight)
    weight = np.pad(weight, ((0, 0), (0, max(width - dim, 0))))
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

    M̃ = Mp + Sb (Sb + Sr/r + Sw/n_eff)⁻¹ (M − Mp), with r repetitions and n_eff windows net of their autocorrelation
    (at least one a repetition).
    A class without windows keeps the population's mean, moved by a share of the user's common offset.
    Source: heads as hierarchical Bayes, after Friedman 1989 and Vidovic et al. 2016.
    """
    h = prior.hyper
    moved = prior.means.copy()
    n, r, own = stats.n, stats.repetitions_seen, stats.means
    for n_c, r_c in {(float(a), float(b)) for a, b in zip(n, r, strict=True) if a > 0}:
        rows = (n == n_c) & (r == r_c)
        between = h.between * r_c**h.growth * prior.between
        noise = _repetition_share(h, r_c) * prior.repetition + prior.within / max(r_c, n_c / h.window)
        gain = _solve(between + noise, between).T
        moved[rows] += (own[rows] - prior.means[rows]) @ gain.T
    seen = stats.seen
    if h.offset and seen.any() and not seen.all():
        moved[~seen] += h.offset * (moved[seen] - prior.means[seen]).mean(0)
    return moved


def _repetition_share(hyper: HyperParameters, repetitions: float) -> float:
    """How much of the covariance of repetitions is left in the mean of some: what a sitting has in common stays."""
    return hyper.repetition * ((1 - hyper.persistence) / repetitions + hyper.persistence)


def blended_covariance(stats: Statistics, prior: Prior) -> Array:
    """Return S = (1−λ) S_user + λ Sw, λ falling with the effective number of windows.

    Both are covariances within (class, repetition): adding the spread of repetitions makes heads worse.
    """
    h = prior.hyper
    degrees = stats.degrees
    if degrees <= 0:
        return prior.within
    effective = degrees / h.window
    lam = h.shrinkage / (h.shrinkage + effective)
    return np.asarray((1 - lam) * stats.scatter() / degrees + lam * prior.within)


def placed(stats: Statistics, prior: Prior) -> Prior:
    """Return the prior at the placement of the sensor that makes the user's class means likeliest.

    A rotated armband permutes the electrodes, hence rotates the population; the marginal likelihood of a few labelled
    windows tells which rotation. One noise level (harmonic means over classes) serves all classes, to bound the cost.
    """
    p, h, seen = prior.placements, prior.hyper, stats.seen
    if p is None or len(p) == 1 or not seen.any():
        return prior.at(0)
    n = float(seen.sum() / (1 / stats.n[seen]).sum())
    r = float(seen.sum() / (1 / stats.repetitions_seen[seen]).sum())
    spread = p.between + _repetition_share(h, r) * p.repetition + p.within / max(r, n / h.window)
    spread = spread + 1e-9 * np.trace(spread, axis1=1, axis2=2)[:, None, None] * np.eye(stats.dim)
    lower = np.linalg.cholesky(spread)
    white = np.linalg.solve(lower, (stats.means[seen] - p.means[:, seen]).transpose(0, 2, 1))
    log_det = 2 * np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(1)
    evidence = p.log_weight - 0.5 * ((white**2).sum((1, 2)) + seen.sum() * log_det)
    return prior.at(int(evidence.argmax()))


def fit_map(stats: Statistics, prior: Prior) -> Head:
    """Fit the default head: posterior means and blended covariance, with a share of the generic head's logits.

    The two judge by different features, so together they know more than either (a product of experts). With no data it
    is the population's own discriminant and the generic head.
    """
    prior = placed(stats, prior)
    covariance = blended_covariance(stats, prior)
    head = gaussian_head(map_means(stats, prior), covariance, prior.hyper.temperature, prior.dim)
    share = shared_share(stats, prior.hyper)
    if not share:
        return head
    return Head(head.weight + share * prior.generic_weight, head.bias + share * prior.generic_bias)


def shared_share(stats: Statistics, hyper: HyperParameters) -> float:
    """How much of the generic head is added to the personal one: the less, the more repetitions were seen.

    Repetitions of one sitting count as much less as they have in common (`persistence`).
    """
    seen = stats.seen
    if not seen.any():
        return hyper.shared
    repetitions = float(stats.repetitions_seen[seen].mean())
    return hyper.shared * ((1 - hyper.persistence) / repetitions + hyper.persistence)


def fit_ncm(stats: Statistics, prior: Prior) -> Head:
    """Fit nearest class mean in the population's whitened space; unseen classes keep the population's mean."""
    means = np.where(stats.seen[:, None], stats.means, prior.means)
    return gaussian_head(means, prior.within, prior.hyper.temperature, prior.dim)


def fit_lda(stats: Statistics, prior: Prior) -> Head:
    """Fit the user's own linear discriminant (Ledoit–Wolf-like trace shrinkage only where n is small).

    Classes without windows keep the population's mean.
    """
    means = np.where(stats.seen[:, None], stats.means, prior.means)
    degrees = stats.degrees
    if degrees <= 0:
        return gaussian_head(means, prior.within, prior.hyper.temperature, prior.dim)
    own = stats.scatter() / degrees
    lam = min(1.0, stats.dim / degrees) * 0.1
    own = (1 - lam) * own + lam * np.trace(own) / stats.dim * np.eye(stats.dim)
    return gaussian_head(means, own, prior.hyper.temperature, prior.dim)


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
    weights = np.pad(solution[:d].T, ((0, 0), (0, prior.dim - d)))
    return Head(np.asarray(weights, np.float64), np.asarray(solution[d], np.float64))


FITS: dict[str, Callable[[Statistics, Prior], Head]] = {
    "map": fit_map,
    "ncm": fit_ncm,
    "lda": fit_lda,
    "ridge": fit_ridge,
}
"""Methods that need statistics only. Each maps to one affine head."""
