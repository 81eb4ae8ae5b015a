"""Fits: from sufficient statistics and the population prior to a head."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.heads.coupled import coupled_offsets
from models.heads.head import NEVER, Head
from models.heads.pencil import pencil, placed_pencil, repetition_share
from models.heads.prior import HyperParameters, Prior
from models.heads.statistics import Statistics
from models.heads.sums import Sums

Array = NDArray[np.float64]
S = TypeVar("S", bound=Sums)

LOG_ODDS = 6.0
"""Log-odds that least squares aims at for a window's class; softmax then gives it about 0.98 among seven."""


def without(head: Head, classes: NDArray[np.integer] | NDArray[np.bool_]) -> Head:
    """Return a head that never answers some classes."""
    weight, bias = head.weight.copy(), head.bias.copy()
    weight[classes], bias[classes] = 0.0, NEVER
    return Head(weight, bias)


def _answering(fit: Callable[[S, Prior], Head]) -> Callable[[S, Prior], Head]:
    """Let a fit not answer labels of the user's own that were never shown."""

    @wraps(fit)
    def fitted(stats: S, prior: Prior) -> Head:
        """Fit a head."""
        head = fit(stats, prior)
        return without(head, ~stats.seen & (np.arange(prior.classes) >= prior.known)) if prior.own else head

    return fitted


def gaussian_head(means: Array, covariance: Array, temperature: float = 1.0, width: int = 0) -> Head:
    """Return the linear discriminant of classes with `means (K, p)`, one `covariance (p, p)` and equal priors.

    With `width` d > p the head takes d features and looks at the first p.
    """
    dim = covariance.shape[0]
    ridged = covariance.copy()
    ridged[np.diag_indices(dim)] += 1e-9 * max(float(np.trace(covariance)) / dim, 1e-12)
    weight = _solve(ridged, means.T).T
    bias = -0.5 * np.einsum("kd,kd->k", means, weight)
    weight = np.pad(weight, ((0, 0), (0, max(width - dim, 0))))
    return Head(weight / temperature, bias / temperature)


def _solve(matrix: Array, right: Array) -> Array:
    """Solve a symmetric system; least squares where it is singular."""
    try:
        return np.asarray(np.linalg.solve(matrix, right))
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(matrix, right, rcond=None)[0])


def map_means(stats: Sums, prior: Prior) -> Array:
    """Return posterior class means `(K, d)` under the population's hierarchical Gaussian prior.

    M̃ = Mp + Sb (Sb + Sr/r + Sw/n_eff)⁻¹ (M − Mp), with r repetitions and n_eff windows net of their autocorrelation
    (at least one a repetition). Where the prior has a correlation of the classes, all are estimated together, those
    without windows from the others; else such a class keeps the population's mean, moved by a share of the user's
    common offset.
    Source: heads as hierarchical Bayes, after Friedman 1989 and Vidovic et al. 2016.
    """
    h = prior.hyper
    moved = prior.means.copy()
    n, r, own, seen = stats.n, stats.repetitions_seen, stats.means, stats.seen
    for c in np.flatnonzero(seen[prior.known :]) + prior.known:
        moved[c] = _newcomer(prior, own[c], float(n[c]), float(r[c]))
    shown = np.flatnonzero(seen[: prior.known])
    if prior.correlation is not None and len(shown):
        left = 1 / np.maximum(r[shown], n[shown] / h.window)
        moved[: prior.known] += coupled_offsets(prior, own[shown] - prior.means[shown], r[shown], left, shown)
        return moved
    # Class by class: what a class's mean becomes is then the same to the bit whatever other classes there are.
    for c in shown:
        q = pencil(prior, float(r[c]))
        noise = 1 / max(float(r[c]), float(n[c]) / h.window)
        moved[c] += q.gain[0] @ ((q.vectors[0].T @ (own[c] - prior.means[c])) / (q.values[0] + noise))
    missing = np.flatnonzero(~seen[: prior.known])
    if h.offset and len(shown) and len(missing):
        moved[missing] += h.offset * (moved[shown] - prior.means[shown]).mean(0)
    return moved


def _newcomer(prior: Prior, mean: Array, windows: float, repetitions: float) -> Array:
    """Return the posterior mean of a class that the population does not know, from the mean of its windows.

    It is one more class as classes are: around the middle of the known ones, spread as they are and as people are.
    Without that the noise of a few windows stays in all directions, and windows of the class lie far from its mean.
    """
    h = prior.hyper
    known = prior.means[: prior.known]
    middle = known.mean(0)
    among = (known - middle).T @ (known - middle) / max(prior.known - 1, 1)
    unlike = h.novelty * np.trace(among) / prior.personal * np.eye(prior.personal)
    spread = h.between * prior.between + (1 - h.novelty) * among + unlike
    noise = repetition_share(h, repetitions) * prior.repetition + prior.within / max(repetitions, windows / h.window)
    return np.asarray(middle + spread @ _solve(spread + noise, mean - middle))


def blended_covariance(stats: Sums, prior: Prior) -> Array:
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


def placed(stats: Sums, prior: Prior) -> Prior:
    """Return the prior at the placement of the sensor that makes the user's class means likeliest."""
    return prior.at(placement_of(stats, prior))


def placement_of(stats: Sums, prior: Prior) -> int:
    """Find the placement of the sensor that makes the user's class means likeliest; 0 is the usual one.

    A rotated armband permutes the electrodes, hence rotates the population; the marginal likelihood of a few labelled
    windows tells which rotation.
    """
    p = prior.placements
    if p is None or len(p) == 1 or not stats.seen.any():
        return 0
    return int(placement_evidence(stats, prior).argmax())


def placement_evidence(stats: Sums, prior: Prior) -> Array:
    """Log marginal likelihood `(M,)` of the user's class means at each placement, its log prior added."""
    p, h, seen = prior.placements, prior.hyper, stats.seen
    assert p is not None
    evidence = p.log_weight.copy()
    n, r = stats.n, stats.repetitions_seen
    seen = seen & (np.arange(len(seen)) < prior.known)
    for repetitions in np.unique(r[seen]):
        q, rows = placed_pencil(prior, float(repetitions)), np.flatnonzero(seen & (r == repetitions))
        noise = 1 / np.maximum(repetitions, n[rows] / h.window)
        away = (stats.means[rows] - p.means[:, rows]) @ q.vectors
        spread = q.values[:, None] + noise[:, None]
        evidence -= 0.5 * (away**2 / spread + np.log(spread)).sum((1, 2)) + 0.5 * len(rows) * q.log_det
    return np.asarray(evidence)


@_answering
def fit_map(stats: Sums, prior: Prior) -> Head:
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
    weight, bias = prior.generic_weight, prior.generic_bias
    if prior.own:  # of those the generic head says no more than of an average class
        weight, bias = weight.copy(), bias.copy()
        weight[prior.known :], bias[prior.known :] = weight[: prior.known].mean(0), bias[: prior.known].mean()
    return Head(head.weight + share * weight, head.bias + share * bias)


def shared_share(stats: Sums, hyper: HyperParameters) -> float:
    """How much of the generic head is added to the personal one: the less, the more repetitions were seen.

    Repetitions of one sitting count as much less as they have in common (`persistence`).
    """
    seen = stats.seen
    if not seen.any():
        return hyper.shared
    repetitions = float(stats.repetitions_seen[seen].mean())
    return hyper.shared * ((1 - hyper.persistence) / repetitions + hyper.persistence)


@_answering
def fit_ncm(stats: Sums, prior: Prior) -> Head:
    """Fit nearest class mean in the population's whitened space; unseen classes keep the population's mean."""
    means = np.where(stats.seen[:, None], stats.means, prior.means)
    return gaussian_head(means, prior.within, prior.hyper.temperature, prior.dim)


@_answering
def fit_lda(stats: Sums, prior: Prior) -> Head:
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


@_answering
def fit_ridge(stats: Statistics, prior: Prior) -> Head:
    """Fit least squares on targets of `LOG_ODDS` for the class and 0 else, pulled towards the population's solution.

    Every class weighs the same however many windows it has. Source: L2-SP, Xuhong et al. 2018, in closed form.
    """
    k, d = stats.classes, stats.dim
    weight = np.where(stats.seen, 1.0 / np.where(stats.seen, stats.n, 1.0), 0.0)
    second = np.einsum("k,kij->ij", weight, stats.class_moment)
    mean = stats.means * stats.seen[:, None]
    count = float(stats.seen.sum())
    pull = prior.hyper.shrinkage * prior.hyper.window / max(float(stats.n.sum()), 1.0)
    known = prior.known
    p_means = np.where(np.arange(k)[:, None] < known, prior.means, 0.0)
    p_second = prior.within * known + p_means.T @ p_means
    gram = np.zeros((d + 1, d + 1))
    gram[:d, :d] = second + pull * p_second
    gram[:d, d] = gram[d, :d] = mean.sum(0) + pull * p_means.sum(0)
    gram[d, d] = count + pull * known
    target = np.zeros((d + 1, k))
    target[:d] = (mean + pull * p_means).T
    target[d] = stats.seen + pull * (np.arange(k) < known)
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

FITS_FROM_SUMS: dict[str, Callable[[Sums, Prior], Head]] = {"map": fit_map, "ncm": fit_ncm, "lda": fit_lda}
"""Those of them that need no second moment by class."""
