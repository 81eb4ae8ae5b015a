"""A linear probe: multinomial logistic regression on frozen features, its strength chosen on what was left out."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from models.heads.head import log_loss

__all__ = ["fit_probe", "folds_of", "left_out_logits", "stacked"]

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
PULLS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Weights of the squared norm tried, for features whose mean square is 1."""
FOLDS = 5


def fit_probe(z: Array, y: Labels, classes: int, pull: float) -> tuple[Array, Array]:
    """Weight `(K, d)` and bias `(K,)` of least class-balanced cross-entropy + pull/2·‖W‖², by L-BFGS in float64.

    A class that is not there gets the bias of log(10⁻³): the probe rarely names it.
    """
    count = np.bincount(y, minlength=classes)
    scale = float(np.sqrt((z**2).sum(1).mean())) or 1.0
    x, target = torch.from_numpy(z / scale), torch.from_numpy(y)
    share = torch.from_numpy((1.0 / (np.maximum(count, 1) * (count > 0).sum()))[y])
    weight = torch.zeros(classes, z.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-7)

    def closure() -> torch.Tensor:
        solver.zero_grad()
        losses = functional.cross_entropy(x @ weight.T + bias, target, reduction="none")
        loss = (losses * share).sum() + 0.5 * pull * (weight**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    w, b = weight.detach().numpy() / scale, bias.detach().numpy().copy()
    b[count == 0] = b[count > 0].min() + np.log(1e-3)
    return w, b


def stacked(z: Array, y: Labels) -> tuple[Array, Labels]:
    """Features `(n, q)` or `(n, views, q)` and labels as rows `(n * views, q)` with a label each."""
    return (z, y) if z.ndim == 2 else (z.reshape(-1, z.shape[2]), np.repeat(y, z.shape[1]))


def folds_of(y: Labels, user: Labels, by_user: bool, seed: int, count: int = FOLDS) -> list[NDArray[np.bool_]]:
    """Masks of what each fold leaves out: people, where there are some; else a part of every class."""
    rng = np.random.default_rng(seed)
    if by_user:
        people = rng.permutation(np.unique(user))
        return [np.isin(user, part) for part in np.array_split(people, min(count, len(people)))]
    fold = np.zeros(len(y), np.int64)
    for c in np.unique(y):
        where = rng.permutation(np.flatnonzero(y == c))
        fold[where] = np.arange(len(where)) % count
    return [fold == f for f in range(count) if (fold == f).any()]


def left_out_logits(
    z: Array, y: Labels, classes: int, folds: Sequence[NDArray[np.bool_]]
) -> tuple[float, float, Array]:
    """Choose the pull by log-loss on what folds leave out; return it, the temperature, and the logits `(n, K)`.

    `z` is `(n, q)`, or `(n, views, q)`: probes learn from all views and are judged on the first. The logits are each
    fold's probe's on what it did not see, divided by the temperature.
    """
    best: tuple[float, float, float, Array] | None = None
    for pull in PULLS:
        logits = np.zeros((len(y), classes))
        for out in folds:
            w, b = fit_probe(*stacked(z[~out], y[~out]), classes, pull)
            logits[out] = (z[out] if z.ndim == 2 else z[out, 0]) @ w.T + b
        for t in (0.7, 1.0, 1.4, 2.0):
            loss = float(log_loss(logits / t, y).mean())
            if best is None or loss < best[0]:
                best = (loss, pull, t, logits / t)
    assert best is not None
    return best[1:]
