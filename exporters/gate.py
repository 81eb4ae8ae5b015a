"""What a variant of a graph must keep, for every output: features once, and what heads of each output make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.bundle import Manifest
from exporters.bundle_outputs import Ranges
from exporters.worth import LARGEST_LOSS, Errors, Features, Labelled, Worth, lost, worth_of
from models.heads.calibration import shared_head
from models.heads.fit import gaussian_head
from models.heads.head import Head, softmax
from models.heads.prior import Prior
from models.heads.regression_prior import RegressionPrior

Windows = NDArray[Any]

LARGEST_ERROR = 0.05
"""Largest allowed error of a feature, in its standard deviations over the windows."""
LOWEST_AGREEMENT = 0.999
"""Share of decisions (windows x heads) that must be the same for the feature space to be shared."""
LARGEST_CHANGE, CHANGE_KEPT = 0.1, 0.05
"""Change of values, in units of what the shared head of targets usually errs by, above which a variant is not served
where nothing is labelled, and below which it keeps the feature space. Errors of which the change knows nothing grow by
half a percent of them for a tenth, √(1 + 0.1²); at the worst by that tenth."""
WIDEST_FLIP = 0.05
"""Largest lead, in probability, that FP32 may have given the label that the variant does not choose."""
PEOPLE = 16


class PrecisionError(ValueError):
    """No variant in that precision computes features close enough to serve."""


@dataclass(frozen=True, slots=True)
class Answers:
    """How what an output's heads say of a variant's features compares with the original.

    Of labels `decisions` (the share that is the same) and `widest_flip`; of targets `change`: the root mean square by
    which values change, in units of the shared head's error for people it does not know.
    """

    decisions: float = 1.0
    widest_flip: float = 0.0
    change: float | None = None

    @property
    def same(self) -> bool:
        """Whether heads of the one may be applied in the other."""
        if self.change is not None:
            return self.change <= CHANGE_KEPT
        return self.decisions >= LOWEST_AGREEMENT and self.widest_flip <= WIDEST_FLIP

    @property
    def kept(self) -> float:
        """What an output is worth in a variant where no labels tell: 1 where nothing changes."""
        return self.decisions if self.change is None else 1 - self.change

    @property
    def fault(self) -> str:
        """Why it may not be served where no labels tell; empty where it may.

        Whatever the truth is, no more decisions can have become wrong, and no error have grown by more, than changed.
        """
        if self.change is not None and not self.change <= LARGEST_CHANGE:
            return (
                f"values change by {self.change:.1%} of the shared head's usual error, {LARGEST_CHANGE:.0%} is allowed"
            )
        if 1 - self.decisions > LARGEST_LOSS:
            return f"{1 - self.decisions:.1%} of decisions change, {LARGEST_LOSS:.0%} is allowed"
        return ""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a variant's features and decisions compare with the original's; `outputs` by name, where there are several.

    `decisions` and `widest_flip` are then of the output with labels that fares worst.
    """

    max_error: float
    min_cosine: float
    decisions: float
    widest_flip: float
    windows: int
    heads: int
    outputs: Mapping[str, Answers] = field(default_factory=dict)

    @property
    def close(self) -> bool:
        """Whether the features may be served at all (false for NaN)."""
        return self.max_error <= LARGEST_ERROR

    @property
    def same(self) -> bool:
        """Whether heads of the one may be applied in the other, in every output."""
        if not self.outputs:
            return self.close and Answers(self.decisions, self.widest_flip).same
        return all(self.keeps(name) for name in self.outputs)

    def keeps(self, output: str) -> bool:
        """Whether heads of an output of the one may be applied in the other."""
        return self.close and self.outputs[output].same if self.outputs else self.same


@dataclass(frozen=True, slots=True)
class JudgedOutput:
    """An output, and the heads that a variant is compared by: the shared one, and those of people drawn."""

    name: str
    prior: Prior | RegressionPrior
    features: Ranges
    heads: Sequence[Head]

    def of(self, z: Features) -> Features:
        """Return those of the graph's features `(n, d)` that its heads are over."""
        return np.concatenate([z[:, a:b] for a, b in self.features], 1) if self.features else z

    def compared(self, reference: Features, variant: Features) -> Answers:
        """Compare what its heads say."""
        one, other = self.of(reference), self.of(variant)
        if isinstance(self.prior, RegressionPrior):
            prior = self.prior
            changes = [prior.errors(head.logits(other), head.logits(one)).mean() for head in self.heads]
            return Answers(change=float(np.sqrt(np.mean(changes))))
        same, flip = 0, 0.0
        for head in self.heads:
            p = softmax(head.logits(one))
            ours, theirs = p.argmax(1), head.logits(other).argmax(1)
            same += int((ours == theirs).sum())
            rows = np.arange(len(p))
            flip = max(flip, float((p[rows, ours] - p[rows, theirs]).max()))
        return Answers(same / (len(self.heads) * len(one)), flip)


def outputs_of(
    manifest: Manifest, populations: Mapping[str, Prior | RegressionPrior], rng: np.random.Generator
) -> list[JudgedOutput]:
    """Return the outputs of a model, the one of a model with one by the name `""`, with heads to compare by."""
    found = []
    for name, prior in populations.items():
        ranges = manifest.of_output(name).features if name else ()
        if isinstance(prior, RegressionPrior):
            heads = [prior.generic, *drawn_regressions(prior, PEOPLE, rng)]
        else:
            heads = [shared_head(prior), *drawn_heads(prior, PEOPLE, rng)]
        found.append(JudgedOutput(name, prior, ranges, heads))
    return found


def compare(reference: Features, variant: Features, outputs: Sequence[JudgedOutput]) -> Agreement:
    """Compare features `(n, d)` of the same windows, and what heads of each output say of them."""
    deviation = np.maximum(reference.std(0), 1e-3 * max(float(reference.std()), 1e-12))
    finite = bool(np.isfinite(variant).all())
    error = float((np.abs(variant - reference) / deviation).max()) if finite else float("nan")
    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(variant, axis=1)
    cosine = float(((reference * variant).sum(1) / np.maximum(norms, 1e-12)).min())
    found = {output.name: output.compared(reference, variant) for output in outputs}
    decisions = min(answers.decisions for answers in found.values())
    flip = max(answers.widest_flip for answers in found.values())
    heads = sum(len(output.heads) for output in outputs)
    alone = len(found) == 1 and next(iter(found.values())).change is None
    return Agreement(error, cosine, decisions, flip, len(reference), heads, {} if alone else found)


def drawn_heads(prior: Prior, n: int, rng: np.random.Generator) -> list[Head]:
    """Heads of people drawn from the population: their class means vary as the prior says that people do."""
    k, p = prior.means.shape
    values, vectors = np.linalg.eigh(prior.between)
    root = vectors * np.sqrt(np.maximum(values, 0))
    return [
        gaussian_head(prior.means + rng.standard_normal((k, p)) @ root.T, prior.within, width=prior.dim)
        for _ in range(n)
    ]


def drawn_regressions(prior: RegressionPrior, n: int, rng: np.random.Generator) -> list[Head]:
    """Heads of people drawn around the shared one: on average they differ from it by what it errs for people.

    With Δ ~ N(0, σ²/(d + 1) M⁻¹), M being the second moment of (z, 1), E (Δ·(z, 1))² = σ², the residual variance.
    """
    size = prior.dim + 1
    values, vectors = np.linalg.eigh(prior.second_moment)
    root = vectors / np.sqrt(np.maximum(values, 1e-9 * values.max()))
    deviation = np.sqrt(prior.residual_variance / size)[:, None]
    found = []
    for _ in range(n):
        change = deviation * (rng.standard_normal((len(prior.targets), size)) @ root.T)
        found.append(Head(prior.generic.weight + change[:, :-1], prior.generic.bias + change[:, -1]))
    return found


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of a variant: its agreement with the original, and the worth of each output that was judged.

    `reduced`: the worth of an output where parts are missing, by output and by what is missing.
    """

    agreement: Agreement
    worth: Mapping[str, Worth]
    reduced: Mapping[str, Mapping[str, Worth]] = field(default_factory=dict)


class Gate:
    """Judges variants by what heads of every output say of windows, and are worth to people where these are labelled.

    Attributes:
        reference: what was found of the original itself.
    """

    def __init__(
        self,
        outputs: Sequence[JudgedOutput],
        judged: Mapping[str, Labelled],
        inputs: Windows,
        original: Callable[[Windows], Features],
        reduced: Mapping[str, Mapping[str, Labelled]] | None = None,
    ) -> None:
        """Run the original on the windows of `judged`, by output; or on `inputs`, where nothing is labelled.

        `reduced`: by output and by what is missing, windows of the same `x` that lack parts. Each has a bound of its
        own: what one set of parts loses is not made up for by the others.

        Raises:
            PrecisionError: something is labelled for an output that is not there.
        """
        names = [output.name for output in outputs]
        for name in judged:
            if name not in names:
                there = f"it has {', '.join(names)}" if names != [""] else "its one output has no name"
                raise PrecisionError(f"there is no output {name!r} to be judged; {there}")
        self._outputs, self._judged, self._reduced = outputs, judged, reduced or {}
        # Outputs may be labelled on the same windows, which the graph then sees once.
        self._windows = list({id(each.x): each.x for each in judged.values()}.values()) or [inputs]
        self._features = self.features(original)
        self.reference = self.found(self._features)

    @property
    def windows(self) -> int:
        """How many windows variants are compared on."""
        return sum(map(len, self._windows))

    def features(self, forward: Callable[[Windows], Features]) -> list[Features]:
        """Features of the windows by a graph."""
        return [forward(x) for x in self._windows]

    def found(self, features: Sequence[Features]) -> Found:
        """Compare a variant's features, which must be finite, with the original's."""
        at = {id(x): z for x, z in zip(self._windows, features, strict=True)}
        worth, reduced = {}, {}
        for output in self._outputs:
            if output.name in self._judged:
                worth[output.name] = _worth(output, self._judged[output.name], at)
            some = self._reduced.get(output.name, {})
            reduced[output.name] = {what: _worth(output, labelled, at) for what, labelled in some.items()}
        together = compare(np.concatenate(self._features), np.concatenate(list(features)), self._outputs)
        return Found(together, worth, reduced)

    def fault(self, found: Found) -> str:
        """Why a variant may not be served, naming the output; empty where it may.

        An output that nothing is labelled for is judged by what changes of its decisions, or of its values.
        """
        for output in self._outputs:
            why = self._fault(output.name, found)
            if why:
                return f"output {output.name!r}: {why}" if output.name else why
        return ""

    def _fault(self, name: str, found: Found) -> str:
        if name not in found.worth:
            agreement = found.agreement
            return agreement.outputs.get(name, Answers(agreement.decisions, agreement.widest_flip)).fault
        why = _loss(self.reference.worth[name], found.worth[name])
        for what, worth in found.reduced[name].items():
            reduced = _loss(self.reference.reduced[name][what], worth)
            why = why or (f"{what} {reduced}" if reduced else "")
        return why


def _worth(output: JudgedOutput, labelled: Labelled, at: Mapping[int, Features]) -> Worth:
    """What an output is worth, given features of windows by the identity of these."""
    return worth_of(output.of(labelled.of(at[id(labelled.x)])), labelled, output.prior)


def _loss(before: Worth, after: Worth) -> str:
    """Why a loss of worth is too large; empty where it is not."""
    loss = lost(before, after)
    if loss <= LARGEST_LOSS:
        return ""
    if isinstance(after, Errors):
        return f"errors grow by {loss:.1%} of the shared head's usual one, {LARGEST_LOSS:.0%} is allowed"
    return f"accuracy falls by {loss:.1%}, {LARGEST_LOSS:.0%} is allowed"


def variant_fields(old: Manifest, graph: bytes, agreement: Agreement) -> dict[str, Any]:
    """Fields of a variant's manifest: an output keeps its feature space and its bridges where heads say the same."""

    def space(name: str, ranges: Ranges, kept: str) -> str:
        """The output's, or one of its own."""
        mark = name if name != old.output else ""
        return kept if agreement.keeps(name) else bundles.feature_space(graph, ranges, mark)

    return {
        "feature_space": space(old.output, old.features, old.feature_space),
        "bridges": old.bridges if agreement.keeps(old.output) else {},
        "outputs": tuple(
            each.model_copy(
                update={
                    "feature_space": space(each.name, each.features, each.feature_space),
                    "bridges": each.bridges if agreement.keeps(each.name) else {},
                }
            )
            for each in old.outputs
        ),
    }


def bridge_files(manifest: Manifest) -> set[str]:
    """Files of a bundle's bridges."""
    others = (each.bridges for each in manifest.outputs)
    return {entry.file for found in (manifest.bridges, *others) for entry in found.values()}
