"""FP32 to INT8: a bundle's variant with quantised weights and activations, judged by what heads decide about people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.bundle import InputSpec
from exporters.precision import PEOPLE, Agreement, Features, PrecisionError, compare, drawn_heads, features, written
from exporters.quantiser import Quantiser
from models.data.parts import present, without
from models.heads.calibration import shared_head
from models.heads.fit import fit_map
from models.heads.head import Head
from models.heads.prior import Prior
from models.heads.statistics import Statistics

LARGEST_LOSS = 0.01
"""Accuracy that the shared head and personal heads may lose, each as a mean over people."""
FEWEST = 64
RANGE_WINDOWS = 512
"""Windows that the ranges of activations are taken from, at most."""
LEFT_OUT = (0.1, 0.25)
"""Shares of the layers, those that err most, that stay in FP32 where all of them lose too much."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Windows of people: rows `(n, …)` as the graph takes them, classes, people and repetitions `(n,)`."""

    x: NDArray[Any]
    y: NDArray[np.int64]
    user: NDArray[np.int64]
    repetition: NDArray[np.int64]

    @property
    def people(self) -> int:
        """How many people there are."""
        return len(np.unique(self.user))


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Mean over people: of the shared head, and of heads fitted on each person's first repetition.

    `personal` is None where nobody shows every label in a first repetition and has another one.
    """

    shared: float
    personal: float | None

    @property
    def mean(self) -> float:
        """Of both where there are both: what variants are ranked by."""
        return self.shared if self.personal is None else (self.shared + self.personal) / 2

    def loss(self, variant: Accuracy) -> float:
        """The larger of what both heads lose in a variant."""
        lost = self.shared - variant.shared
        if self.personal is not None and variant.personal is not None:
            lost = max(lost, self.personal - variant.personal)
        return lost

    def __str__(self) -> str:
        return f"{self.shared:.1%}" if self.personal is None else f"{self.shared:.1%} / {self.personal:.1%}"


@dataclass(frozen=True, slots=True)
class Task:
    """Accuracy in FP32 and INT8 (see `Accuracy`), and the number of people."""

    shared: float
    shared_int8: float
    personal: float | None
    personal_int8: float | None
    people: int


def quantise(
    model: Path, models: Path, ranges: NDArray[Any], judged: Labelled, *, seed: int = 0
) -> tuple[Path, Agreement, Task]:
    """Write the INT8 variant of a bundle as the next version of its name under `models`.

    A fused bundle is judged with all parts, and without each of them; its text members are quantised as token models.
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
    views = with_parts_missing(spec, judged)
    references = [features(original.backbone, spec, view.x) for view in views]
    reference, right = np.concatenate(references), [accuracy_of(*p, prior) for p in zip(references, views, strict=True)]
    told: list[str] = []
    for what, graph in quantisations(original.backbone, spec, some):
        z = [features(graph, spec, view.x) for view in views]
        if not all(np.isfinite(own).all() for own in z):
            told.append(f"{what}: features that are not finite")
            continue
        found = [accuracy_of(*p, prior) for p in zip(z, views, strict=True)]
        lost = max(a.loss(b) for a, b in zip(right, found, strict=True))
        if lost <= LARGEST_LOSS:
            task = Task(right[0].shared, found[0].shared, right[0].personal, found[0].personal, judged.people)
            agreement = compare(reference, np.concatenate(z), heads)
            how = f"recorded windows of {task.people} people, {what}"
            return written(original, models, graph, agreement, how, "int8", {"task": asdict(task)}), agreement, task
        told.append(f"{what}: accuracy falls by {lost:.1%}")
    raise PrecisionError(
        f"{original.manifest.name} cannot be served in int8, {LARGEST_LOSS:.0%} may be lost: {'; '.join(told)}"
    )


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


def with_parts_missing(spec: InputSpec, judged: Labelled) -> list[Labelled]:
    """The windows as they are, and of a fused model's the same without each part, where they have others."""
    found = [judged]
    for m in range(len(spec.parts)):
        there = present(spec, judged.x)
        rows = there[:, m] & (there.sum(1) > 1)
        if rows.any():
            told = judged.y[rows], judged.user[rows], judged.repetition[rows]
            found.append(Labelled(without(spec, judged.x, m), *told))
    return found


def accuracy_of(z: Features, judged: Labelled, prior: Prior) -> Accuracy:
    """How often heads are right on features `z (n, d)` of labelled windows."""
    people = np.unique(judged.user)
    return Accuracy(_right(shared_head(prior), z, judged, people), _personal(z, judged, prior, people))


def _right(head: Head, z: Features, judged: Labelled, people: NDArray[np.int64]) -> float:
    right = head.logits(z).argmax(1) == judged.y
    return float(np.mean([right[judged.user == person].mean() for person in people]))


def _personal(z: Features, judged: Labelled, prior: Prior, people: NDArray[np.int64]) -> float | None:
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
