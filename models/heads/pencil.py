"""The noise in a user's class means, factored once for a population: any number of windows is then a product away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.heads.prior import HyperParameters, Prior

Array = NDArray[np.float64]
T = TypeVar("T")
KEPT = 12
"""Repetition counts whose factors are remembered; a population's own are few."""


@dataclass(frozen=True, eq=False)
class Pencil:
    """Factors of P placements with VᵀSwV = I and Vᵀ(between + repetitions)V = Λ.

    The covariance of a class mean over m independent windows is then V⁻ᵀ(Λ + I/m)V⁻¹. Source: the simultaneous
    diagonalisation of two quadratic forms, e.g. Golub & Van Loan, section 8.7.

    Attributes:
        vectors: `(P, p, p)`, V.
        values: `(P, p)`, Λ.
        gain: `(P, p, p)`, between · V.
        log_det: `(P,)`, log |Sw|.
    """

    vectors: Array
    values: Array
    gain: Array
    log_det: Array


def repetition_share(hyper: HyperParameters, repetitions: float) -> float:
    """How much of the covariance of repetitions is left in the mean of some: what a sitting has in common stays."""
    return hyper.repetition * ((1 - hyper.persistence) / repetitions + hyper.persistence)


def pencil(prior: Prior, repetitions: float) -> Pencil:
    """Factor a prior's covariances at its own placement, for class means over so many repetitions."""
    h = prior.hyper

    def made() -> Pencil:
        between = h.between * repetitions**h.growth * prior.between
        jitter = repetition_share(h, repetitions) * prior.repetition
        return factor(prior.within[None], between[None], jitter[None])

    return remembered(prior, ("pencil", round(repetitions, 9)), made)


def placed_pencil(prior: Prior, repetitions: float) -> Pencil:
    """Factor a prior's covariances at all its placements, people's spread as it was estimated."""
    p = prior.placements
    assert p is not None

    def made() -> Pencil:
        return factor(p.within, p.between, repetition_share(prior.hyper, repetitions) * p.repetition)

    return remembered(prior, ("placed", round(repetitions, 9)), made)


def remembered(prior: Prior, key: tuple[str | float, ...], made: Callable[[], T], kept: int = KEPT) -> T:
    """Return what was made of a prior's matrices under this key, or make it; the newest `kept` of a kind are kept."""
    memo: dict[tuple[str | float, ...], T] = prior.memo.setdefault(key[0], {})
    found = memo.get(key)
    if found is None:
        found = made()
        # Calibrations on other threads remember, too: a copy of the keys cannot change under its iterator.
        for oldest in (*memo,)[: max(0, len(memo) + 1 - kept)]:
            memo.pop(oldest, None)
        memo[key] = found
    return found


def factor(within: Array, between: Array, jitter: Array) -> Pencil:
    """Factor covariances `(P, p, p)` of windows, people and repetitions."""
    p = within.shape[-1]
    ridge = 1e-9 * np.maximum(np.trace(within, axis1=1, axis2=2) / p, 1e-300)
    lower = np.linalg.cholesky(within + ridge[:, None, None] * np.eye(p))
    inverse = np.linalg.inv(lower)
    values, vectors = np.linalg.eigh(inverse @ (between + jitter) @ inverse.transpose(0, 2, 1))
    v = inverse.transpose(0, 2, 1) @ vectors
    log_det = 2 * np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(1)
    return Pencil(v, np.maximum(values, 0.0), between @ v, log_det)
