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

__all__ = ["KALDI", "LogMel", "Mel", "MelConfig", "hz_to_mel", "mel_filters", "mel_to_hz"]

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
    fft: int | None = Field(None, ge=2, description="samples that a frame is filled up to; default: none")
    fill: Literal["both", "behind"] = Field(
        "both", description="sides that it is filled up on; `behind`: frames lie as if it were not"
    )
    hop: int = Field(160, ge=1, description="samples from one frame to the next")
    bands: int = Field(80, ge=1)
    low: float = Field(0.0, ge=0, description="Hz at which the first band begins")
    high: float | None = Field(None, gt=0, description="Hz at which the last band ends; by default half the rate")
    scale: Scale = "slaney"
    by_width: bool = Field(True, description="whether bands are divided by their width (Slaney), or peak at 1")
    straight_in: Literal["hz", "mel"] = Field("hz", description="unit that the sides of a band are straight in")
    window: Literal["periodic", "symmetric"] = Field("periodic", description="the Hann window that frames lie under")
    centred: bool = Field(False, description="whether a frame's mean is taken off")
    emphasis: float = Field(
        0.0, ge=0, lt=1, description="share of the sample before that is taken off each, in a frame"
    )
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

    @property
    def reach(self) -> int:
        """Samples from the first to the last that a frame looks at, filled up or not."""
        return self.frame if self.fill == "behind" else self.length

    def frames(self, samples: int) -> int:
        """Number of frames of so many samples."""
        return 1 + (samples - (self.reach if self.edges == "none" else self.reach % 2)) // self.hop


KALDI = MelConfig(
    fft=512, fill="behind", bands=128, low=20.0, scale="htk", by_width=False, edges="none",
    straight_in="mel", window="symmetric", centred=True, emphasis=0.97,
)  # fmt: skip
"""Kaldi's filter banks (`compute-fbank-feats` with Hann windows), which audio spectrogram transformers take."""


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
    bins = np.asarray(np.fft.rfftfreq(cfg.length, 1.0 / cfg.rate), np.float64)
    if cfg.straight_in == "mel":
        left, middle, right, bins = (hz_to_mel(hz, cfg.scale) for hz in (left, middle, right, bins))
    filters = np.maximum(0.0, np.minimum((bins - left) / (middle - left), (right - bins) / (right - middle)))
    return np.asarray(filters * (2.0 / (right - left)) if cfg.by_width else filters)


def _waves(cfg: MelConfig) -> Array:
    """Cosines, then sines, `(2 * bins, reach)`: their products with a frame are its spectrum.

    All that is done to a frame before is linear, so it is in them: taking off the mean, emphasis, window, filling up.
    """
    n, before = cfg.length, (cfg.reach - cfg.frame) // 2
    # Phases modulo the length: exact for any bin, where an angle of thousands of radians is not.
    angle = 2 * np.pi / n * (np.arange(n // 2 + 1)[:, None] * np.arange(cfg.reach)[None] % n)
    turns = 2 * np.pi * np.arange(cfg.frame) / (cfg.frame - (cfg.window == "symmetric"))
    under = np.concatenate([np.cos(angle), np.sin(angle)])[:, before : before + cfg.frame] * (0.5 - 0.5 * np.cos(turns))
    if cfg.emphasis:
        # y[t] = x[t] - a x[t-1], and y[0] = (1 - a) x[0]: so x[t] counts 1 at t, and -a one later.
        later = np.concatenate([under[:, 1:], np.zeros((len(under), 1))], 1)
        later[:, 0] += under[:, 0]
        under = under - cfg.emphasis * later
    if cfg.centred:
        under = under - under.mean(1, keepdims=True)
    waves = np.zeros((len(under), cfg.reach))
    waves[:, before : before + cfg.frame] = under
    return waves


class Mel(nn.Module):
    """Power mel spectrogram `(n, bands, frames)` of samples `(n, t)`, under a Hann window.

    The definition is librosa's `melspectrogram`, whose `n_fft` is `fft` here and whose `win_length` is `frame`; or with
    the settings of `KALDI`, Kaldi's filter banks.
    """

    waves: Tensor
    filters: Tensor

    def __init__(self, cfg: MelConfig) -> None:
        super().__init__()
        self.default_cfg = cfg
        # Constants, not weights: rebuilt from the configuration, so not in the state.
        self.register_buffer("waves", torch.tensor(_waves(cfg), dtype=torch.float32).unsqueeze(1), persistent=False)
        self.register_buffer("filters", torch.tensor(mel_filters(cfg), dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Power `(n, bands, frames)` of samples `(n, t)`; t at least a frame, or half of one where ends are filled."""
        cfg = self.default_cfg
        if cfg.edges != "none":
            half = (cfg.reach // 2, cfg.reach // 2)
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
