"""Hand-made features of multichannel signals, in operations that ONNX can express.

Per channel: log variance, log mean absolute value, log waveform length, zero crossings, slope-sign changes (Hudgins
1993; logs after Phinyomark 2012) and log power in six frequency bands; between channels: the matrix logarithm of their
correlation. The logarithm is a fixed polynomial of the matrix, for ONNX has no eigenvalues: correlations are shrunk
towards the identity, so their eigenvalues lie in a known interval where the polynomial is close to the logarithm.
"""

import itertools
import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["HandMade", "log_polynomial"]

Modality = Literal["emg", "imu"]
BANDS_HZ: dict[str, tuple[float, ...]] = {
    # Fractions of the usable bandwidth (at most 500 Hz) for muscles; for movement, low frequencies matter most.
    "emg": (0.037, 0.148, 0.259, 0.37, 0.52, 0.70, 1.0),
    "imu": (0.02, 0.05, 0.09, 0.15, 0.26, 0.5, 1.0),
}
MAX_HZ = 500.0
SHRINKAGE = 0.1
FLOOR = 1e-2
"""Added to variances, in units of the population's typical variance: a silent channel gives log(0.01)."""
LIMIT = 1e4
"""Samples are cut off at this many population standard deviations, so that squares stay finite."""
DEAD_ZONE = 0.05
"""Samples smaller than this, in population standard deviations, have a sign only in part."""
_BASE, _GROUPS = 4, 3


def log_polynomial(channels: int, shrinkage: float = SHRINKAGE) -> tuple[NDArray[np.float64], float, float, float]:
    """Return a polynomial close to log on the eigenvalues of shrunk correlation matrices.

    Returns coefficients `(3, 4)` c with log(λ) ≈ Σ_j Σ_i c_ji T_i(t) T_4(t)^j for t = the position of λ in the interval
    scaled to [−1, 1] (T_i: Chebyshev), the interval's ends, and the largest error on it.
    """
    low, high = shrinkage, (1 - shrinkage) * channels + shrinkage
    t = np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    values = (high - low) / 2 * t + (high + low) / 2
    chebyshev = [np.ones_like(t), t]
    for _ in range(_BASE - 1):
        chebyshev.append(2 * t * chebyshev[-1] - chebyshev[-2])
    design = np.stack([chebyshev[i] * chebyshev[_BASE] ** j for j in range(_GROUPS) for i in range(_BASE)], 1)
    coefficients = np.linalg.lstsq(design, np.log(values), rcond=None)[0]
    error = float(np.abs(design @ coefficients - np.log(values)).max())
    return coefficients.reshape(_GROUPS, _BASE), low, high, error


class HandMade(nn.Module):
    """Hand-made features `(n, count)` of centred-by-window signals `(n, C, T)` in units of the population's scale.

    `fs` in Hz chooses the frequency bands; modality `imu` adds the channels' means, which hold the posture.
    """

    upper: Tensor
    eye: Tensor
    fourier: Tensor
    bands: Tensor

    def __init__(self, channels: int, length: int, fs: float, modality: Modality = "emg") -> None:
        super().__init__()
        self.length, self.modality = length, modality
        coefficients, self.low, self.high, _ = log_polynomial(channels)
        self.coefficients = [[float(c) for c in row] for row in coefficients]
        rows, cols = np.triu_indices(channels, 1)
        fourier, bands = _filterbank(length, fs, BANDS_HZ[modality])
        self.bins = len(bands)
        # Constants, not weights: rebuilt from the configuration, so not in the state.
        for name, value in (
            ("upper", torch.tensor(rows * channels + cols, dtype=torch.int64)),
            ("eye", torch.eye(channels)),
            ("fourier", torch.tensor(fourier, dtype=torch.float32)),
            ("bands", torch.tensor(bands, dtype=torch.float32)),
        ):
            self.register_buffer(name, value, persistent=False)
        per_channel = 5 + bands.shape[1] + (1 if modality == "imu" else 0)
        self.count = channels * per_channel + len(rows)

    def forward(self, x: Tensor) -> Tensor:
        """Features `(n, count)` of scaled windows `(n, C, T)`."""
        mean = x.mean(-1, keepdim=True)
        centred = x - mean
        variance = (centred * centred).mean(-1)
        slope = centred[..., 1:] - centred[..., :-1]
        features = [
            torch.log(variance + FLOOR),
            torch.log(centred.abs().mean(-1) + math.sqrt(FLOOR)),
            torch.log(slope.abs().mean(-1) + math.sqrt(FLOOR)),
            _sign_changes(centred),
            _sign_changes(slope),
            self._log_correlation(centred, variance),
            self._band_powers(centred),
        ]
        if self.modality == "imu":
            features.append(torch.clamp(mean.squeeze(-1), -10.0, 10.0))
        return torch.cat(features, 1)

    def _log_correlation(self, centred: Tensor, variance: Tensor) -> Tensor:
        eye = self.eye
        unit = centred * torch.rsqrt(variance + FLOOR).unsqueeze(-1)
        correlation = (1 - SHRINKAGE) * (unit @ unit.transpose(1, 2) / self.length) * (1 - eye) + eye
        t1 = (correlation - (self.high + self.low) / 2 * eye) * (2 / (self.high - self.low))
        t2 = 2 * t1 @ t1 - eye
        t3 = 2 * t1 @ t2 - t1
        t4 = 2 * t2 @ t2 - eye
        low, middle, high = (c[0] * eye + c[1] * t1 + c[2] * t2 + c[3] * t3 for c in self.coefficients)
        return (low + t4 @ (middle + t4 @ high)).flatten(1)[:, self.upper]

    def _band_powers(self, centred: Tensor) -> Tensor:
        spectrum = centred @ self.fourier
        power = spectrum[..., : self.bins] ** 2 + spectrum[..., self.bins :] ** 2
        return torch.log(power @ self.bands + FLOOR).flatten(1)


def _sign_changes(x: Tensor) -> Tensor:
    """Share of neighbouring samples `(n, C)` with opposite signs, near-zero samples counting in part.

    A hard sign would flip on rounding errors where a sample equals the mean: two runtimes would disagree.
    """
    sign = torch.clamp(x / DEAD_ZONE, -1.0, 1.0)
    return 0.5 - 0.5 * (sign[..., 1:] * sign[..., :-1]).mean(-1)


def _filterbank(
    length: int, fs: float, fractions: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return cosines and sines `(T, 2·bins)` under a Hann window, and the bands' averaging weights `(bins, bands)`."""
    limit = min(fs / 2, MAX_HZ)
    edges = np.round(np.array(fractions) * limit * length / fs).astype(int)
    edges[0] = max(edges[0], 1)
    edges = np.unique(np.minimum(edges, length // 2 + 1))
    edges[-1] = min(edges[-1] + 1, length // 2 + 1)
    frequencies = np.arange(edges[-1])
    window = np.hanning(length)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(length), frequencies) / length) * window[:, None]
    bands = np.zeros((len(frequencies), max(len(edges) - 1, 1)))
    for i, (a, b) in enumerate(itertools.pairwise(edges)):
        bands[a:b, i] = 1 / ((b - a) * max(float((window**2).sum()), 1e-9))
    return np.concatenate([waves.real, waves.imag], 1), bands
