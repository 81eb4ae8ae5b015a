"""FP32 to FP16: a bundle's variant in half precision, through a gate on features and on what heads decide."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.transformers import float16

from exporters import bundle as bundles
from exporters.bundle import Bundle, InputSpec, Manifest
from exporters.card import model_card
from exporters.gate import (
    LARGEST_ERROR,
    Agreement,
    Gate,
    PrecisionError,
    Windows,
    bridge_files,
    outputs_of,
    variant_fields,
)
from exporters.session import Forward, opened
from exporters.worth import Features
from models.data.parts import pack, without

AROUND = ("split/", "part/", "join/")
"""What values around the members of a fused graph are called by (`exporters.fused_graph`)."""
COSTLY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
FEWEST = 256


def convert(model: Path, models: Path, *, windows: Windows | None = None, seed: int = 0) -> tuple[Path, Agreement]:
    """Write the FP16 variant of a bundle as the next version of its name under `models`.

    First every operator is converted; where that is not close enough, convolutions and matrix products only. An output
    keeps its feature space when heads say the same in both, and gets one of its own when they do not. Of several
    outputs, and of targets, none may change by more than it may lose.

    Args:
        model: the FP32 bundle.
        models: folder of bundles to write to.
        windows: recorded windows `(n, ...)` to compare on; synthetic ones without.
        seed: of the synthetic windows and people.

    Raises:
        PrecisionError: the bundle is not FP32, the windows are too few, or no variant's features are close; or an
            output, which the message names, changes too much.
    """
    original = bundles.load(bundles.resolve(model))
    manifest = original.manifest
    if manifest.precision != "fp32":
        raise PrecisionError(f"{original.path} is {manifest.precision} already; only fp32 bundles are converted")
    rng = np.random.default_rng(seed)
    x = synthetic_windows(manifest.input, 4 * FEWEST, rng) if windows is None else windows
    if len(x) < FEWEST:
        raise PrecisionError(f"the precision gate needs {FEWEST} windows; there are {len(x)}")
    x = with_each_missing(manifest.input, x)
    outputs = outputs_of(manifest, original.populations, rng)
    gate = Gate(outputs, {}, x, lambda rows: features(original.backbone, manifest.input, rows))
    told: list[str] = []
    for what, graph in halves(original.backbone):
        found = gate.found([features(graph, manifest.input, x)])
        agreement = found.agreement
        # One output of labels gets a feature space of its own instead: nobody's head is applied in it unseen.
        fault = gate.fault(found) if agreement.outputs else ""
        if agreement.close and not fault:
            source = "synthetic" if windows is None else "recorded"
            return written(original, models, graph, agreement, f"{source} windows, {what}", "fp16"), agreement
        told.append(
            f"{what}: " + (fault if agreement.close else f"error {agreement.max_error:.2g} standard deviations")
        )
    raise PrecisionError(
        f"{manifest.name} cannot be served in fp16, an error of {LARGEST_ERROR} standard deviations is allowed: "
        f"{'; '.join(told)}"
    )


def with_each_missing(spec: InputSpec, x: Windows) -> Windows:
    """The windows, and of a fused model's the same without each of their parts: a variant must do for all of them."""
    return np.concatenate([x, *(without(spec, x, m) for m in range(len(spec.parts)))]) if spec.parts else x


def synthetic_windows(spec: InputSpec, n: int, rng: np.random.Generator) -> Windows:
    """Windows of the input's shape: noise of 0.1 to 100 units; every value of an integer type.

    Raises:
        PrecisionError: token ids, of which most would be of no text.
    """
    if spec.parts:
        return pack(spec, {part.name: synthetic_windows(part, n, rng) for part in spec.parts})
    if spec.media is not None and spec.media.kind == "text":
        raise PrecisionError("texts cannot be made up: give token ids of real ones as windows")
    shape = (n, *spec.sized(None if spec.padding is None else spec.padding.maximum))
    if spec.dtype.kind in "iu":
        info = np.iinfo(spec.dtype)
        return rng.integers(info.min, info.max, shape, spec.dtype, endpoint=True)
    scale = 10 ** rng.uniform(-1, 2, (n, *[1] * (len(shape) - 1)))
    return np.asarray(scale * rng.standard_normal(shape)).astype(spec.dtype)


def features(graph: bytes, spec: InputSpec, x: Windows) -> Features:
    """Run a graph on the CPU, 64 windows at a time."""
    return in_batches(opened(graph, spec), x)


def in_batches(forward: Forward, x: Windows) -> Features:
    """Features `(n, d)` of windows `(n, …)`, 64 at a time."""
    return np.concatenate([forward(x[at : at + 64]) for at in range(0, len(x), 64)])


def halves(graph: bytes) -> Iterator[tuple[str, bytes]]:
    """FP16 graphs of an FP32 one and what is converted in each, the most first."""
    for how, halved in (("every operator", _half), ("convolutions and matrix products", _costly_half)):
        made = halved(graph)
        onnx.checker.check_model(made, full_check=True)
        yield f"{how} converted", made


def _half(graph: bytes) -> bytes:
    """Convert every operator of a graph; its inputs and outputs stay as they are."""
    model = onnx.load_from_string(graph)
    kept = [node.name for node in joining(model)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constants that FP16 cuts off: the gate sees what comes of it
        half = float16.convert_float_to_float16(model, keep_io_types=True, node_block_list=kept or None)
    _sort(half.graph)
    return bytes(half.SerializeToString())


def joining(model: onnx.ModelProto) -> list[NodeProto]:
    """Nodes of a fused graph that are around its members: they are little work, and rows hold token ids and pixels.

    Nodes of such a graph that have no name are given one.
    """
    if "join/present" not in {name for node in model.graph.node for name in node.output}:
        return []
    for at, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{at}"
    outputs = {value.name for value in model.graph.output}
    return [
        node for node in model.graph.node if node.output[0].startswith(AROUND) or not outputs.isdisjoint(node.output)
    ]


def _sort(graph: onnx.GraphProto) -> None:
    """Put each node behind those that it reads: the converter appends its casts, which ONNX forbids."""
    made = {value.name for value in (*graph.input, *graph.initializer)} | {""}
    waiting, order = list(graph.node), list[NodeProto]()
    while waiting:
        ready = [node for node in waiting if made.issuperset(node.input)]
        if not ready:
            raise PrecisionError("the converted graph is not acyclic")
        order += ready
        made.update(name for node in ready for name in node.output)
        waiting = [node for node in waiting if not made.issuperset(node.output)]
    del graph.node[:]
    graph.node.extend(order)


def _costly_half(graph: bytes) -> bytes:
    """Convert convolutions and matrix products with their weights; all that lies between them stays in FP32."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))
    inner = model.graph
    weights = {w.name: w for w in inner.initializer if w.data_type == TensorProto.FLOAT}
    typed = [*inner.input, *inner.value_info, *inner.output]
    floats = {v.name for v in typed if v.type.tensor_type.elem_type == TensorProto.FLOAT} | set(weights)
    halves: dict[str, TensorProto] = {}
    nodes: list[NodeProto] = []
    around = {node.name for node in joining(model)}
    for at, node in enumerate(inner.node):
        if node.name in around or node.op_type not in COSTLY or not all(name in floats for name in node.input if name):
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if name in weights:
                with np.errstate(over="ignore"):
                    value = numpy_helper.to_array(weights[name]).astype(np.float16)
                halves[name] = numpy_helper.from_array(value, f"{name}_fp16")
                node.input[i] = f"{name}_fp16"
            elif name:
                nodes.append(helper.make_node("Cast", [name], [f"{name}_fp16_{at}_{i}"], to=TensorProto.FLOAT16))
                node.input[i] = f"{name}_fp16_{at}_{i}"
        output, node.output[0] = node.output[0], f"{node.output[0]}_fp16"
        nodes += [node, helper.make_node("Cast", [node.output[0]], [output], to=TensorProto.FLOAT)]
    used = {name for node in nodes for name in node.input}
    kept = [w for w in inner.initializer if w.name in used]
    for field, items in ((inner.node, nodes), (inner.initializer, [*kept, *halves.values()])):
        copied = list(items)
        del field[:]
        field.extend(copied)
    del inner.value_info[:]
    return bytes(model.SerializeToString())


def written(
    original: Bundle,
    models: Path,
    graph: bytes,
    found: Agreement,
    how: str,
    precision: Literal["fp16", "int8"],
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write a variant as the next version, with what was measured and how; in a feature space of its own if it must.

    Raises:
        BundleError: the version exists already.
    """
    old = original.manifest
    record = {
        "from": {"version": old.version, "digest": original.digest, "feature_space": old.feature_space},
        "max_error": found.max_error,
        "min_cosine": found.min_cosine,
        "decisions_agree": found.decisions,
        "widest_flip": found.widest_flip,
        "windows": found.windows,
        "heads": found.heads,
        "how": how,
        "feature_space_kept": found.same,
        **({"outputs": _by_output(found)} if found.outputs else {}),
        **more,
    }
    manifest: Manifest = old.model_copy(
        update={
            "version": max(bundles.next_version(models, old.name), old.version + 1),
            "precision": precision,
            **variant_fields(old, graph, found),
            "provenance": {**old.provenance, "precision": record},
            "evaluation": {key: value for key, value in old.evaluation.items() if key != "variants"},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": {},
        }
    )
    left = bridge_files(old) - bridge_files(manifest)
    files = {name: (original.path / name).read_bytes() for name in old.files if name not in left}
    files |= {bundles.BACKBONE: graph, bundles.CARD: model_card(manifest).encode()}
    return bundles.write(models, manifest, files)


def _by_output(found: Agreement) -> dict[str, Any]:
    """What is recorded of each output: how what its heads say compares."""
    return {
        name: {"feature_space_kept": found.keeps(name), **{k: v for k, v in asdict(said).items() if v is not None}}
        for name, said in found.outputs.items()
    }
