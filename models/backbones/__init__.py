"""Backbones: encoders from raw input to features, by modality, behind one small protocol."""

from models.backbones.protocol import Backbone
from models.backbones.registry import BackboneError, create, names, register
from models.backbones.signal import SignalConfig, SignalEncoder

__all__ = ["Backbone", "BackboneError", "SignalConfig", "SignalEncoder", "create", "names", "register"]
