"""Hand-made features of windows, on plain numpy, for baselines. `(n, C, T)` in, `(n, d)` out.

Sources: Hudgins et al. 1993 (MAV, ZC, SSC, WL); Barachant et al. 2012 (log-covariance).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Windows = NDArray[np.float32]
Features = NDArray[np.float64]

FLOOR = 1e-3
"""Least power, as a share of the window's mean over channels, so that a flat channel has a finite logarithm."""


def _centred(x: Windows) -> Features:
    return np.asarray(x - x.mean(-1, keepdims=True), np.float64)


def _log(power: Features) -> Features:
    return np.asarray(np.log(power + FLOOR * power.mean(1, keepdims=True) + 1e-30))


def _crossings(x: Windows) -> tuple[Features, Features]:
    centred = _centred(x)
    step = np.diff(centred, axis=-1)
    zero = (centred[..., 1:] * centred[..., :-1] < 0).mean(-1)
    turns = (step[..., 1:] * step[..., :-1] < 0).mean(-1)
    return np.asarray(zero, np.float64), np.asarray(turns, np.float64)


def classic_td(x: Windows) -> Features:
    """MAV, ZC, SSC, WL of each channel: Hudgins' set, `4 C` numbers."""
    centred = _centred(x)
    zero, turns = _crossings(x)
    length = np.abs(np.diff(centred, axis=-1)).sum(-1)
    return np.concatenate([np.abs(centred).mean(-1), zero, turns, length], 1)


def log_variance(x: Windows) -> Features:
    """Log-variance of each channel, `C` numbers."""
    return _log(_centred(x).var(-1))


def log_td(x: Windows) -> Features:
    """Log-variance, log-MAV, log-WL, ZC, SSC of each channel, `5 C` numbers."""
    centred = _centred(x)
    zero, turns = _crossings(x)
    mav, length = np.abs(centred).mean(-1), np.abs(np.diff(centred, axis=-1)).mean(-1)
    return np.concatenate([_log(centred.var(-1)), _log(mav), _log(length), zero, turns], 1)


def log_td_covariance(x: Windows) -> Features:
    """`log_td` and the off-diagonal of the channels' log-covariance, `5 C + C (C − 1) / 2` numbers."""
    centred = _centred(x)
    channels, length = x.shape[1:]
    covariance = centred @ centred.transpose(0, 2, 1) / length
    level = np.trace(covariance, axis1=1, axis2=2) / channels
    floor = 0.05 * level + 1e-30
    values, vectors = np.linalg.eigh(0.95 * covariance + floor[:, None, None] * np.eye(channels))
    logarithm = (vectors * np.log(values)[:, None, :]) @ vectors.transpose(0, 2, 1)
    rows, columns = np.triu_indices(channels, 1)
    return np.concatenate([log_td(x), logarithm[:, rows, columns]], 1)
