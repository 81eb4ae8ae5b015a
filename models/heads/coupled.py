"""Posterior class means where what a person does differently shows in several classes at once.

The offsets of a person's class means from the population's have covariance C ⊗ B, with B between people and C the
correlation of the classes: the offset of one class tells of the others, and of those that were not shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.pencil import factor, remembered, repetition_share
from models.heads.prior import Prior

Array = NDArray[np.float64]
TOLERANCE = 1e-12
"""Of the squared residual, relative: far below what float32 statistics keep."""
STEPS = 100
"""At most: where classes move nearly as one and some counts are far above others, they do not suffice."""
KEPT = 3
"""Sets of modes that are remembered: each is as large as a matrix of the features for every class."""

__all__ = ["coupled_offsets"]


def coupled_offsets(prior: Prior, away: Array, repetitions: Array, noise: Array, shown: NDArray[np.int64]) -> Array:
    """Return the posterior offsets `(K, p)` of all classes that the population knows.

    Args:
        prior: with a correlation of its classes.
        away: means of the classes shown, less the population's, `(S, p)`.
        repetitions: of each class shown, `(S,)`.
        noise: what is left of the covariance within in each of these means, `(S,)`.
        shown: which classes they are, `(S,)`.

    With as many repetitions and windows of each class, the eigenvectors of C make independent problems of it. They
    are the preconditioner otherwise: the fewer steps, the more alike the counts are.
    Source: multi-task Gaussian processes, Bonilla, Chai & Williams 2008; conjugate gradients, Hestenes & Stiefel 1952.
    """
    h, correlation = prior.hyper, prior.correlation
    assert correlation is not None
    growth = np.full(prior.known, np.sqrt(repetitions**h.growth).mean())
    growth[shown] = np.sqrt(repetitions**h.growth)
    across = correlation * growth[:, None] * growth
    jitter = np.array([repetition_share(h, float(r)) for r in repetitions])
    between = h.between * prior.between
    among = across[np.ix_(shown, shown)]

    def covariance(x: Array) -> Array:
        """Covariance of `away`, times `(S, p)`."""
        told = jitter[:, None] * (x @ prior.repetition) + noise[:, None] * (x @ prior.within)
        return np.asarray(among @ x @ between + told)

    modes = _modes(prior, float(repetitions.mean()), shown)
    shrunk = 1 / (modes.values + noise.mean())

    def nearly_inverse(x: Array) -> Array:
        """The inverse of that covariance, were all counts their mean."""
        y = (modes.across.T @ x)[:, :, None]
        v = modes.vectors
        return np.asarray(modes.across @ (v @ (shrunk[:, :, None] * (v.transpose(0, 2, 1) @ y)))[:, :, 0])

    def outright() -> Array:
        """The solution by the whole matrix, `(S p, S p)`."""
        whole = np.kron(among, between).reshape(*away.shape, *away.shape)
        each = np.arange(len(away))
        whole[each, :, each] += jitter[:, None, None] * prior.repetition + noise[:, None, None] * prior.within
        solved = np.linalg.solve(whole.reshape(away.size, away.size), away.ravel())
        return np.asarray(solved.reshape(away.shape))

    found = _solved(covariance, nearly_inverse, away)
    return np.asarray(across[:, shown] @ (outright() if found is None else found) @ between)


@dataclass(frozen=True, eq=False)
class _Modes:
    """Eigenvectors `across (S, S)` of the correlation of the classes shown; of the problem of each the factors.

    `vectors (S, p, p)` and `values (S, p)` are those of `models.heads.pencil.Pencil`.
    """

    across: Array
    vectors: Array
    values: Array


def _modes(prior: Prior, repetitions: float, shown: NDArray[np.int64]) -> _Modes:
    h, correlation = prior.hyper, prior.correlation
    assert correlation is not None

    def made() -> _Modes:
        values, across = np.linalg.eigh(correlation[np.ix_(shown, shown)])
        between = h.between * repetitions**h.growth * np.maximum(values, 0.0)[:, None, None] * prior.between
        within = np.broadcast_to(prior.within, between.shape)
        found = factor(within, between, repetition_share(h, repetitions) * prior.repetition)
        return _Modes(across, found.vectors, found.values)

    return remembered(prior, ("modes", round(repetitions, 9), *map(int, shown)), made, KEPT)


def _solved(matrix: Callable[[Array], Array], nearly_inverse: Callable[[Array], Array], right: Array) -> Array | None:
    """Solve by preconditioned conjugate gradients, for a symmetric positive definite matrix; None if not in `STEPS`."""
    x, residual = np.zeros_like(right), right
    step = direction = nearly_inverse(residual)
    size = begun = float((residual * step).sum())
    for _ in range(STEPS):
        if size <= TOLERANCE**2 * begun:
            return x
        image = matrix(direction)
        length = size / float((direction * image).sum())
        x, residual = x + length * direction, residual - length * image
        step = nearly_inverse(residual)
        before, size = size, float((residual * step).sum())
        direction = step + size / before * direction
    return None
