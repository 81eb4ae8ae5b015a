"""Which layers of a graph go into 8 bits, and the graph with them; what is lost by it is for others to judge."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QDQQuantizer, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.shape_inference import quant_pre_process

from exporters.bundle import InputSpec
from exporters.precision import features, joining

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
JOINED = frozenset({"Add", "Clip", "MaxPool", "Relu"})
"""Operators without weights that are computed in 8 bits between layers that are.

An activation behind a convolution must be: apart from it, the convolution's output would get the range that it has
before the activation, of which ReLU6 keeps a few steps in 256.
"""
RANGE_BATCH = 16
SENSITIVITY_WINDOWS = 32


class Quantiser:
    """Makes 8-bit graphs of one FP32 graph: ranges of activations are measured once, layers chosen each time.

    Weights are symmetric by channel, activations asymmetric by tensor (U8S8, the form that ONNX Runtime has the fastest
    kernels for). Token models, and members of a fused one that are, are quantised dynamically: ranges are those of each
    batch. What joins members stays as it is.

    Source: Jacob et al. 2018 (integer arithmetic); ONNX Runtime's quantisation, QDQ format.
    """

    def __init__(self, graph: bytes, spec: InputSpec, x: NDArray[Any]) -> None:
        """Prepare `graph`; `x (n, …)` are the real inputs that ranges are taken from."""
        self._spec, self._x = spec, x
        self._ranges: Any = None
        self.model = _prepared(graph)
        self._around = {node.name for node in joining(self.model)}
        texts = tuple(f"{part.name}/" for part in spec.parts if part.datatype == "INT64")
        self._of_texts = {node.name for node in self.model.graph.node if texts and node.output[0].startswith(texts)}

    @property
    def dynamic(self) -> bool:
        """Whether ranges are measured when the graph runs."""
        return self._spec.datatype == "INT64"

    def layers(self) -> list[str]:
        """Names of the layers that are quantised at first, in order; empty where none has constant weights.

        The first ones see raw input in few channels, and what the last ones give are features: both are cheap, and 8
        bits cost the most there (a first layer of three channels is slower in 8 bits than in 32, too). A graph without
        layers between them is quantised whole. Dynamic ranges suit a first layer as any.
        """
        weighted, first = _weighted(self.model)
        weighted = [name for name in weighted if name not in self._around]
        kept = _last(self.model, weighted) | (set() if self.dynamic else first - self._of_texts)
        return [name for name in weighted if name not in kept] or weighted

    def graph(self, layers: Collection[str]) -> bytes:
        """The checked graph with these layers in 8 bits, and what lies between them."""
        with tempfile.TemporaryDirectory() as folder, quiet():
            made = Path(folder) / "int8.onnx"
            model = onnx.ModelProto()
            model.CopyFrom(self.model)
            texts = set(layers) if self.dynamic else set(layers) & self._of_texts
            if texts:
                quantize_dynamic(
                    model, made, nodes_to_quantize=sorted(texts), weight_type=QuantType.QInt8, per_channel=True
                )
                model = onnx.load(made)
            if rest := set(layers) - texts:
                chosen = with_joined(model, rest)
                quantizer = QDQQuantizer(
                    model,
                    per_channel=True,
                    reduce_range=False,
                    weight_qType=QuantType.QInt8,
                    activation_qType=QuantType.QUInt8,
                    tensors_range=self._measured(),
                    nodes_to_quantize=sorted(chosen),
                    nodes_to_exclude=[],
                    op_types_to_quantize=sorted(WEIGHTED | JOINED),
                    extra_options={},
                )
                quantizer.quantize_model()
                quantizer.model.save_model_to_file(str(made))
            model = onnx.load(made)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())

    def by_error(self, layers: Collection[str]) -> list[str]:
        """The layers by the squared error of the features when each alone is quantised, the worst first."""
        some = self._x[:SENSITIVITY_WINDOWS]
        exact = features(self.model.SerializeToString(), self._spec, some)
        errors = {
            name: float(np.square(features(self.graph([name]), self._spec, some) - exact).mean()) for name in layers
        }
        return sorted(errors, key=lambda name: -np.nan_to_num(errors[name], nan=np.inf))

    def _measured(self) -> Any:
        if self._ranges is None:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "fp32.onnx"
                onnx.save(self.model, file)
                calibrator = create_calibrator(
                    file, sorted(WEIGHTED | JOINED), augmented_model_path=str(Path(folder) / "augmented.onnx")
                )
                calibrator.collect_data(Batches(self.model, self._spec, self._x))
                self._ranges = calibrator.compute_data()
        return self._ranges


def _prepared(graph: bytes) -> onnx.ModelProto:
    """Fold constants and batch norms, infer shapes, and give every node a name."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        given, made = Path(folder) / "fp32.onnx", Path(folder) / "prepared.onnx"
        given.write_bytes(graph)
        quant_pre_process(given, made, skip_symbolic_shape=True)
        model = onnx.load(made)
    for at, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{at}"
    return model


def _weighted(model: onnx.ModelProto) -> tuple[list[str], set[str]]:
    """Names of the nodes whose weights are constants, in order, and of those among them that no other is before."""
    constants = {tensor.name for tensor in model.graph.initializer}
    behind = set[str]()
    names, first = list[str](), set[str]()
    for node in model.graph.node:
        after = not behind.isdisjoint(node.input)
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in constants:
            names.append(node.name)
            if not after:
                first.add(node.name)
            after = True
        if after:
            behind.update(node.output)
    return names, first


def _last(model: onnx.ModelProto, weighted: Collection[str]) -> set[str]:
    """Those from which a way leads to the output past none of the others."""
    wanted = {value.name for value in model.graph.output}
    found = set[str]()
    for node in reversed(model.graph.node):
        if wanted.isdisjoint(node.output):
            continue
        if node.name in weighted:
            found.add(node.name)
        else:
            wanted.update(node.input)
    return found


def with_joined(model: onnx.ModelProto, layers: Collection[str]) -> set[str]:
    """These layers, and the nodes of `JOINED` whose data all come from them or from one another."""
    constants = {tensor.name for tensor in model.graph.initializer} | {""}
    chosen, outputs = set(layers), set[str]()
    for node in model.graph.node:
        data = node.input if node.op_type == "Add" else node.input[:1]
        if node.op_type in JOINED and all(value in outputs for value in data) and not constants & set(data):
            chosen.add(node.name)
        if node.name in chosen:
            outputs.update(node.output)
    return chosen


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """Feeds windows to the calibration of activation ranges."""

    def __init__(self, model: onnx.ModelProto, spec: InputSpec, x: NDArray[Any]) -> None:
        lengths = None if spec.padding is None else spec.padding.lengths
        self._name = next(value.name for value in model.graph.input if value.name != lengths)
        self._lengths, self._axis = lengths, None if spec.padding is None else spec.padding.axis
        self._batches: Iterator[NDArray[Any]] = iter([x[at : at + RANGE_BATCH] for at in range(0, len(x), RANGE_BATCH)])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next feeds, None at the end."""
        x = next(self._batches, None)
        if x is None:
            return None
        feeds = {self._name: x}
        if self._lengths is not None and self._axis is not None:
            feeds[self._lengths] = np.full(len(x), x.shape[self._axis], np.int64)
        return feeds


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back ONNX Runtime's advice, which is to do what is done here."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
