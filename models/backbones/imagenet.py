"""Backbones of timm and torchvision: `timm:<name>`, `torchvision:<name>` (AlexNet, VGG, ResNet, Inception, …)."""

from typing import Any

import torch
from torch import Tensor, nn

from models.backbones.encoder import IMAGENET_MEAN, IMAGENET_STD, ImageConfig, ImageEncoder
from models.backbones.registry import BackboneError, register_family

__all__: list[str] = []

TAPS = 6
OTHER_TORCH = "the installed torchvision is of another build than torch ({}): install the one that fits, or remove it"
CLASSIFIERS = ("fc", "classifier", "head", "heads")


@register_family("timm")
def _timm(name: str, **settings: Any) -> nn.Module:
    """Any of timm's models, with the size, scaling and interpolation that its weights were made with."""
    try:
        import timm
    except ImportError as e:
        raise BackboneError(f"timm:{name} needs: pip install timm torchvision") from e
    except RuntimeError as e:
        raise BackboneError(OTHER_TORCH.format(e)) from e
    if not timm.is_model(name.split(".")[0]):
        raise BackboneError(f"timm has no model '{name}'; `python -m timm.models` lists them.")
    weights = settings.get("weights", True)
    own = settings.get("config") or {}
    network = timm.create_model(name, pretrained=weights, num_classes=0, **own)
    made: Any = network.pretrained_cfg
    size = int(settings.get("size", made.get("input_size", (3, 224, 224))[1]))
    usual = {
        "size": size,
        "resize": round(size / made.get("crop_pct", 0.875)),
        "interpolation": "bicubic" if made.get("interpolation") == "bicubic" else "bilinear",
        "mean": made.get("mean", IMAGENET_MEAN),
        "std": made.get("std", IMAGENET_STD),
    }
    cfg = ImageConfig.model_validate({**usual, **settings})
    return ImageEncoder(network, cfg, _width(network, cfg), _layers(network))


@register_family("torchvision")
def _torchvision(name: str, **settings: Any) -> nn.Module:
    """Any of torchvision's classifiers, its last layer taken off."""
    try:
        from torchvision import models
    except ImportError as e:
        raise BackboneError(f"torchvision:{name} needs: pip install torchvision") from e
    except RuntimeError as e:
        raise BackboneError(OTHER_TORCH.format(e)) from e
    if name not in models.list_models(module=models):
        raise BackboneError(f"torchvision has no classifier '{name}'; torchvision.models.list_models() lists them.")
    best = models.get_model_weights(name).DEFAULT
    told = best.transforms()
    usual: dict[str, Any] = {
        "size": told.crop_size[0],
        "resize": told.resize_size[0],
        "interpolation": told.interpolation.value,
        "mean": tuple(told.mean),
        "std": tuple(told.std),
    }
    cfg = ImageConfig.model_validate({**usual, **settings})
    extra = {"init_weights": False} if name in ("inception_v3", "googlenet") and not cfg.weights else {}
    network = models.get_model(name, weights=best if cfg.weights else None, **extra, **(cfg.config or {}))
    _without_classifier(network)
    return ImageEncoder(network, cfg, _width(network, cfg), _layers(network))


def _without_classifier(network: nn.Module) -> None:
    """Replace the last linear layer, wherever the architecture has it; auxiliary classifiers go too."""
    for name in ("AuxLogits", "aux1", "aux2"):
        if hasattr(network, name):
            setattr(network, name, None)
    for name in CLASSIFIERS:
        part = getattr(network, name, None)
        if isinstance(part, nn.Linear):
            setattr(network, name, nn.Identity())
            return
        if isinstance(part, nn.Sequential):
            last = max(i for i, m in enumerate(part) if isinstance(m, nn.Linear | nn.Conv2d))
            # What follows the last layer (pooling, flattening) stays.
            part[last] = nn.Identity()
            return
    raise BackboneError("This architecture's classifier is not where any is known to be.")


@torch.no_grad()
def _width(network: nn.Module, cfg: ImageConfig) -> int:
    """Number of features, by a look at what an empty image gives."""
    training = network.training
    y: Tensor = network.eval()(torch.zeros(1, 3, cfg.size, cfg.size))
    network.train(training)
    return int(y.shape[1])


def _layers(network: nn.Module) -> tuple[str, ...]:
    """A handful of stages: the children of the deepest container that has some, spread evenly."""
    at, path = network, ""
    while len(children := [n for n, m in at.named_children() if next(m.parameters(), None) is not None]) == 1:
        at, path = at.get_submodule(children[0]), f"{path}{children[0]}."
    names = [f"{path}{n}" for n in children if n not in CLASSIFIERS]
    if len(names) == 1:  # VGG and AlexNet: all of it is in `features`
        inner = network.get_submodule(names[0])
        names = [f"{names[0]}.{n}" for n, m in inner.named_children() if next(m.parameters(), None) is not None]
    step = max(1, -(-len(names) // TAPS))
    return tuple(names[::-1][::step][::-1])
