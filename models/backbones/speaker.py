"""Who speaks, not what is said: Resemblyzer's voice encoder (`package:resemblyzer`) with its preprocessing inside.

The network is the speaker encoder of Wan et al. 2018 (Generalized End-to-End Loss) as Resemblyzer trained it: three
LSTM layers over the mel spectrogram of 1.6 s. A clip's features are the mean over such pieces, 0.77 s from one to the
next.
"""

import importlib.util
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from exporters.input_spec import InputSpec, Views
from exporters.media_spec import AudioMedia
from models.backbones.encoder import TappedEncoder, clip_length
from models.backbones.mel import Mel, MelConfig
from models.backbones.registry import BackboneError

__all__ = ["SpeakerConfig", "SpeakerEncoder", "resemblyzer"]

RATE = 16_000
MEL = MelConfig(rate=RATE, frame=400, hop=160, bands=40)
HIDDEN, FEATURES, LAYERS = 256, 256, 3
PIECE, STEP = 160, 77
"""Frames of a piece, and from the beginning of one to the next: 1.3 pieces a second."""
COVERAGE = 0.75
"""A further piece counts if the clip covers that share of it."""
LOUDNESS = 10 ** (-30 / 20)
"""Root mean square, of full scale, that softer clips are raised to; louder ones stay as they are."""


class SpeakerConfig(BaseModel):
    """Settings of the speaker encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: bool = True
    seconds: float = Field(
        4.0, ge=1.6, le=60, description="of sound that it sees; the rest of a longer clip is cut off"
    )


class _Network(nn.Module):
    """The network alone, with the names that Resemblyzer's weights have."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MEL.bands, HIDDEN, LAYERS, batch_first=True)
        self.linear = nn.Linear(HIDDEN, FEATURES)

    def forward(self, mels: Tensor) -> Tensor:
        """Features `(n, 256)` of length 1, none negative, of mel spectrograms `(n, 160, 40)`."""
        last = self._in_onnx(mels) if torch.onnx.is_in_onnx_export() else self.lstm(mels)[0][:, -1]
        return nn.functional.normalize(torch.relu(self.linear(last)), dim=1)

    def _in_onnx(self, mels: Tensor) -> Tensor:
        """Last hidden state `(n, 256)` by ONNX's own operators; torch's would be unrolled step by step to be traced."""
        y, rows = mels.transpose(0, 1), mels.shape[0]
        last = y
        for layer in range(LAYERS):
            kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            w, r, wb, rb = (_gates(getattr(self.lstm, f"{kind}_l{layer}")) for kind in kinds)
            y, last, _ = torch.onnx.ops.symbolic_multi_out(
                "LSTM",
                (y, w, r, torch.cat([wb, rb], 1)),
                {"hidden_size": HIDDEN},
                dtypes=(y.dtype,) * 3,
                shapes=((PIECE, 1, rows, HIDDEN), (1, rows, HIDDEN), (1, rows, HIDDEN)),
            )
            y = y.squeeze(1)
        return last.squeeze(0)


def _gates(weight: Tensor) -> Tensor:
    """Weights of the gates in ONNX's order, input, output, forget, cell, with an axis for directions."""
    return torch.cat([weight[:HIDDEN], weight[3 * HIDDEN :], weight[HIDDEN : 3 * HIDDEN]]).unsqueeze(0)


class SpeakerEncoder(TappedEncoder):
    """Samples `(n, t)` at 16 kHz to features `(n, 256)` of the voice, of length 1.

    Silence that fills a clip up to t, samples that are exactly zero to the end, does not matter: volume and the pieces
    that count go by what is before it. Resemblyzer's detection of speech is not part of it, so pauses stay in.
    """

    default_cfg: SpeakerConfig
    starts: Tensor

    def __init__(self, cfg: SpeakerConfig) -> None:
        super().__init__()
        self.default_cfg, self.files, self.layers = cfg, {}, ("lstm", "linear")
        self.mel, self.network = Mel(MEL), _Network()
        samples = round(cfg.seconds * RATE)
        self.input = InputSpec(
            shape=(-1, samples),
            unit="full scale",
            sample_rate=RATE,
            modality="audio",
            media=AudioMedia(),
            # Noise or a shift would make sound of the silence that fills a clip up.
            views=Views(gain=0.3),
        )
        last = max(0.0, samples / MEL.hop - COVERAGE * PIECE)
        starts = range(0, int(last) + 1, STEP)
        self.register_buffer("starts", torch.tensor(starts, dtype=torch.float32), persistent=False)
        # Frames reach half their length beyond their middle, and the last piece may reach beyond the clip.
        self._missing = max(0, (starts[-1] + PIECE) * MEL.hop - samples)

    @property
    def num_features(self) -> int:
        """Number of features d."""
        return FEATURES

    def forward_features(self, x: Tensor) -> Tensor:
        """Features `(n, 256)` of samples `(n, t)`."""
        length = clip_length(x)
        rms = torch.sqrt((x * x).sum(1, keepdim=True) / length)
        x = x * (LOUDNESS / rms.clamp(min=1e-7)).clamp(min=1.0)
        mels = self.mel(nn.functional.pad(x, (0, self._missing))).transpose(1, 2)
        count = self.starts.shape[0]
        pieces = torch.stack([mels[:, i * STEP : i * STEP + PIECE] for i in range(count)], 1)
        z = self.network(pieces.reshape(-1, PIECE, MEL.bands))
        return nn.functional.normalize(self._mean(z, length), dim=1)

    def forward_taps(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of layers, averaged over frames and over the pieces that count: `(n, channels)`.

        Raises:
            KeyError: there is no tap of that name.
        """
        length = clip_length(x)
        return {name: self._mean(found, length) for name, found in super().forward_taps(x, names).items()}

    def _mean(self, pieces: Tensor, length: Tensor) -> Tensor:
        """Mean `(n, c)` over the pieces `(n * pieces, c)` that the clips, `(n, 1)` samples long, cover."""
        counts = (length / MEL.hop - self.starts >= COVERAGE * PIECE) | (self.starts == 0)
        share = counts.to(pieces.dtype).unsqueeze(2)
        return (pieces.reshape(-1, self.starts.shape[0], pieces.shape[1]) * share).sum(1) / share.sum(1)


def resemblyzer(**settings: object) -> SpeakerEncoder:
    """Resemblyzer's voice encoder (Apache-2.0): 1.42 M parameters, 256 features of length 1.

    The package's weights are read as a file and its code is not imported, so what it depends on is not needed.

    Raises:
        BackboneError: it is not installed, or its file of weights is not what was expected.
    """
    encoder = SpeakerEncoder(SpeakerConfig.model_validate(settings))
    if encoder.default_cfg.weights:
        _load(encoder.network)
    return encoder


def _load(network: nn.Module) -> None:
    found = importlib.util.find_spec("resemblyzer")
    if found is None or found.origin is None:
        raise BackboneError("package:resemblyzer needs: pip install --no-deps resemblyzer")
    file = Path(found.origin).parent / "pretrained.pt"
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
        # The checkpoint also has two numbers of the loss that it was trained by.
        network.load_state_dict({name: state[name] for name in network.state_dict()})
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as e:
        raise BackboneError(f"{file} does not hold the weights of Resemblyzer's voice encoder: {e}") from e
