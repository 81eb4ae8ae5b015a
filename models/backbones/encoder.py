"""Pre-trained networks as backbones: normalisation in front, pooling behind, layers by name."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from exporters.input_spec import InputSpec, Padding
from exporters.media_spec import TOKENIZER, AudioMedia, ImageMedia, TextMedia
from models.backbones.module import EncoderModule

__all__ = [
    "AudioConfig",
    "AudioEncoder",
    "ImageConfig",
    "ImageEncoder",
    "TappedEncoder",
    "TextConfig",
    "TextEncoder",
    "clip_length",
]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Network = Callable[..., Tensor]


class ImageConfig(BaseModel):
    """Settings of an image encoder; `weights` false builds the architecture only, to load a state into it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: bool = True
    size: int = Field(224, ge=16, description="pixels of either side of what the network sees")
    resize: int = Field(256, ge=16, description="pixels of the shorter side before the middle is cut out")
    fit: Literal["crop", "stretch", "pad"] = "crop"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = Field(IMAGENET_MEAN, description="of values in [0, 1]")
    std: tuple[float, float, float] = IMAGENET_STD
    config: dict[str, Any] | None = Field(None, description="the network's own configuration, where its family has one")


class TextConfig(BaseModel):
    """Settings of a text encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: bool = True
    max_tokens: int = Field(128, ge=8, multiple_of=8)
    pooling: Literal["mean", "first"] = "mean"
    normalise: bool = Field(True, description="whether features have length 1")
    pad: int = Field(0, ge=0, description="token id that fills up, and is masked")
    config: dict[str, Any] | None = None


class AudioConfig(BaseModel):
    """Settings of an encoder of sounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: bool = True
    seconds: float = Field(2.0, gt=0, description="of sound that it sees; shorter clips are filled with silence")
    rate: float = Field(16_000.0, gt=0, description="Hz")
    normalise: bool = Field(True, description="whether each clip is brought to mean 0 and deviation 1")
    config: dict[str, Any] | None = None


class TappedEncoder(EncoderModule):
    """An encoder whose `network` has named layers to look at."""

    network: nn.Module
    layers: tuple[str, ...]

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of layers, from the input on."""
        return self.layers

    def forward_taps(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of layers, averaged over all but rows and channels: `(n, channels)`.

        Raises:
            KeyError: there is no tap of that name.
        """
        self.check_taps(names)
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                found[name] = _pooled(output[0] if isinstance(output, tuple) else output)

            return hook

        hooks = [self.network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
        try:
            self.forward_features(x)
        finally:
            for handle in hooks:
                handle.remove()
        return {name: found[name] for name in names}


def _pooled(output: Tensor) -> Tensor:
    """Average a layer's output over positions: maps `(n, c, h, w)`, sequences `(n, t, c)`."""
    if output.ndim == 4:
        return output.mean((2, 3))
    return output.mean(1) if output.ndim == 3 else output


class ImageEncoder(TappedEncoder):
    """Images `(n, H, W, 3)` uint8 to features: values to [0, 1], normalised, through `network`, averaged over space."""

    default_cfg: ImageConfig
    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, cfg: ImageConfig, features: int, layers: Sequence[str], run: Network | None = None
    ) -> None:
        super().__init__()
        self.network, self.default_cfg, self.layers, self.files = network, cfg, tuple(layers), {}
        self._run, self._features = run, features
        self.input = InputSpec(
            datatype="UINT8",
            shape=(-1, cfg.size, cfg.size, 3),
            unit="pixels",
            modality="image",
            media=ImageMedia(fit=cfg.fit, resize=max(cfg.resize, cfg.size), interpolation=cfg.interpolation),
        )
        # In the units of pixels, so that the graph begins with one subtraction and one product.
        self.register_buffer("mean", 255 * torch.tensor(cfg.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(cfg.std).reshape(3, 1, 1), persistent=False)

    @property
    def num_features(self) -> int:
        """Number of features d."""
        return self._features

    def forward_features(self, x: Tensor) -> Tensor:
        """Features `(n, d)` of images `(n, H, W, 3)` of values 0 to 255."""
        x = (x.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.std
        y = self.network(x) if self._run is None else self._run(self.network, x)
        return _pooled(y)


class TextEncoder(TappedEncoder):
    """Token ids `(n, t)` int64, filled up with `pad`, to features: the mean over tokens, or the first one's."""

    default_cfg: TextConfig

    def __init__(
        self, network: nn.Module, cfg: TextConfig, features: int, layers: Sequence[str], tokenizer: bytes | None
    ) -> None:
        super().__init__()
        self.network, self.default_cfg, self.layers = network, cfg, tuple(layers)
        self.files = {} if tokenizer is None else {TOKENIZER: tokenizer}
        self._features = features
        self.input = InputSpec(
            datatype="INT64",
            shape=(-1, -1),
            unit="token ids",
            modality="text",
            padding=Padding(axis=1, multiple_of=8, value=float(cfg.pad), maximum=cfg.max_tokens),
            media=TextMedia(max_tokens=cfg.max_tokens),
        )

    @property
    def num_features(self) -> int:
        """Number of features d."""
        return self._features

    def forward_features(self, x: Tensor) -> Tensor:
        """Features `(n, d)` of token ids `(n, t)`; what is filled up does not matter."""
        mask = (x != self.default_cfg.pad).to(torch.int64)
        hidden = self.network(input_ids=x, attention_mask=mask).last_hidden_state
        if self.default_cfg.pooling == "first":
            z = hidden[:, 0]
        else:
            share = mask.unsqueeze(-1).to(hidden.dtype)
            z = (hidden * share).sum(1) / share.sum(1).clamp(min=1.0)
        return nn.functional.normalize(z, dim=1) if self.default_cfg.normalise else z


class AudioEncoder(TappedEncoder):
    """Samples `(n, t)` to features: mean 0 and deviation 1 by clip if so set, `network`, the average over time."""

    default_cfg: AudioConfig

    def __init__(self, network: nn.Module, cfg: AudioConfig, features: int, layers: Sequence[str]) -> None:
        super().__init__()
        self.network, self.default_cfg, self.layers, self.files = network, cfg, tuple(layers), {}
        self._features = features
        self.input = InputSpec(
            shape=(-1, round(cfg.seconds * cfg.rate)),
            unit="full scale",
            sample_rate=cfg.rate,
            modality="audio",
            media=AudioMedia(),
        )

    @property
    def num_features(self) -> int:
        """Number of features d."""
        return self._features

    def forward_features(self, x: Tensor) -> Tensor:
        """Features `(n, d)` of samples `(n, t)`."""
        if self.default_cfg.normalise:
            x = x - x.mean(1, keepdim=True)
            x = x * torch.rsqrt((x * x).mean(1, keepdim=True) + 1e-7)
        z: Tensor = self.network(input_values=x).last_hidden_state.mean(1)
        return z


def clip_length(x: Tensor) -> Tensor:
    """Samples `(n, 1)` of clips `(n, t)` up to the last that is not zero, for silence fills them up; at least 1."""
    position = torch.arange(1, x.shape[1] + 1, dtype=torch.float32, device=x.device)
    return torch.where(x == 0, 0.0, position).amax(1, keepdim=True).clamp(min=1.0)
