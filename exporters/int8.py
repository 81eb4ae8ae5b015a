"""FP32 to INT8: a bundle's variant with quantised weights and activations, judged by what heads decide about people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.bundle import InputSpec
from exporters.gate import Agreement, Gate, PrecisionError, outputs_of
from exporters.precision import features, with_each_missing, written
from exporters.quantiser import Quantiser
from exporters.worth import Errors, Labelled, Worth
from models.data.parts import present, without

FEWEST = 64
RANGE_WINDOWS = 512
"""Windows that the ranges of activations are taken from, at most."""
LEFT_OUT = (0.1, 0.25)
"""Shares of the layers, those that err most, that stay in FP32 where all of them lose too much."""


@dataclass(frozen=True, slots=True)
class Task:
    """Worth in FP32 and INT8 of the shared head and of personal ones, and the number of people.

    Accuracies (see `Accuracy`); of a regression errors (`Errors`), with the shared head's by target in `rmse`.
    """

    shared: float
    shared_int8: float
    personal: float | None
    personal_int8: float | None
    people: int
    rmse: tuple[float, ...] = ()
    rmse_int8: tuple[float, ...] = ()

    @staticmethod
    def of(before: Worth, after: Worth, people: int) -> Task:
        """Put what an output is worth in both side by side."""
        rmse = (before.rmse, after.rmse) if isinstance(before, Errors) and isinstance(after, Errors) else ((), ())
        return Task(before.shared, after.shared, before.personal, after.personal, people, *rmse)


def quantise(
    model: Path, models: Path, ranges: NDArray[Any], judged: Labelled, *, seed: int = 0
) -> tuple[Path, Agreement, Task]:
    """Write the INT8 variant of a bundle with one output; `quantise_outputs` says how."""
    path, agreement, tasks = quantise_outputs(model, models, ranges, {"": judged}, seed=seed)
    return path, agreement, tasks[""]


def quantise_outputs(
    model: Path, models: Path, ranges: NDArray[Any], judged: Mapping[str, Labelled], *, seed: int = 0
) -> tuple[Path, Agreement, dict[str, Task]]:
    """Write the INT8 variant of a bundle as the next version of its name under `models`.

    A fused bundle is judged with the parts that the windows have, and without each of them, each with a bound of its
    own; its text members are quantised as token models. Signals and images are quantised statically (weights by
    channel, activations by the range that they had on `ranges`), as much of the graph as the gate allows; token models
    dynamically. An output of the variant has a feature space of its own unless heads say the same in both.

    Args:
        model: the FP32 bundle.
        models: folder of bundles to write to.
        ranges: real windows `(n, …)` that activations are measured on.
        judged: people that each output of the variant is judged on, best ones that nothing was fitted on, by its name,
            which is empty where there is one. An output that nothing is labelled for must decide as before.
        seed: of the people drawn for the comparison of features.

    Returns:
        The bundle's folder, how the variant compares, and what each output that was judged is worth.

    Raises:
        PrecisionError: the bundle is not FP32, windows are too few, there is nothing to quantise, or in every variant
            an output, which the message names, loses too much.
    """
    original = bundles.load(bundles.resolve(model))
    spec = original.manifest.input
    if original.manifest.precision != "fp32":
        raise PrecisionError(f"{original.path} is {original.manifest.precision}; only fp32 bundles are converted")
    for name, labelled in judged.items():
        if min(len(ranges), len(labelled.y)) < FEWEST:
            of = f" for output {name!r}" if name else ""
            raise PrecisionError(
                f"the precision gate needs {FEWEST} windows to take ranges from and as many to judge by{of}; "
                f"there are {len(ranges)} and {len(labelled.y)}"
            )
    rng = np.random.default_rng(seed)
    some = ranges[np.sort(rng.permutation(len(ranges))[:RANGE_WINDOWS])]
    people_of = {name: labelled.people for name, labelled in judged.items()}
    reduced = {name: with_parts_missing(spec, labelled) for name, labelled in judged.items()}
    whole = {name: reduced[name].pop("", labelled) for name, labelled in judged.items()}
    outputs = outputs_of(original.manifest, original.populations, rng)
    each = with_each_missing(spec, some)
    gate = Gate(outputs, whole, each, lambda x: features(original.backbone, spec, x), reduced)
    told: list[str] = []
    for what, graph in quantisations(original.backbone, spec, some):
        z = gate.features(lambda x, graph=graph: features(graph, spec, x))  # type: ignore[misc]
        if not all(np.isfinite(each).all() for each in z):
            told.append(f"{what}: features that are not finite")
            continue
        found = gate.found(z)
        fault = gate.fault(found)
        if not fault:
            tasks = {
                name: Task.of(gate.reference.worth[name], worth, people_of[name]) for name, worth in found.worth.items()
            }
            record: dict[str, Any] = {"tasks": {name: asdict(task) for name, task in tasks.items()}}
            if list(tasks) == [""] and not tasks[""].rmse:
                record = {"task": asdict(tasks[""])}
            people = max(people_of.values(), default=0)
            how = f"recorded windows{f' of {people} people' if people else ''}, {what}"
            return written(original, models, graph, found.agreement, how, "int8", record), found.agreement, tasks
        told.append(f"{what}: {fault}")
    raise PrecisionError(f"{original.manifest.name} cannot be served in int8: {'; '.join(told)}")


def with_parts_missing(spec: InputSpec, judged: Labelled) -> dict[str, Labelled]:
    """Views of a fused model's windows on one `x`: as they are by `""`, and `without …` each part, where any have it.

    Of other models none.
    """
    if not spec.parts:
        return {}
    x = np.asarray(judged.x if judged.rows is None else judged.x[judged.rows], np.float32)
    there = present(spec, x)
    rows, inputs = {"": np.arange(len(x))}, [x]
    for m, part in enumerate(spec.parts):
        some = np.flatnonzero(there[:, m] & (there.sum(1) > 1))
        if len(some):
            rows[f"without {part.name}"] = some
            inputs.append(without(spec, x, m))
    joined, ends = np.concatenate(inputs), np.cumsum([len(each) for each in inputs])
    return {
        what: Labelled(joined, judged.y[own], judged.user[own], judged.repetition[own], np.arange(end - len(own), end))
        for (what, own), end in zip(rows.items(), ends.tolist(), strict=True)
    }


def quantisations(graph: bytes, spec: InputSpec, x: NDArray[Any]) -> Iterator[tuple[str, bytes]]:
    """INT8 graphs of an FP32 one and what each has in 8 bits, the most first; `x (n, …)` give ranges of activations.

    After all layers come all but those that err most by themselves, which are found when they are asked for.

    Raises:
        PrecisionError: no layer has constant weights.
    """
    quantiser = Quantiser(graph, spec, x)
    layers = quantiser.layers()
    if not layers:
        raise PrecisionError("there are no convolutions or matrix products with constant weights to put in 8 bits")
    yield f"{len(layers)} layers in 8 bits", quantiser.graph(layers)
    worst: list[str] = []
    for share in LEFT_OUT:
        left = int(np.ceil(share * len(layers)))
        if left < len(layers):
            worst = worst or quantiser.by_error(layers)
            kept = [name for name in layers if name not in worst[:left]]
            yield f"{len(kept)} of {len(layers)} layers in 8 bits, without those that err most", quantiser.graph(kept)
