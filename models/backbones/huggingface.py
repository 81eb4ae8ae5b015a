"""Backbones of transformers' AutoModel: `hf:<id or folder>`, for texts (BERT), images (ViT), sounds (wav2vec2, AST)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from models.backbones.encoder import AudioConfig, AudioEncoder, ImageConfig, ImageEncoder, TextConfig, TextEncoder
from models.backbones.registry import BackboneError, register_family
from models.backbones.spectrogram import AstConfig, AstEncoder, WhisperEncoder, ast_seconds, whisper_seconds

__all__ = ["text_encoder"]

AUDIO = ("wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "sew")
IMAGE = ("vit", "deit", "beit", "dinov2", "swin", "convnext", "resnet")


@register_family("hf")
def _huggingface(name: str, **settings: Any) -> nn.Module:
    """Any AutoModel whose configuration says that it reads texts, images or sound."""
    kind = _own(name, settings).model_type
    try:
        return _built(kind, name, settings)
    except (ImportError, RuntimeError) as e:
        # A package that a model imports, as a torchvision of another build than torch, hides behind several others.
        root: BaseException = e
        while root.__cause__ is not None:
            root = root.__cause__
        raise BackboneError(f"transformers cannot build '{name}' ({kind}) here: {root}") from e


def _built(kind: str, name: str, settings: dict[str, Any]) -> nn.Module:
    if kind in AUDIO:
        return _audio_encoder(name, **settings)
    if kind == "audio-spectrogram-transformer":
        return _ast_encoder(name, **settings)
    if kind == "whisper":
        return _whisper_encoder(name, **settings)
    if kind in IMAGE:
        return _image_encoder(name, **settings)
    return text_encoder(name, **settings)


def _own(name: str, settings: dict[str, Any]) -> Any:
    """The network's configuration: as recorded, or else as the folder or the hub has it."""
    try:
        from transformers import AutoConfig
    except ImportError as e:
        raise BackboneError(f"hf:{name} needs: pip install transformers") from e
    recorded = settings.get("config")
    if recorded is not None:
        own = dict(recorded)
        return AutoConfig.for_model(own.pop("model_type"), **own)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as e:
        raise BackboneError(f"'{name}' is neither a folder with a config.json nor a model that can be fetched") from e


def _network(name: str, own: Any, weights: bool) -> nn.Module:
    from transformers import AutoModel
    from transformers.utils import logging

    # Eager attention is plain matrix products: what ONNX is made of.
    if not weights:
        network: nn.Module = AutoModel.from_config(own, attn_implementation="eager")
        return network
    logging.disable_progress_bar()
    told = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        # Parts that the file does not have, as a pooler that no feature is made from, are random: always the same.
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(0)
            network = AutoModel.from_pretrained(name, config=own, attn_implementation="eager")
    except (OSError, ValueError, SafetensorError) as e:
        raise BackboneError(f"The weights of '{name}' cannot be loaded: {e}") from e
    finally:
        logging.set_verbosity(told)
    return network


def _recorded(own: Any) -> dict[str, Any]:
    """The configuration as JSON, without what names the machine."""
    return {k: v for k, v in own.to_diff_dict().items() if k not in ("_name_or_path", "transformers_version")} | {
        "model_type": own.model_type
    }


def text_encoder(name: str, **settings: Any) -> TextEncoder:
    """A text model with its tokenizer.

    Raises:
        BackboneError: it is not there, or has no tokenizer that `tokenizers` can read.
    """
    own = _own(name, settings)
    cfg = TextConfig.model_validate(settings)
    tokenizer, pad = (None, cfg.pad) if not cfg.weights else _tokenizer(name)
    longest = getattr(own, "max_position_embeddings", cfg.max_tokens)
    cfg = cfg.model_copy(
        update={"config": _recorded(own), "pad": pad, "max_tokens": min(cfg.max_tokens, longest // 8 * 8)}
    )
    network = _network(name, own, cfg.weights)
    return TextEncoder(network, cfg, int(own.hidden_size), _blocks(network, own), tokenizer)


def _blocks(network: nn.Module, own: Any) -> tuple[str, ...]:
    """Names of a transformer's blocks, wherever an architecture keeps them: the list of as many as it has layers."""
    count = getattr(own, "num_hidden_layers", 0)
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return tuple(f"{name}.{i}" for i in range(count))
    return tuple(name for name, module in network.named_children() if next(module.parameters(), None) is not None)


def _tokenizer(name: str) -> tuple[bytes, int]:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as e:
        raise BackboneError(f"'{name}' has no tokenizer: {e}") from e
    if not found.is_fast or found.pad_token_id is None:
        raise BackboneError(f"The tokenizer of '{name}' has no form as a tokenizer.json, or no token that fills up.")
    return found.backend_tokenizer.to_str().encode(), int(found.pad_token_id)


def _image_encoder(name: str, **settings: Any) -> ImageEncoder:
    own = _own(name, settings)
    given = {**_image_processing(name, settings), **settings}
    size = own.image_size if isinstance(getattr(own, "image_size", None), int) else 224
    cfg = ImageConfig.model_validate({"size": size, "resize": size, **given})
    cfg = cfg.model_copy(update={"config": _recorded(own)})
    network = _network(name, own, cfg.weights)
    width = own.hidden_sizes[-1] if hasattr(own, "hidden_sizes") else own.hidden_size

    def run(net: nn.Module, x: Tensor) -> Tensor:
        """Maps stay maps; of a sequence the first token stands for the image, where there is one."""
        hidden: Tensor = net(pixel_values=x).last_hidden_state
        return hidden if hidden.ndim == 4 or own.model_type == "swin" else hidden[:, 0]

    return ImageEncoder(network, cfg, int(width), _blocks(network, own), run=run)


def _image_processing(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Scaling and interpolation as the model's own processor has them, where the folder or the hub has one."""
    if settings.get("config") is not None:
        return {}
    from transformers.image_processing_base import ImageProcessingMixin

    told = _processing(name, ImageProcessingMixin.get_image_processor_dict)
    if not told:
        return {}
    found: dict[str, Any] = {"fit": "crop" if told.get("do_center_crop") else "stretch"}
    if told.get("image_mean") and told.get("image_std"):
        found |= {"mean": tuple(told["image_mean"]), "std": tuple(told["image_std"])}
    if told.get("resample") == 3:
        found["interpolation"] = "bicubic"
    return found


def _audio_encoder(name: str, **settings: Any) -> AudioEncoder:
    own, told = _own(name, settings), _sound_processing(name, settings)
    usual = {"rate": told.get("sampling_rate", 16_000), "normalise": told.get("do_normalize", True)}
    cfg = AudioConfig.model_validate({**usual, **settings, "config": _recorded(own)})
    network = _network(name, own, cfg.weights)
    return AudioEncoder(network, cfg, int(own.hidden_size), _blocks(network, own))


def _ast_encoder(name: str, **settings: Any) -> AstEncoder:
    own, told = _own(name, settings), _sound_processing(name, settings)
    usual = {key: told[key] for key in ("mean", "std") if key in told}
    if not told.get("do_normalize", True):
        usual = {"mean": 0.0, "std": 0.5}  # which is divided by twice
    cfg = AstConfig.model_validate({"seconds": ast_seconds(own), **usual, **settings, "config": _recorded(own)})
    network = _network(name, own, cfg.weights)
    return AstEncoder(network, cfg, own, _blocks(network, own))


def _whisper_encoder(name: str, **settings: Any) -> WhisperEncoder:
    """Whisper's encoder; its decoder, which writes down what was said, is left out."""
    own = _own(name, settings)
    cfg = AudioConfig.model_validate({"seconds": whisper_seconds(own), **settings, "config": _recorded(own)})
    network: Any = _network(name, own, cfg.weights)
    encoder: nn.Module = network.get_encoder()
    return WhisperEncoder(encoder, cfg, own, _blocks(encoder, own))


def _sound_processing(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What the model's own feature extractor is set to, where the folder or the hub has one."""
    if settings.get("config") is not None:
        return {}
    from transformers.feature_extraction_utils import FeatureExtractionMixin

    return _processing(name, FeatureExtractionMixin.get_feature_extractor_dict)


def _processing(name: str, read: Callable[[str], tuple[dict[str, Any], Any]]) -> dict[str, Any]:
    """How a model's input is made, as its folder or the hub says; empty where nothing is said.

    Raises:
        BackboneError: something is said that cannot be read: the usual preprocessing would be wrong without a word.
    """
    try:
        told, _ = read(name)
    except OSError as e:
        file = Path(name) / "preprocessor_config.json"
        if file.is_file():
            raise BackboneError(f"{file} is not JSON; copy it anew, or remove it to use what is usual") from e
        return {}
    return dict(told)
