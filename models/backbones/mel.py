"""Mel spectrograms as matrix products: the front end of encoders of sound, in operations that ONNX can express.

A frame's discrete Fourier transform is a product with fixed cosines and sines, so a strided convolution computes all
frames with the window in its weights, and no operator of signal processing is asked of a runtime.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

__all__ = ["LogMel", "Mel", "MelConfig", "hz_to_mel", "mel_filters", "mel_to_hz"]

Array = NDArray[np.float64]
Scale = Literal["slaney", "htk"]
LINEAR_HZ, MEL_HZ, BREAK_HZ = 1000.0, 200.0 / 3.0, 15.0
"""Slaney's scale is linear up to 1,000 Hz, or 15 mel, in steps of 200/3 Hz, and from there on logarithmic."""
LOG_STEP = np.log(6.4) / 27.0


class MelConfig(BaseModel):
    """What a mel spectrogram is: frames in samples, bands in Hz."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float = Field(16_000.0, gt=0, description="of the samples, Hz")
    frame: int = Field(400, ge=2, description="samples of a frame, all of them under the window")
    fft: int | None = Field(None, ge=2, description="samples that a frame is filled up to on both sides; default: none")
    hop: int = Field(160, ge=1, description="samples from one frame to the next")
    bands: int = Field(80, ge=1)
    low: float = Field(0.0, ge=0, description="Hz at which the first band begins")
    high: float | None = Field(None, gt=0, description="Hz at which the last band ends; by default half the rate")
    scale: Scale = "slaney"
    by_width: bool = Field(True, description="whether bands are divided by their width (Slaney), or peak at 1")
    edges: Literal["zeros", "reflect", "none"] = Field(
        "zeros",
        description="what frames centred on the first and last samples see beyond; `none`: no such frames",
    )

    @model_validator(mode="after")
    def _in_order(self) -> "MelConfig":
        if not self.low < self.top <= self.rate / 2:
            raise ValueError(
                f"bands from {self.low:g} to {self.top:g} Hz do not lie below half the rate, {self.rate:g}"
            )
        if self.length < self.frame:
            raise ValueError(f"a frame of {self.frame} samples does not fit in a transform of {self.length}")
        return self

    @property
    def top(self) -> float:
        """Hz at which the last band ends."""
        return self.rate / 2 if self.high is None else self.high

    @property
    def length(self) -> int:
        """Samples of a Fourier transform."""
        return self.frame if self.fft is None else self.fft

    def frames(self, samples: int) -> int:
        """Number of frames of so many samples."""
        return 1 + (samples - (self.length if self.edges == "none" else self.length % 2)) // self.hop


def hz_to_mel(hz: Array, scale: Scale = "slaney") -> Array:
    """Pitch in mel of frequencies in Hz: O'Shaughnessy's formula as HTK has it, or Slaney's (Auditory Toolbox)."""
    if scale == "htk":
        return np.asarray(2595.0 * np.log10(1.0 + hz / 700.0))
    beyond = BREAK_HZ + np.log(np.maximum(hz, LINEAR_HZ) / LINEAR_HZ) / LOG_STEP
    return np.asarray(np.where(hz < LINEAR_HZ, hz / MEL_HZ, beyond))


def mel_to_hz(mel: Array, scale: Scale = "slaney") -> Array:
    """Frequencies in Hz of pitches in mel; the inverse of `hz_to_mel`."""
    if scale == "htk":
        return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0))
    return np.asarray(np.where(mel < BREAK_HZ, mel * MEL_HZ, LINEAR_HZ * np.exp(LOG_STEP * (mel - BREAK_HZ))))


def mel_filters(cfg: MelConfig) -> Array:
    """Triangular filters `(bands, length // 2 + 1)` over the bins of a frame's spectrum, evenly spaced in mel."""
    ends = hz_to_mel(np.array([cfg.low, cfg.top]), cfg.scale)
    corners = mel_to_hz(np.linspace(ends[0], ends[1], cfg.bands + 2), cfg.scale)
    left, middle, right = (corners[i : i + cfg.bands, None] for i in range(3))
    bins = np.fft.rfftfreq(cfg.length, 1.0 / cfg.rate)
    filters = np.maximum(0.0, np.minimum((bins - left) / (middle - left), (right - bins) / (right - middle)))
    return np.asarray(filters * (2.0 / (right - left)) if cfg.by_width else filters)


class Mel(nn.Module):
    """Power mel spectrogram `(n, bands, frames)` of samples `(n, t)`, under a periodic Hann window.

    The definition is librosa's `melspectrogram`, whose `n_fft` is `fft` here and whose `win_length` is `frame`.
    """

    waves: Tensor
    filters: Tensor

    def __init__(self, cfg: MelConfig) -> None:
        super().__init__()
        self.default_cfg = cfg
        n, before = cfg.length, (cfg.length - cfg.frame) // 2
        window = np.zeros(n)
        window[before : before + cfg.frame] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(cfg.frame) / cfg.frame)
        # Phases modulo the length: exact for any bin, where an angle of thousands of radians is not.
        angle = 2 * np.pi / n * (np.arange(n // 2 + 1)[:, None] * np.arange(n)[None] % n)
        waves = np.concatenate([np.cos(angle), np.sin(angle)]) * window
        # Constants, not weights: rebuilt from the configuration, so not in the state.
        self.register_buffer("waves", torch.tensor(waves, dtype=torch.float32).unsqueeze(1), persistent=False)
        self.register_buffer("filters", torch.tensor(mel_filters(cfg), dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Power `(n, bands, frames)` of samples `(n, t)`; t at least a frame, or half of one where ends are filled."""
        cfg = self.default_cfg
        if cfg.edges != "none":
            half = (cfg.length // 2, cfg.length // 2)
            x = nn.functional.pad(x, half, mode="constant" if cfg.edges == "zeros" else "reflect")
        spectrum = nn.functional.conv1d(x.unsqueeze(1), self.waves, stride=cfg.hop)
        bins = cfg.length // 2 + 1
        real, imaginary = spectrum[:, :bins], spectrum[:, bins:]
        power: Tensor = torch.matmul(self.filters, real * real + imaginary * imaginary)
        return power


class LogMel(nn.Module):
    """Common logarithm of a mel spectrogram, `(n, bands, frames)` of samples `(n, t)`.

    Powers below `floor` count as it. With a `span`, what is that much (in powers of ten) below a clip's loudest value
    is raised to it: 8 are the 80 dB of librosa's `power_to_db`, and what Whisper takes.
    """

    def __init__(self, cfg: MelConfig, floor: float = 1e-10, span: float | None = None) -> None:
        super().__init__()
        self.mel, self.floor, self.span = Mel(cfg), floor, span

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms `(n, bands, frames)` of samples `(n, t)`."""
        y = torch.log10(self.mel(x).clamp(min=self.floor))
        return y if self.span is None else torch.maximum(y, y.amax(dim=(1, 2), keepdim=True) - self.span)
