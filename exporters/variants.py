"""The most accurate variant of a run's graph that is fast enough on this machine: built, gated, timed, chosen."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort

from exporters import bundle as bundles
from exporters.bundle import Manifest
from exporters.export import Draft, ExportError
from exporters.gate import PEOPLE, Agreement, Gate, PrecisionError, outputs_of, variant_fields
from exporters.int8 import FEWEST, quantisations
from exporters.latency import Measure, Timing, measure
from exporters.precision import halves, in_batches
from exporters.session import Forward, SessionError, opened
from exporters.worth import Accuracy, Labelled, Worth

HELPS = 0.95
"""Share of the original's median that an optimised graph, which computes the same, must stay under."""

LOWEST_COSINE = 0.95
"""Of any window's features with the original's: users may have labels that nobody here can judge by."""

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, slots=True)
class Bound:
    """What a variant must keep: the median of a batch's milliseconds, on a device with so many threads.

    The 95th percentile is in the table beside it, and is no bound: on a machine that does other work, it tells of that.
    """

    milliseconds: float
    device: str = "cpu"
    batch: int = 1
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the table: what a variant is, what was measured of it, and what came of that.

    Attributes:
        agreement: with the FP32 graph's features and decisions; None where it could not be run.
        accuracy: on labelled windows, where there are any, of a model with one output of labels.
        outputs: what each output of another model is worth on labelled windows, by its name; of those judged.
        refused: why it may not be served, whatever its speed; empty where it may.
        verdict: taken, or why not.
    """

    name: str
    precision: Precision
    how: str
    bytes: int = 0
    timing: Timing | None = None
    ratio: float | None = None
    agreement: Agreement | None = None
    accuracy: Accuracy | None = None
    outputs: Mapping[str, Worth] = field(default_factory=dict)
    refused: str = ""
    verdict: str = ""

    @property
    def worth(self) -> float:
        """What variants are ranked by: accuracy where it was judged, else the share of decisions as in FP32.

        Of several outputs their mean; of targets 1 less the error, or the change of values where it was not judged, in
        units of what the shared head usually errs by.
        """
        if self.accuracy is not None:
            return self.accuracy.mean
        if self.agreement is None:
            return 0.0
        each = self.agreement.outputs.items()
        kept = [self.outputs[name].mean if name in self.outputs else said.kept for name, said in each]
        return sum(kept) / len(kept) if kept else self.agreement.decisions


def export_within(
    draft: Draft,
    models: Path,
    bound: Bound,
    judged: Labelled | Mapping[str, Labelled] | None = None,
    *,
    trained_on: int | None = None,
    seed: int = 0,
    timed: Measure = measure,
) -> tuple[Path, list[Variant]]:
    """Write the most accurate variant of a draft that keeps a bound; the table of all goes into manifest and card.

    Ranges of activations are those of the run's own inputs. Without `judged` accuracy cannot be told: the shared head
    and heads of people drawn from the prior must decide as in FP32 on the run's inputs, and a variant is worth the
    share of decisions that are the same.

    Args:
        draft: the run's bundle.
        models: folder of bundles to write to.
        bound: what to keep.
        judged: labelled windows of people, best ones that nothing was fitted on; of several outputs by their names. An
            output that nothing is labelled for is judged by what changes.
        trained_on: how many of those people the run was trained on, where that is known.
        seed: of the people drawn.
        timed: how latency is measured.

    Returns:
        The bundle's folder, and the table.

    Raises:
        ExportError: no variant keeps the bound; nothing is written.
        PrecisionError: something is labelled for an output that is not there.
        SessionError: the device is not there.
    """
    by_output = {"": judged} if isinstance(judged, Labelled) else dict(judged or {})
    graphs, rows, windows = _gated(draft, bound, by_output, seed, timed)
    rows = choose(rows, bound)
    taken = next(row for row in rows if row.verdict == "taken")
    record = {
        "asked": asdict(bound),
        "machine": _machine(),
        "windows": windows if len(by_output) != 1 else len(next(iter(by_output.values())).y),
        "people": max((each.people for each in by_output.values()), default=None),
        "trained_on": trained_on,
        "range_windows": len(draft.inputs),
        "heads": (PEOPLE + 1) * max(1, len(draft.manifest.names)),
        "seed": seed,
        "rows": [asdict(row) for row in rows],
    }
    manifest = _manifest(draft.manifest, graphs[taken.name], taken, record)
    files = {**draft.files, bundles.BACKBONE: graphs[taken.name]}
    return replace(draft, manifest=manifest, files=files).written(models), rows


def choose(rows: Sequence[Variant], bound: Bound) -> list[Variant]:
    """Give each variant its verdict: one is taken, the most accurate inside the bound, of equal ones the fastest.

    Raises:
        ExportError: none that may be served is inside; the message names the fastest.
    """
    served = [(row, row.timing) for row in rows if row.timing is not None and not row.refused]
    inside = [(row, timing) for row, timing in served if timing.batch.median <= bound.milliseconds]
    if not inside:
        row, timing = min(served, key=lambda pair: pair[1].batch.median)
        raise ExportError(
            f"no variant answers a batch of {bound.batch} in {bound.milliseconds:g} ms on {bound.device} here: the "
            f"fastest that may be served is {row.name}, whose median is {timing.batch.median:.2f} ms. Allow more "
            "milliseconds or threads, or train a smaller backbone"
        )
    taken, _ = max(inside, key=lambda pair: (pair[0].worth, -pair[1].batch.median))

    def verdict(row: Variant) -> str:
        if row is taken:
            return "taken"
        if row.refused or row.timing is None:
            return f"refused: {row.refused}"
        if row.timing.batch.median > bound.milliseconds:
            return f"over the bound: {row.timing.batch.median:.2f} ms"
        return "less accurate" if row.worth < taken.worth else "as accurate, no faster"

    return [replace(row, verdict=verdict(row)) for row in rows]


def _gated(
    draft: Draft, bound: Bound, judged: Mapping[str, Labelled], seed: int, timed: Measure
) -> tuple[dict[str, bytes], list[Variant], int]:
    """Build the variants, compare them with FP32, and time all that run; graphs by name, rows, windows compared on."""
    spec = draft.manifest.input
    outputs = outputs_of(draft.manifest, bundles.populations(draft.manifest, draft.files), np.random.default_rng(seed))
    original = draft.files[bundles.BACKBONE]
    forwards: dict[str, Forward] = {"fp32": opened(original, spec, device=bound.device, threads=bound.threads)}
    gate = Gate(outputs, judged, draft.inputs, partial(in_batches, forwards["fp32"]))
    graphs = {"fp32": original}
    rows = [_judged(Variant("fp32", "fp32", "as exported", len(original)), gate, forwards["fp32"])]
    for attempts in (
        _or_why("fp32, optimised", "fp32", _optimised(original)),
        _or_why("fp16", "fp16", _halved(original)),
        _or_why("int8", "int8", _quantised(draft)),
    ):
        for row, graph in attempts:
            if graph is not None:
                try:
                    forwards[row.name] = opened(graph, spec, device=bound.device, threads=bound.threads)
                    graphs[row.name] = graph
                    row = _judged(replace(row, bytes=len(graph)), gate, forwards[row.name])
                except SessionError as e:
                    row = replace(row, refused=str(e))
            rows.append(row)
            if not row.refused:
                break  # what follows has less of it converted
    times = timed(forwards, draft.inputs, bound.batch)
    return graphs, [_timed(row, times) for row in rows], gate.windows


Attempts = Iterator[tuple[Variant, bytes | None]]
"""Rows of one precision and their graphs, the most converted first; without a graph, the row says why there is none."""


def _optimised(graph: bytes) -> Attempts:
    yield Variant("fp32, optimised", "fp32", "constants folded, nodes merged"), optimised(graph)


def _halved(graph: bytes) -> Attempts:
    for name, (how, made) in zip(_numbered("fp16"), halves(graph), strict=False):
        yield Variant(name, "fp16", how), made


def _quantised(draft: Draft) -> Attempts:
    spec, x = draft.manifest.input, draft.inputs
    if len(x) < FEWEST:
        raise PrecisionError(f"ranges of activations need {FEWEST} inputs; the run holds {len(x)}")
    kind = "dynamic" if spec.datatype == "INT64" else "static"
    made = quantisations(draft.files[bundles.BACKBONE], spec, x)
    for name, (how, graph) in zip(_numbered("int8"), made, strict=False):
        yield Variant(name, "int8", f"{kind}, {how}"), graph


def _or_why(name: str, precision: Precision, attempts: Attempts) -> Attempts:
    """The attempts; a converter's error ends them with a row that says it."""
    try:
        yield from attempts
    except Exception as e:  # converters raise whatever they meet in a graph; the other variants are none the worse
        told = (str(e).strip() or type(e).__name__).splitlines()[0]
        yield Variant(name, precision, "", refused=told), None


def _numbered(name: str) -> Iterator[str]:
    """The name, then the same with numbers from 2."""
    yield name
    for number in count(2):
        yield f"{name} ({number})"


def optimised(graph: bytes) -> bytes:
    """The graph as ONNX Runtime rewrites it before it knows the device: standard operators only, for any machine.

    Raises:
        PrecisionError: what it writes is not portable.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        model = onnx.load(options.optimized_model_filepath)
    foreign = sorted({node.domain for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    if foreign:
        raise PrecisionError(f"its operators of {', '.join(foreign)} are not of every runtime")
    for at in reversed(range(len(model.opset_import))):
        if model.opset_import[at].domain not in ("", "ai.onnx"):
            del model.opset_import[at]
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _judged(row: Variant, gate: Gate, forward: Forward) -> Variant:
    """Complete a row by agreement, worth and why it is refused, if it is."""
    z = gate.features(partial(in_batches, forward))
    if not all(np.isfinite(each).all() for each in z):
        return replace(row, refused="features that are not finite")
    found = gate.found(z)
    fault = gate.fault(found)
    if found.agreement.min_cosine < LOWEST_COSINE:
        cosine = found.agreement.min_cosine
        fault = f"a window's features point elsewhere: cosine {cosine:.2f}, {LOWEST_COSINE} is allowed"
    alone = found.worth.get("")
    if isinstance(alone, Accuracy):
        return replace(row, agreement=found.agreement, accuracy=alone, refused=fault)
    return replace(row, agreement=found.agreement, outputs=found.worth, refused=fault)


def _timed(row: Variant, times: dict[str, Timing]) -> Variant:
    """A row with its timing and its ratio to FP32; an optimised graph that is no faster is refused."""
    timing = times.get(row.name) if row.bytes else None
    if timing is None:
        return row
    ratio = timing.batch.median / times["fp32"].batch.median
    row = replace(row, timing=timing, ratio=ratio)
    if row.name == "fp32, optimised" and not row.refused and ratio > HELPS:
        return replace(row, refused=f"it computes what fp32 does and takes {ratio:.2f} of its time")
    return row


def _manifest(old: Manifest, graph: bytes, taken: Variant, record: dict[str, Any]) -> Manifest:
    """The draft's manifest for the variant taken; its feature spaces are the draft's where heads say the same."""
    assert taken.agreement is not None
    evaluation = {**old.evaluation, "variants": record}
    fields = variant_fields(old, graph, taken.agreement)
    return old.model_copy(update={**fields, "precision": taken.precision, "evaluation": evaluation})


def _machine() -> dict[str, Any]:
    """What latency was measured on."""
    names: list[str] = []
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "onnxruntime": ort.__version__,
    }
