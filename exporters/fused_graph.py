"""The ONNX graph of a fused bundle: its members' graphs between what takes rows apart and what joins features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx.version_converter
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from exporters.export import OPSET, ExportError
from exporters.input_spec import InputSpec
from models.backbones.signal import EVIDENCE_FLOOR
from models.data.parts import places
from models.training.joining import Join

__all__ = ["fused_graph"]

IR_VERSION = 10
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
ELEMENTS = {
    "FP32": FLOAT,
    "FP16": TensorProto.FLOAT16,
    "UINT8": TensorProto.UINT8,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT64": INT64,
}


def fused_graph(graphs: Mapping[str, bytes], join: Join, spec: InputSpec) -> bytes:
    """The graph of a fused bundle, of its members' by name: packed rows `(n, size)` to features `(n, p + K)`.

    Raises:
        ExportError: ONNX refuses it.
    """
    try:
        joined, ends, elements = _split(spec), [("present", "join/present")], []
        for name, graph in graphs.items():
            front = _renewed(onnx.load_from_string(graph))
            prefix = f"{name}/"
            taken, given = prefix + front.graph.input[0].name, prefix + front.graph.output[0].name
            joined = onnx.compose.merge_models(
                joined, onnx.compose.add_prefix(front, prefix), io_map=[(f"part/{name}", taken)]
            )
            ends.append((given, f"join/member/{name}"))
            elements.append(front.graph.output[0].type.tensor_type.elem_type)
        joined = onnx.compose.merge_models(
            joined, _join(list(graphs), join, elements), io_map=ends, outputs=["features"]
        )
        domains = {o.domain: o.version for o in joined.opset_import}  # composing names them anew for every graph
        del joined.opset_import[:]
        joined.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in domains.items())
        onnx.checker.check_model(joined, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as e:
        raise ExportError(f"the members' graphs cannot be joined: {e}") from e
    return bytes(joined.SerializeToString())


def _renewed(model: ModelProto) -> ModelProto:
    """The member's graph in the opset and format that all are joined in."""
    if any(o.domain == "" and o.version != OPSET for o in model.opset_import):
        model = onnx.version_converter.convert_version(model, OPSET)
    model.ir_version = IR_VERSION
    return model


class _Graph:
    """Nodes and constants as they are added; `add` returns the name of what it computes."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, value: NDArray[Any]) -> str:
        """Add a constant."""
        name = f"{self.prefix}c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def number(self, value: NDArray[Any] | float) -> str:
        """Add a constant of float32."""
        return self.constant(np.asarray(value, np.float32))

    def add(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node of one output."""
        name = name or f"{self.prefix}v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def columns(self, value: str, begin: int, end: int, name: str | None = None) -> str:
        """Columns of a matrix."""
        bounds = [self.constant(np.array([v], np.int64)) for v in (begin, end, 1)]
        return self.add("Slice", value, *bounds, name=name)

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> ModelProto:
        """The checked model."""
        graph = helper.make_graph(self.nodes, "fused", list(inputs), list(outputs), self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _value(name: str, element: int, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, element, ["batch", *shape])


def _split(spec: InputSpec) -> ModelProto:
    """From packed rows to the parts in their own form, and which are present."""
    g = _Graph("split/")
    count = len(spec.parts)
    g.columns(spec.name, 0, count, name="present")
    outputs = [_value("present", FLOAT, count)]
    for part, place in places(spec):
        shape = part.sized(None if part.padding is None else part.padding.maximum)
        flat = g.columns(spec.name, place.start, place.stop)
        shaped = g.add("Reshape", flat, g.constant(np.array([-1, *shape], np.int64)))
        element = ELEMENTS[part.datatype]
        g.add("Cast", shaped, to=element, name=f"part/{part.name}")
        outputs.append(_value(f"part/{part.name}", element, *shape))
    return g.model([_value(spec.name, FLOAT, spec.shape[1])], outputs)


def _join(names: Sequence[str], join: Join, elements: Sequence[int]) -> ModelProto:
    """From members' features and which are present to the joint features: `Join.features`, as a graph.

    `elements`: types of the members' features, which a variant in half precision gives as such.
    """
    g = _Graph("join/")
    inputs = [_value("join/present", FLOAT, len(names))]
    there = g.add("Greater", "join/present", g.number(0.5))
    flags = g.add("Cast", there, to=FLOAT)
    zs, told = [], []
    for m, (name, size, head) in enumerate(zip(names, join.sizes, join.heads, strict=True)):
        taken = f"join/member/{name}"
        inputs.append(_value(taken, elements[m], head.weight.shape[1]))
        # Not a product: what a backbone makes of nothing may not be finite.
        f = g.add("Where", g.columns(there, m, m + 1), g.add("Cast", taken, to=FLOAT), g.number(0.0))
        zs.append(g.columns(f, 0, size))
        posterior = _log_posterior(g, g.add("Gemm", f, g.number(head.weight.T), g.number(head.bias)))
        told.append(g.add("Where", g.columns(there, m, m + 1), posterior, g.number(0.0)))
    z = g.add("Concat", *zs, axis=1)
    widths = np.repeat(np.eye(len(names)), join.sizes, 1)
    missing = g.add("Sub", g.number(1.0), g.add("MatMul", flags, g.number(widths)))
    guessed = g.add("Mul", g.add("MatMul", z, g.number(join.impute)), missing)
    full = g.add("Sub", g.add("Add", z, guessed), g.number(join.centre))
    personal = g.add("MatMul", full, g.number(join.projection))
    if join.shares is not None:
        place = g.add("MatMul", flags, g.number(2.0 ** np.arange(len(names))[:, None]))
        row = g.add("Cast", g.add("Round", g.add("Squeeze", place, g.constant(np.array([1], np.int64)))), to=INT64)
        weights = g.add("Gather", g.number(join.shares), row, axis=0)
        parts = [g.add("Mul", g.columns(weights, m, m + 1), found) for m, found in enumerate(told)]
        logits = g.add("Sum", *parts)
    else:
        assert join.probe is not None
        seen = g.add("Concat", z, *told, flags, axis=1)
        logits = g.add("Gemm", seen, g.number(join.probe.weight.T), g.number(join.probe.bias))
    g.add("Concat", personal, _log_posterior(g, logits), axis=1, name="features")
    return g.model(inputs, [_value("features", FLOAT, join.projection.shape[1] + join.classes)])


def _log_posterior(g: _Graph, logits: str) -> str:
    return g.add("Max", g.add("LogSoftmax", logits, axis=1), g.number(EVIDENCE_FLOOR))
