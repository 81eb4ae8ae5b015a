"""Encoders of log-mel spectrograms, from samples on: audio spectrogram transformers and Whisper's encoder.

Both see a fixed length, which a shorter clip is filled up to with silence: samples that are exactly zero to the end.
Preprocessing is that of transformers' `ASTFeatureExtractor` and `WhisperFeatureExtractor`, in the graph.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from exporters.input_spec import InputSpec, Views
from exporters.media_spec import AudioMedia
from models.backbones.encoder import AudioConfig, TappedEncoder, clip_length
from models.backbones.mel import KALDI, LogMel, MelConfig
from models.backbones.registry import BackboneError

__all__ = ["AstConfig", "AstEncoder", "WhisperEncoder", "ast_seconds", "whisper_seconds"]

RATE, HOP, FRAME = 16_000, 160, 400
AST_FLOOR = 2.0**-23
"""Power that quieter bands count as: Kaldi's, the smallest step of a 32-bit number beside 1."""
WHISPER_MEL = {"frame": FRAME, "hop": HOP, "high": 8000.0, "edges": "reflect"}
WHISPER_SPAN = 8.0
"""Powers of ten below the loudest that Whisper hears."""
STRIDE = 2 * HOP
"""Samples from one of Whisper's positions to the next."""


class AstConfig(AudioConfig):
    """Settings of an audio spectrogram transformer."""

    mean: float = Field(-4.2677393, description="of the log-mel spectrogram where it was trained; here AudioSet's")
    std: float = Field(4.5689974, gt=0)


class SpectrogramEncoder(TappedEncoder):
    """A network of spectrograms that takes samples `(n, t)` at 16 kHz, at most `samples` of them."""

    default_cfg: AudioConfig

    def __init__(
        self, network: nn.Module, cfg: AudioConfig, features: int, layers: Sequence[str], samples: int
    ) -> None:
        super().__init__()
        self.network, self.default_cfg, self.layers, self.files = network, cfg, tuple(layers), {}
        self._features, given = features, round(cfg.seconds * cfg.rate)
        if cfg.rate != RATE:
            raise BackboneError(f"this encoder takes sound of {RATE} Hz; rate is {cfg.rate:g}")
        if not FRAME <= given <= samples:
            raise BackboneError(
                f"this encoder sees {FRAME / RATE:g} to {samples / RATE:g} s; seconds is {cfg.seconds:g}"
            )
        self._missing = samples - given
        self.input = InputSpec(
            shape=(-1, given),
            unit="full scale",
            sample_rate=RATE,
            modality="audio",
            media=AudioMedia(),
            # Noise or a shift would make sound of the silence that fills a clip up.
            views=Views(gain=0.3),
        )

    @property
    def num_features(self) -> int:
        """Number of features d."""
        return self._features


class AstEncoder(SpectrogramEncoder):
    """Samples `(n, t)` to features `(n, d)` by an audio spectrogram transformer: its two class tokens, averaged.

    Frames of silence that fills a clip up are 0 before scaling, as those behind a clip are for the feature extractor.
    """

    default_cfg: AstConfig
    ends: Tensor

    def __init__(self, network: nn.Module, cfg: AstConfig, own: Any, layers: Sequence[str]) -> None:
        super().__init__(network, cfg, int(own.hidden_size), layers, round(ast_seconds(own) * RATE))
        self.mel = LogMel(KALDI.model_copy(update={"bands": own.num_mel_bins}), floor=AST_FLOOR)
        ends = FRAME + HOP * torch.arange(own.max_length, dtype=torch.float32)
        self.register_buffer("ends", ends, persistent=False)

    def spectrogram(self, x: Tensor) -> Tensor:
        """What the network takes, `(n, frames, bands)`, of samples `(n, t)`."""
        y = self.mel(nn.functional.pad(x, (0, self._missing))).transpose(1, 2) * math.log(10)
        heard = (self.ends <= clip_length(x)).unsqueeze(2)
        return (torch.where(heard, y, 0.0) - self.default_cfg.mean) / (2 * self.default_cfg.std)

    def forward_features(self, x: Tensor) -> Tensor:
        """Features `(n, d)` of samples `(n, t)`."""
        z: Tensor = self.network(input_values=self.spectrogram(x)).pooler_output
        return z


class WhisperEncoder(SpectrogramEncoder):
    """Samples `(n, t)` to features `(n, d)` by Whisper's encoder: the mean over the positions, 20 ms each, of the clip.

    The encoder always computes all of its 30 s, so a clip of one second costs as much as one of thirty.
    """

    starts: Tensor

    def __init__(self, network: nn.Module, cfg: AudioConfig, own: Any, layers: Sequence[str]) -> None:
        super().__init__(network, cfg, int(own.d_model), layers, round(whisper_seconds(own) * RATE))
        self.mel = LogMel(MelConfig(**WHISPER_MEL, bands=own.num_mel_bins), span=WHISPER_SPAN)
        starts = STRIDE * torch.arange(own.max_source_positions, dtype=torch.float32)
        self.register_buffer("starts", starts, persistent=False)

    def spectrogram(self, x: Tensor) -> Tensor:
        """What the network takes, `(n, bands, frames)`, of samples `(n, t)`."""
        y: Tensor = self.mel(nn.functional.pad(x, (0, self._missing)))
        return y[:, :, :-1] / 4 + 1

    def forward_features(self, x: Tensor) -> Tensor:
        """Features `(n, d)` of samples `(n, t)`."""
        hidden = self.network(input_features=self.spectrogram(x)).last_hidden_state
        share = (self.starts < clip_length(x)).to(hidden.dtype).unsqueeze(2)
        z: Tensor = (hidden * share).sum(1) / share.sum(1)
        return z


def ast_seconds(own: Any) -> float:
    """What a transformer of this configuration sees: as many seconds as have its number of frames."""
    return (FRAME + HOP * (int(own.max_length) - 1)) / RATE


def whisper_seconds(own: Any) -> float:
    """What Whisper of this configuration sees: 30 s, of those published."""
    return STRIDE * int(own.max_source_positions) / RATE
