"""FP32 to INT8: a bundle's variant with quantised weights and activations, judged by what heads decide about people."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from exporters import bundle as bundles
from exporters.bundle import InputSpec
from exporters.precision import PEOPLE, Agreement, PrecisionError, compare, drawn_heads, features, written
from models.heads.calibration import shared_head
from models.heads.fit import fit_map
from models.heads.head import Head
from models.heads.prior import Prior
from models.heads.statistics import Statistics

LARGEST_LOSS = 0.01
"""Accuracy that the shared head and personal heads may lose, each as a mean over people."""
FEWEST = 64
RANGE_WINDOWS, RANGE_BATCH = 512, 16
"""Windows that the ranges of activations are taken from, so many at a time."""
STEPS = {
    "convolutions and matrix products": ("Conv", "Gemm", "MatMul"),
    "convolutions": ("Conv",),
}
"""What is quantised, the most first; only with weights that are constants."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Windows of people: rows `(n, …)` as the graph takes them, classes, people and repetitions `(n,)`."""

    x: NDArray[Any]
    y: NDArray[np.int64]
    user: NDArray[np.int64]
    repetition: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Task:
    """Accuracy over people, in FP32 and INT8: of the shared head, and of heads fitted on a person's first repetition.

    `personal` figures are None where nobody shows every label in a first repetition and has another one.
    """

    shared: float
    shared_int8: float
    personal: float | None
    personal_int8: float | None
    people: int

    @property
    def loss(self) -> float:
        """The larger of both losses."""
        lost = self.shared - self.shared_int8
        if self.personal is not None and self.personal_int8 is not None:
            lost = max(lost, self.personal - self.personal_int8)
        return lost


def quantise(
    model: Path, models: Path, ranges: NDArray[Any], judged: Labelled, *, seed: int = 0
) -> tuple[Path, Agreement, Task]:
    """Write the INT8 variant of a bundle as the next version of its name under `models`.

    Signals and images are quantised statically (weights by channel, activations by the range that they had on
    `ranges`), as much of the graph as the gate allows; token models dynamically. The variant has a feature space of its
    own unless heads decide alike in both.

    Args:
        model: the FP32 bundle.
        models: folder of bundles to write to.
        ranges: real windows `(n, …)` that activations are measured on.
        judged: people that the variant is judged on, best ones that nothing was fitted on.
        seed: of the people drawn for the comparison of features.

    Raises:
        PrecisionError: the bundle is not FP32, windows are too few, there is nothing to quantise, or no variant's heads
            are right as often.

    Source: Jacob et al. 2018 (integer arithmetic); ONNX Runtime's quantisation, QDQ format.
    """
    original = bundles.load(bundles.resolve(model)).of_one_output("variants are made of")
    spec, prior = original.manifest.input, original.prior
    if original.manifest.precision != "fp32":
        raise PrecisionError(f"{original.path} is {original.manifest.precision}; only fp32 bundles are converted")
    if min(len(ranges), len(judged.y)) < FEWEST:
        raise PrecisionError(
            f"the precision gate needs {FEWEST} windows to take ranges from and as many to judge by; "
            f"there are {len(ranges)} and {len(judged.y)}"
        )
    rng = np.random.default_rng(seed)
    some = ranges[np.sort(rng.permutation(len(ranges))[:RANGE_WINDOWS])]
    heads = [shared_head(prior), *drawn_heads(prior, PEOPLE, rng)]
    reference = features(original.backbone, spec, judged.x)
    told: list[str] = []
    for what, operators in STEPS.items():
        graph = _quantised(original.backbone, spec, some, operators)
        if graph is None:
            told.append(f"there are no {what} with constant weights")
            continue
        z = features(graph, spec, judged.x)
        if not np.isfinite(z).all():
            told.append(f"{what}: features that are not finite")
            continue
        task = _task(reference, z, judged, prior)
        if task.loss <= LARGEST_LOSS:
            found = compare(reference, z, heads)
            how = f"recorded windows of {task.people} people, {what} in 8 bits"
            return written(original, models, graph, found, how, "int8", {"task": asdict(task)}), found, task
        told.append(f"{what}: accuracy falls by {task.loss:.1%}")
    raise PrecisionError(
        f"{original.manifest.name} cannot be served in int8, {LARGEST_LOSS:.0%} may be lost: {'; '.join(told)}"
    )


def _quantised(graph: bytes, spec: InputSpec, x: NDArray[Any], operators: tuple[str, ...]) -> bytes | None:
    """Quantise the nodes of some kinds whose weights are constants; None where there are none."""
    with tempfile.TemporaryDirectory() as folder:
        given, prepared, made = (Path(folder) / f"{name}.onnx" for name in ("fp32", "prepared", "int8"))
        given.write_bytes(graph)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        chosen = onnx.load(prepared)
        names = _with_weights(chosen, operators)
        if not names:
            return None
        quiet = logging.getLogger()
        level = quiet.level
        quiet.setLevel(logging.ERROR)  # it advises what was done above
        try:
            if spec.datatype == "INT64":
                quantize_dynamic(chosen, made, nodes_to_quantize=names, weight_type=QuantType.QInt8, per_channel=True)
            else:
                quantize_static(
                    chosen,
                    made,
                    _Batches(chosen, spec, x),
                    quant_format=QuantFormat.QDQ,
                    nodes_to_quantize=names,
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                )
        finally:
            quiet.setLevel(level)
        model = onnx.load(made)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def _with_weights(model: onnx.ModelProto, operators: tuple[str, ...]) -> list[str]:
    """Names of nodes of some kinds whose second input is a constant; nodes without a name get one."""
    constants = {tensor.name for tensor in model.graph.initializer}
    found = []
    for at, node in enumerate(model.graph.node):
        if node.op_type in operators and len(node.input) > 1 and node.input[1] in constants:
            node.name = node.name or f"{node.op_type}_{at}"
            found.append(node.name)
    return found


class _Batches(CalibrationDataReader):  # type: ignore[misc]
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


def _task(reference: NDArray[np.float32], variant: NDArray[np.float32], judged: Labelled, prior: Prior) -> Task:
    people = np.unique(judged.user)
    shared, shared_int8 = (_right(shared_head(prior), z, judged, people) for z in (reference, variant))
    personal, personal_int8 = (_personal(z, judged, prior, people) for z in (reference, variant))
    return Task(shared, shared_int8, personal, personal_int8, len(people))


def _right(head: Head, z: NDArray[np.float32], judged: Labelled, people: NDArray[np.int64]) -> float:
    right = head.logits(z).argmax(1) == judged.y
    return float(np.mean([right[judged.user == person].mean() for person in people]))


def _personal(z: NDArray[np.float32], judged: Labelled, prior: Prior, people: NDArray[np.int64]) -> float | None:
    """Accuracy of heads fitted on each person's first repetition, on their others; None where nobody has both."""
    found = []
    for person in people:
        own = np.flatnonzero(judged.user == person)
        first = judged.repetition[own] == judged.repetition[own].min()
        shown, asked = own[first], own[~first]
        if len(asked) and len(np.unique(judged.y[shown])) == prior.classes:
            stats = Statistics.of(z[shown, : prior.personal], judged.y[shown], judged.repetition[shown], prior.classes)
            found.append(float((fit_map(stats, prior).logits(z[asked]).argmax(1) == judged.y[asked]).mean()))
    return float(np.mean(found)) if found else None
