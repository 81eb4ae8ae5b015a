"""Backbones: encoders from raw input to features, by modality, behind one small protocol."""

from models.backbones import huggingface, imagenet, onnx_file, packaged  # noqa: F401 - they register their families
from models.backbones.freezing import FreezePlan
from models.backbones.module import EncoderModule, create_encoder
from models.backbones.protocol import Backbone, Encoder
from models.backbones.registry import BackboneError, create, families, names, register, register_family
from models.backbones.signal import SignalConfig, SignalEncoder

__all__ = [
    "Backbone",
    "BackboneError",
    "Encoder",
    "EncoderModule",
    "FreezePlan",
    "SignalConfig",
    "SignalEncoder",
    "create",
    "create_encoder",
    "families",
    "names",
    "register",
    "register_family",
]
