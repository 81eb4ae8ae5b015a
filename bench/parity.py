"""How far the ONNX graph of each family of encoders is from torch: a table, at the sizes that the families have.

    python -m bench.parity            # all that is installed; --only timm:,hf: for some of them

Weights are real where a package has them, else random, for nothing is fetched from a hub. Inputs are random pictures,
token ids, and sounds of which half the rows end in silence. Features are compared as the encoder gives them.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exporters.export import LARGEST_BATCH, onnx_forward, to_onnx, torch_forward
from exporters.input_spec import InputSpec
from exporters.media import graph_of
from models.backbones import BackboneError, EncoderModule, create_encoder
from models.backbones.probe import ProbeConfig, ProbedEncoder
from tests import torchvision_ops

BATCHES = (1, 2, 5)
TOKENS = 64
RANDOM: dict[str, Any] = {"weights": False}
WHISPER_TINY = {
    "model_type": "whisper", "d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536,
    "decoder_layers": 1, "decoder_attention_heads": 6, "decoder_ffn_dim": 1536,
}  # fmt: skip
REAL = ("package:efficientnet-lite0", "package:minilm-l6", "package:resemblyzer")
ARCHITECTURES = (
    *(f"torchvision:{n}" for n in ("alexnet", "vgg16", "vgg19", "resnet50", "inception_v3", "efficientnet_b0")),
    *(f"timm:{n}" for n in ("resnet50", "efficientnet_lite0", "legacy_xception")),
)
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    **{n: {"model_type": n} for n in ("bert", "vit", "wav2vec2", "hubert", "audio-spectrogram-transformer")},
    "whisper": WHISPER_TINY,
}


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Give names and settings of what is compared, except the ONNX file."""
    yield from ((name, {}) for name in REAL)
    yield from ((name, RANDOM) for name in ARCHITECTURES)
    yield from ((f"hf:{kind}", {"config": config, **RANDOM}) for kind, config in CONFIGURATIONS.items())


def inputs(spec: InputSpec, rng: np.random.Generator, n: int = 8) -> NDArray[Any]:
    """Random rows `(n, …)` of an encoder's input."""
    if spec.media is None:
        raise SystemExit("the encoder says nothing of media")
    if spec.media.kind == "image":
        return rng.integers(0, 256, (n, *spec.window_shape), np.uint8)
    if spec.media.kind == "text":
        rows = rng.integers(1000, 20_000, (n, TOKENS))
        rows[::2, TOKENS // 2 :] = 0
        return rows
    sound = (0.1 * rng.standard_normal((n, *spec.window_shape))).astype(np.float32)
    sound[::2, spec.window_shape[0] // 2 :] = 0
    return sound


def exported(encoder: EncoderModule, x: NDArray[Any]) -> bytes:
    """The graph of an encoder; batch and, of texts, length are dynamic."""
    dynamic: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}
    if encoder.input.padding is not None:
        dynamic[1] = torch.export.Dim("length", min=2, max=encoder.input.padding.maximum)
    return to_onnx(encoder, torch.from_numpy(x[:3]), dynamic)


def onnx_file(folder: Path) -> ProbedEncoder:
    """EfficientNet-Lite0's graph as an encoder that is ONNX already, with a probe of random weights behind it."""
    lite0 = create_encoder("package:efficientnet-lite0")
    file = folder / "lite0.onnx"
    file.write_bytes(exported(lite0, inputs(lite0.input, np.random.default_rng(0))))
    encoder = create_encoder(f"onnx:{file}", {"input": lite0.input})
    width = encoder.num_features
    cfg = ProbeConfig(encoder=f"onnx:{file}", width=width, personal=64, classes=8)
    probed = ProbedEncoder(encoder, cfg)
    for buffer in (probed.projection, probed.weight):
        buffer.copy_(torch.randn_like(buffer))
    return probed.eval()


def row(name: str, settings: dict[str, Any], folder: Path) -> str:
    """One row of the table: sizes, the largest error and what it compares with."""
    rng = np.random.default_rng(0)
    module = onnx_file(folder) if name.startswith("onnx:") else create_encoder(name, settings)
    x = inputs(module.input, rng)
    graph = graph_of(module, module.input, x) if isinstance(module, ProbedEncoder) else exported(module, x)
    ours, theirs = torch_forward(module), onnx_forward(graph)
    worst = largest = 0.0
    for size in BATCHES:
        expected = ours(x[:size])
        worst = max(worst, float(np.abs(theirs(x[:size]) - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    weights = "random" if settings.get("weights") is False else "real"
    shape = " × ".join("n" if side == -1 else f"{side:,}" for side in module.input.shape)
    found = f"{worst:.1e} | {largest:.2g} | {worst / largest:.1e}"
    return f"| `{name}` | {weights} | {shape} | {module.num_features:,} | {found} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="beginnings of names, separated by commas")
    only = tuple(parser.parse_args().only.split(","))
    warnings.simplefilter("ignore")
    torchvision_ops.prepare()
    torch.manual_seed(0)
    print("| encoder | weights | input | features | largest error | largest feature | share |\n|--|--|--|--|--|--|--|")
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in [*cases(), ("onnx:FILE", {})]:
            if not name.startswith(only):
                continue
            try:
                print(row(name, settings, Path(folder)), flush=True)
            except BackboneError as e:
                print(f"| `{name}` | not here: {e} | | | | | |", flush=True)


if __name__ == "__main__":
    main()
