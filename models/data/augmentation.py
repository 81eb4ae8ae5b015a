"""Augmentation of windows: what happens to a signal when the sensor is worn by someone else or somewhere else."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Augmentation", "rotated"]


def rotated(x: Tensor, electrodes: float, *, flipped: bool = False) -> Tensor:
    """Windows `(n, C, T)` of a ring of electrodes turned by a (fractional) number of electrodes, after a flip if asked.

    Between two electrodes the signal is interpolated linearly. `flipped`: the armband is put on the other way round.
    """
    x = x.flip(1) if flipped else x
    whole = math.floor(electrodes)
    part = electrodes - whole
    turned = torch.roll(x, whole, 1)
    return turned if part == 0 else (1 - part) * turned + part * torch.roll(x, whole + 1, 1)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of one user's windows: the same placement and gain for all, other noise for each.

    Attributes:
        ring: whether the channels form a ring that can be turned and flipped.
        rotation: standard deviation of the rotation, in electrodes.
        anywhere: share of users turned by any angle.
        flip: share of users with the ring put on the other way round.
        gain: standard deviation of the log gain of a user.
        channel_gain: standard deviation of the log gain of a channel.
        noise: largest standard deviation of added noise, in units of `scale`.
        jitter: largest shift in time, in samples; what is missing at the edge is reflected.
    """

    ring: bool = True
    rotation: float = 0.7
    anywhere: float = 0.2
    flip: float = 0.1
    gain: float = 0.3
    channel_gain: float = 0.1
    noise: float = 0.07
    jitter: int = 0

    def __call__(self, x: Tensor, scale: Tensor, rng: np.random.Generator) -> Tensor:
        """Changed copies of one user's windows `(n, C, T)`; `scale` `(C, 1)`: the population's, by channel."""
        channels = x.shape[1]
        if self.ring and channels > 2:
            turn = rng.uniform(0, channels) if rng.random() < self.anywhere else rng.normal() * self.rotation
            x = rotated(x, float(turn), flipped=bool(rng.random() < self.flip))
        gain = np.exp(rng.normal() * self.gain + rng.normal(size=(channels, 1)) * self.channel_gain)
        x = x * torch.from_numpy(gain.astype(np.float32))
        if self.jitter:
            at = int(rng.integers(0, 2 * self.jitter + 1))
            x = functional.pad(x, (self.jitter, self.jitter), mode="reflect")[..., at : at + x.shape[2]]
        noise = torch.from_numpy(rng.standard_normal(tuple(x.shape), dtype=np.float32))
        return x + float(rng.random() * self.noise) * scale * noise
