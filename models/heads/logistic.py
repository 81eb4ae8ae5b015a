"""Multinomial logistic regression pulled towards the generic head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.heads.head import NEVER, Head, softmax
from models.heads.prior import Prior

ITERATIONS = 200
TOLERANCE = 1e-6


def fit_logistic(z: NDArray[np.floating], y: NDArray[np.integer], prior: Prior, *, pull: float = 1.0) -> Head:
    """Fit `min Σ w_i·CE(z_i, y_i) + pull/2·‖W − W_generic‖²` over features `z (n, d)`, classes weighing the same.

    A class without windows keeps its generic row up to the common shift. Solved by Böhning's fixed upper bound on the
    Hessian: every step is one solve with the same factor and never raises the loss.
    Source: Böhning 1992; L2 towards the starting point, Xuhong et al. 2018.
    """
    k, d = prior.classes, prior.dim
    x = np.concatenate([np.asarray(z, np.float64), np.ones((len(z), 1))], 1)
    start = np.concatenate([prior.generic_weight, prior.generic_bias[:, None]], 1)
    start[prior.known :] = start[: prior.known].mean(0)  # labels of the user's own begin as an average class
    n = np.bincount(y, minlength=k).astype(np.float64)
    weight = (1.0 / (np.maximum(n, 1.0) * (n > 0).sum()))[y]
    target = np.eye(k)[y]
    bound = 0.5 * (x * weight[:, None]).T @ x + (pull / max(len(z), 1)) * np.eye(d + 1)
    factor = np.linalg.inv(bound)
    theta = start.copy()
    for _ in range(ITERATIONS):
        residual = (np.asarray(softmax(x @ theta.T)) - target) * weight[:, None]
        gradient = residual.T @ x + (pull / max(len(z), 1)) * (theta - start)
        step = gradient @ factor
        theta -= step
        if float(np.abs(step).max()) < TOLERANCE * max(float(np.abs(theta).max()), 1.0):
            break
    theta[prior.known :][n[prior.known :] == 0] = np.eye(d + 1)[d] * NEVER
    return Head(theta[:, :d], theta[:, d])
