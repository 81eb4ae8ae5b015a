"""A head: an affine map from features to logits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NEVER = -1e4
"""Logit of a class that is never answered: its probability is 0 to the last bit."""


@dataclass(frozen=True, slots=True)
class Head:
    """`logits = W z + b`, temperature already folded in; weight `(K, d)`, bias `(K,)`.

    `floors (L,)`: least probability of a label in a set, by coverage (`models.heads.confidence`); None where no
    held-out windows told them. `own`: labels of the user that the last rows are of, beyond the bundle's.
    """

    weight: Array
    bias: Array
    floors: Array | None = None
    own: tuple[str, ...] = ()

    def logits(self, z: NDArray[np.floating]) -> Array:
        """Return logits `(n, K)` of features `(n, d)`."""
        return np.asarray(z @ self.weight.T + self.bias)

    def widened(self, rows: int) -> Head:
        """Return the head with rows added up to `rows`, which are never answered."""
        more = rows - len(self.bias)
        if more <= 0:
            return self
        weight = np.pad(self.weight, ((0, more), (0, 0)))
        return replace(self, weight=weight, bias=np.pad(self.bias, (0, more), constant_values=NEVER))

    def cut(self, rows: int, own: tuple[str, ...]) -> Head:
        """Return the first `rows` rows, the last of which are of labels of the user's own."""
        return replace(self, weight=self.weight[:rows], bias=self.bias[:rows], own=own)

    def scaled(self, temperature: float) -> Head:
        """Return the head with its logits divided by `temperature`."""
        return Head(self.weight / temperature, self.bias / temperature)


def blend(shared: Head, personal: Head, weight: float) -> Head:
    """Mix two heads' logits; `weight` 0 is `shared`, 1 is `personal`."""
    return Head(
        (1 - weight) * shared.weight + weight * personal.weight,
        (1 - weight) * shared.bias + weight * personal.bias,
    )


def leaning(head: Head, classes: NDArray[np.bool_], by: float) -> Head:
    """Return a head with `by` added to the logits of some classes `(K,)`."""
    return Head(head.weight, head.bias + by * classes)


def softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return probabilities over the last axis."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def log_loss(logits: Array, y: NDArray[np.integer]) -> Array:
    """Return −log p(y) of each row, `(n,)`, for logits `(n, K)`."""
    top = logits.max(1)
    lse = top + np.log(np.exp(logits - top[:, None]).sum(1))
    return np.asarray(lse - logits[np.arange(len(y)), y])


def log_losses(logits: Array, y: NDArray[np.integer], temperatures: Array) -> Array:
    """Return the mean −log p(y) at each temperature `(t,)`, for logits `(n, K)`."""
    away = logits - logits.max(1, keepdims=True)
    scaled = away[None] / temperatures[:, None, None]
    return np.asarray((np.log(np.exp(scaled).sum(2)) - scaled[:, np.arange(len(y)), y]).mean(1))
