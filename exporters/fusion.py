"""Several bundles become one: their graphs behind one packed input, and what joins their features behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx.version_converter
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from exporters import bundle as bundles
from exporters.bundle import Bundle, InputSpec, Manifest
from exporters.card import model_card
from exporters.export import OPSET, ExportError, onnx_forward
from exporters.media_spec import TextMedia
from exporters.parity import BATCHES, check_parity
from models.backbones.signal import EVIDENCE_FLOOR
from models.data.parts import fused_input, places, present, unpack
from models.heads import prior as priors
from models.heads.head import Head
from models.heads.prior import Prior
from models.training.joining import Join

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


@dataclass(frozen=True, eq=False)
class Member:
    """A bundle that is one part of a fused one, called `name` there."""

    name: str
    bundle: Bundle

    def __post_init__(self) -> None:
        manifest = self.bundle.manifest
        if manifest.targets or manifest.user_labels:
            what = "a regression" if manifest.targets else "open to labels of users' own"
            raise ExportError(f"member {self.name!r} is {what}; bundles with a closed set of labels can be fused")
        if manifest.input.parts:
            raise ExportError(f"member {self.name!r} is fused itself; name its members instead")
        if manifest.input.padding is not None and manifest.input.padding.lengths is not None:
            raise ExportError(f"member {self.name!r} takes lengths as a second input, which cannot be fused")

    @property
    def part(self) -> InputSpec:
        """The member's input as a part of the fused one."""
        spec = self.bundle.manifest.input
        media = spec.media
        if isinstance(media, TextMedia):
            media = media.model_copy(update={"tokenizer": f"{self.name}.{media.tokenizer}"})
        return spec.model_copy(update={"name": self.name, "media": media})

    @property
    def files(self) -> dict[str, bytes]:
        """What reading its media needs, as the fused bundle names it."""
        media = self.bundle.manifest.input.media
        if not isinstance(media, TextMedia):
            return {}
        return {f"{self.name}.{media.tokenizer}": self.bundle.file(media.tokenizer)}

    def head(self, labels: Sequence[str]) -> Head:
        """The generic head with its rows in the order of these labels.

        Raises:
            ExportError: the member has other labels.
        """
        own = self.bundle.manifest.labels
        if set(own) != set(labels) or len(own) != len(labels):
            raise ExportError(
                f"members must have the same labels: {self.name!r} has {', '.join(own)}, another {', '.join(labels)}"
            )
        order = [own.index(label) for label in labels]
        prior = self.bundle.prior
        return Head(prior.generic_weight[order], prior.generic_bias[order])


def write_fused(
    members: Sequence[Member],
    join: Join,
    prior: Prior,
    rows: NDArray[np.float32],
    models: Path,
    *,
    name: str,
    provenance: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    description: str = "",
) -> Path:
    """Write the fused bundle as the next version of its name, through the parity gate; returns its folder.

    `rows`: real windows, packed, 64 or more, for the gate: members' graphs, run one by one, and the join tell what the
    features must be, of whole windows and of windows that a part is taken out of.

    Raises:
        ExportError: ONNX refuses the graph.
        ParityError: it does not compute what its members and the join do; nothing is written.
    """
    spec = fused_input([member.part for member in members])
    graph = fused_graph(members, join, spec)
    batches = sorted({min(size, len(rows)) for size in BATCHES})
    parity = check_parity(
        reference(members, join, spec), onnx_forward(graph), with_missing(spec, rows), batches=batches
    )
    files = {name: data for member in members for name, data in member.files.items()}
    licences = sorted({member.bundle.manifest.licence for member in members})
    manifest = Manifest(
        name=name,
        version=bundles.next_version(models, name),
        description=description,
        feature_space=bundles.feature_space(graph + b"".join(data for _, data in sorted(files.items()))),
        labels=prior.labels,
        input=spec,
        preprocessing=_preprocessing(members),
        feature_dim=prior.dim,
        opset=OPSET,
        precision=next((m.bundle.manifest.precision for m in members if m.bundle.manifest.precision != "fp32"), "fp32"),
        head=prior.hyper,
        parity={**parity, "against": "its members' graphs, run one by one"},
        provenance=dict(provenance),
        evaluation=dict(evaluation),
        licence=" and ".join(licences),
        citation="\n".join(dict.fromkeys(m.bundle.manifest.citation for m in members if m.bundle.manifest.citation)),
        created=str(provenance.get("finished", "")),
        files={},
    )
    contents = {
        bundles.BACKBONE: graph,
        bundles.PRIOR: priors.to_bytes(prior),
        bundles.CARD: model_card(manifest).encode(),
        **files,
    }
    return bundles.write(models, manifest, contents)


def _preprocessing(members: Sequence[Member]) -> str:
    """What each graph does to raw input; members that do the same are named together."""
    found: dict[str, list[str]] = {}
    for m in members:
        found.setdefault(m.bundle.manifest.preprocessing.rstrip("."), []).append(m.name)
    return "; ".join(f"{', '.join(names)}: {what}" for what, names in found.items())


def with_missing(spec: InputSpec, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same rows, of which every second one lacks a part, each part in turn."""
    rows = rows.copy()
    where = list(places(spec))
    for i in range(1, len(rows), 2):
        number = (i // 2) % len(where)
        if present(spec, rows[i : i + 1])[0].sum() > 1:
            rows[i, number] = 0
            rows[i, where[number][1]] = 0
    return rows


def reference(members: Sequence[Member], join: Join, spec: InputSpec) -> Any:
    """What the fused graph must compute: the members' own graphs on the parts, then the join in float64."""
    runs = [onnx_forward(member.bundle.backbone) for member in members]

    def forward(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        parts, there = unpack(spec, rows), present(spec, rows)
        found = []
        for m, (member, run) in enumerate(zip(members, runs, strict=True)):
            z = np.zeros((len(rows), member.bundle.manifest.feature_dim))
            if there[:, m].any():
                z[there[:, m]] = run(parts[member.name][there[:, m]])
            found.append(z)
        return join.features(found, there).astype(np.float32)

    return forward


def fused_graph(members: Sequence[Member], join: Join, spec: InputSpec) -> bytes:
    """The graph of a fused bundle: packed rows `(n, size)` to features `(n, p + K)`.

    Raises:
        ExportError: ONNX refuses it.
    """
    try:
        joined, ends, elements = _split(spec), [("present", "join/present")], []
        for member in members:
            front = _renewed(onnx.load_from_string(member.bundle.backbone))
            prefix = f"{member.name}/"
            taken, given = prefix + front.graph.input[0].name, prefix + front.graph.output[0].name
            joined = onnx.compose.merge_models(
                joined, onnx.compose.add_prefix(front, prefix), io_map=[(f"part/{member.name}", taken)]
            )
            ends.append((given, f"join/member/{member.name}"))
            elements.append(front.graph.output[0].type.tensor_type.elem_type)
        joined = onnx.compose.merge_models(joined, _join(members, join, elements), io_map=ends, outputs=["features"])
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


def _join(members: Sequence[Member], join: Join, elements: Sequence[int]) -> ModelProto:
    """From members' features and which are present to the joint features: `Join.features`, as a graph.

    `elements`: types of the members' features, which a variant in half precision gives as such.
    """
    g = _Graph("join/")
    inputs = [_value("join/present", FLOAT, len(members))]
    there = g.add("Greater", "join/present", g.number(0.5))
    flags = g.add("Cast", there, to=FLOAT)
    zs, told = [], []
    for m, (member, size, head) in enumerate(zip(members, join.sizes, join.heads, strict=True)):
        taken = f"join/member/{member.name}"
        inputs.append(_value(taken, elements[m], member.bundle.manifest.feature_dim))
        # Not a product: what a backbone makes of nothing may not be finite.
        f = g.add("Where", g.columns(there, m, m + 1), g.add("Cast", taken, to=FLOAT), g.number(0.0))
        zs.append(g.columns(f, 0, size))
        posterior = _log_posterior(g, g.add("Gemm", f, g.number(head.weight.T), g.number(head.bias)))
        told.append(g.add("Where", g.columns(there, m, m + 1), posterior, g.number(0.0)))
    z = g.add("Concat", *zs, axis=1)
    widths = np.repeat(np.eye(len(members)), join.sizes, 1)
    missing = g.add("Sub", g.number(1.0), g.add("MatMul", flags, g.number(widths)))
    guessed = g.add("Mul", g.add("MatMul", z, g.number(join.impute)), missing)
    full = g.add("Sub", g.add("Add", z, guessed), g.number(join.centre))
    personal = g.add("MatMul", full, g.number(join.projection))
    if join.shares is not None:
        place = g.add("MatMul", flags, g.number(2.0 ** np.arange(len(members))[:, None]))
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
