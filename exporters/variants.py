"""The most accurate variant of a run's graph that is fast enough on this machine: built, gated, timed, chosen."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort

from exporters import bundle as bundles
from exporters.bundle import Manifest
from exporters.export import Draft, ExportError
from exporters.int8 import FEWEST, LARGEST_LOSS, Accuracy, Labelled, accuracy_of, quantisations
from exporters.latency import Measure, Timing, measure
from exporters.precision import (
    PEOPLE,
    Agreement,
    Features,
    PrecisionError,
    compare,
    drawn_heads,
    halves,
    in_batches,
)
from exporters.session import Forward, SessionError, opened
from models.heads.calibration import shared_head
from models.heads.head import Head
from models.heads.prior import Prior

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
        accuracy: on labelled windows, where there are any.
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
    refused: str = ""
    verdict: str = ""

    @property
    def worth(self) -> float:
        """What variants are ranked by: accuracy where it was judged, else the share of decisions as in FP32."""
        if self.accuracy is not None:
            return self.accuracy.mean
        return 0.0 if self.agreement is None else self.agreement.decisions


def export_within(
    draft: Draft,
    models: Path,
    bound: Bound,
    judged: Labelled | None = None,
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
        judged: labelled windows of people, best ones that nothing was fitted on.
        trained_on: how many of those people the run was trained on, where that is known.
        seed: of the people drawn.
        timed: how latency is measured.

    Returns:
        The bundle's folder, and the table.

    Raises:
        ExportError: no variant keeps the bound; nothing is written.
        SessionError: the device is not there.
    """
    graphs, rows = _gated(draft, bound, judged, seed, timed)
    rows = choose(rows, bound)
    taken = next(row for row in rows if row.verdict == "taken")
    record = {
        "asked": asdict(bound),
        "machine": _machine(),
        "windows": len(draft.inputs if judged is None else judged.y),
        "people": None if judged is None else judged.people,
        "trained_on": trained_on,
        "range_windows": len(draft.inputs),
        "heads": PEOPLE + 1,
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
    draft: Draft, bound: Bound, judged: Labelled | None, seed: int, timed: Measure
) -> tuple[dict[str, bytes], list[Variant]]:
    """Build the variants, compare them with FP32, and time all that run; graphs by name, and rows."""
    prior, spec = draft.prior, draft.manifest.input
    x = draft.inputs if judged is None else judged.x
    heads = [shared_head(prior), *drawn_heads(prior, PEOPLE, np.random.default_rng(seed))]
    original = draft.files[bundles.BACKBONE]
    forwards: dict[str, Forward] = {"fp32": opened(original, spec, device=bound.device, threads=bound.threads)}
    reference = in_batches(forwards["fp32"], x)
    judge = _Judge(reference, heads, prior, judged)
    graphs = {"fp32": original}
    rows = [judge.row(Variant("fp32", "fp32", "as exported", len(original)), reference)]
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
                    row = judge.row(replace(row, bytes=len(graph)), in_batches(forwards[row.name], x))
                except SessionError as e:
                    row = replace(row, refused=str(e))
            rows.append(row)
            if not row.refused:
                break  # what follows has less of it converted
    times = timed(forwards, draft.inputs, bound.batch)
    return graphs, [_timed(row, times) for row in rows]


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


class _Judge:
    """Compares a variant's features with the original's, and says whether it may be served."""

    def __init__(self, reference: Features, heads: list[Head], prior: Prior, judged: Labelled | None) -> None:
        self._reference, self._heads, self._prior, self._judged = reference, heads, prior, judged
        self._right = None if judged is None else accuracy_of(reference, judged, prior)

    def row(self, row: Variant, z: Features) -> Variant:
        """Complete a row by agreement, accuracy and why it is refused, if it is."""
        if not np.isfinite(z).all():
            return replace(row, refused="features that are not finite")
        found = compare(self._reference, z, self._heads)
        right = None if self._judged is None else accuracy_of(z, self._judged, self._prior)
        return replace(row, agreement=found, accuracy=right, refused=self._fault(found, right))

    def _fault(self, found: Agreement, right: Accuracy | None) -> str:
        if found.min_cosine < LOWEST_COSINE:
            return f"a window's features point elsewhere: cosine {found.min_cosine:.2f}, {LOWEST_COSINE} is allowed"
        if self._right is not None and right is not None:
            lost = self._right.loss(right)
            return f"accuracy falls by {lost:.1%}, {LARGEST_LOSS:.0%} is allowed" if lost > LARGEST_LOSS else ""
        # Whatever the true labels are, no more of the decisions can have become wrong than have changed.
        if 1 - found.decisions > LARGEST_LOSS:
            return f"{1 - found.decisions:.1%} of decisions change, {LARGEST_LOSS:.0%} is allowed"
        return ""


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
    """The draft's manifest for the variant taken; its feature space is the draft's where heads decide alike."""
    found = taken.agreement
    kept = found is not None and found.same
    evaluation = {**old.evaluation, "variants": record}
    space = old.feature_space if kept else bundles.feature_space(graph)
    return old.model_copy(update={"precision": taken.precision, "feature_space": space, "evaluation": evaluation})


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
