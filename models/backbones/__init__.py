"""Backbones: encoders from raw input to features, by modality, behind one small protocol."""

from models.backbones import huggingface, imagenet, onnx_file, packaged  # noqa: F401 - they register their families
from models.backbones.freezing import FreezePlan
from models.backbones.protocol import Backbone, Encoder
from models.backbones.registry import BackboneError, create, families, names, register, register_family
from models.backbones.signal import SignalConfig, SignalEncoder

__all__ = [
    "Backbone",
    "BackboneError",
    "Encoder",
    "FreezePlan",
    "SignalConfig",
    "SignalEncoder",
    "create",
    "families",
    "names",
    "register",
    "register_family",
]
