"""What 8 bits cost a bundle of images, by setting: features, accuracy and time beside FP32's.

    python -m bench.quantisation bundles/stamps/1 --ranges train/ --judges held-out/

One setting at a time differs from what `headway bundle convert --precision int8` does. One thread; the sessions take
turns, and times are medians, as shares of FP32's.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

from exporters import bundle as bundles
from exporters.bundle import InputSpec
from exporters.latency import measure
from exporters.precision import in_batches
from exporters.quantiser import Batches, Quantiser, quiet, with_joined
from exporters.session import opened
from exporters.worth import accuracy_of
from service.commands.judging import collected

RANGES = 64
SETTINGS: dict[str, Mapping[str, Any]] = {
    "as converted": {},
    "16 inputs for ranges": {"ranges": 16},
    "all inputs for ranges": {"ranges": None},
    "first and last layers too": {"layers": "all"},
    "activations apart from their layers": {"joined": False},
    "weights by tensor": {"per_channel": False},
    "7 bits of weights": {"reduce_range": True},
    "signed activations": {"activation_type": QuantType.QInt8},
    "ranges by entropy": {"calibrate_method": CalibrationMethod.Entropy},
}


def made(quantiser: Quantiser, spec: InputSpec, x: NDArray[Any], setting: Mapping[str, Any]) -> bytes:
    """The graph in 8 bits by a setting."""
    model = quantiser.model
    chosen = dict(setting)
    layers = quantiser.layers()
    if chosen.pop("layers", "") == "all":
        layers = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    names = with_joined(model, layers) if chosen.pop("joined", True) else set(layers)
    ranges = x[: chosen.pop("ranges", RANGES)]
    options = {"per_channel": True, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, **chosen}
    with tempfile.TemporaryDirectory() as folder, quiet():
        file = Path(folder) / "int8.onnx"
        copied = type(model)()
        copied.CopyFrom(model)
        reader = Batches(model, spec, ranges)
        quantize_static(copied, file, reader, QuantFormat.QDQ, nodes_to_quantize=sorted(names), **options)
        return file.read_bytes()


def main() -> None:
    """Print a line a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--ranges", type=Path, required=True, help="files that ranges of activations are taken from")
    parser.add_argument("--judges", type=Path, required=True, help="files that accuracy is judged on")
    parser.add_argument("--batch", type=int, default=32)
    chosen = parser.parse_args()
    bundle = bundles.load(bundles.resolve(chosen.bundle))
    spec, p = bundle.manifest.input, bundle.prior.personal
    ranges, judges = (collected(bundle.manifest, bundle.file, path) for path in (chosen.ranges, chosen.judges))
    x = ranges.x[np.random.default_rng(0).permutation(len(ranges.y))]
    quantiser = Quantiser(bundle.backbone, spec, x)
    graphs = {"fp32": bundle.backbone}
    graphs |= {name: made(quantiser, spec, x, setting) for name, setting in SETTINGS.items()}
    forwards = {name: opened(graph, spec, threads=1) for name, graph in graphs.items()}
    features = {name: in_batches(forward, judges.x) for name, forward in forwards.items()}
    times = measure(forwards, judges.x, chosen.batch)
    exact = features["fp32"]
    print(f"| | error of features | lowest cosine | shared / personal heads | batch 1 | {chosen.batch} |")
    print("|--|--|--|--|--|--|")
    for name, z in features.items():
        error = np.square(z - exact)[:, :p].sum() / np.square(exact - exact.mean(0))[:, :p].sum()
        cosine = ((z * exact).sum(1) / np.linalg.norm(z, axis=1) / np.linalg.norm(exact, axis=1)).min()
        one, many = (
            getattr(times[name], which).median / getattr(times["fp32"], which).median for which in ("single", "batch")
        )
        right = accuracy_of(z, judges, bundle.prior)
        print(f"| {name} | {error:.1%} | {cosine:.3f} | {right} | {one:.2f} | {many:.2f} |", flush=True)


if __name__ == "__main__":
    main()
