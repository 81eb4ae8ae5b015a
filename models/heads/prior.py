"""The population prior: what training knows about users it has never seen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from models.heads.head import NEVER

Array = NDArray[np.float64]
TENSORS = ("generic_weight", "generic_bias", "means", "within", "between", "repetition", "whitening")
GAIN, CORRELATION = "gain", "correlation"
PLACED = ("means", "within", "between", "repetition", "log_weight")


class Evidence(BaseModel):
    """How personal heads fared on left-out population users after a given number of labelled windows.

    The gain is personal minus generic accuracy, in [−1, 1]; `lower` is the lower end of its one-sided 95 % interval
    over users; `floor` is the lowest accuracy any left-out user had.
    """

    model_config = ConfigDict(frozen=True)

    windows: int = Field(ge=1, description="labelled windows a class")
    repetitions: int = Field(ge=1, description="repetitions they come from")
    users: int = Field(ge=1)
    gain: float
    lower: float
    floor: float


class Partial(BaseModel):
    """How a calibration that showed some of the labels only may be used, and what it did for left-out people.

    The shared head with a share `weight` of the personal one, `lean` added to the logits of labels that were not shown:
    the rule that gained most among those that left nobody below the shared head, neither on the labels shown nor on the
    others (means over a person's calibrations). Gains are personal minus generic accuracy, in [−1, 1]. It says nothing
    of calibrations with fewer labels or fewer repetitions than those it was chosen by.
    """

    model_config = ConfigDict(frozen=True)

    weight: float = Field(gt=0, le=1)
    lean: float = Field(ge=0, description="added to the logits of labels not shown")
    shown: int = Field(ge=2, description="labels shown in those calibrations")
    repetitions: int = Field(ge=1, description="repetitions of them")
    users: int = Field(ge=2)
    gain_shown: float
    gain_unseen: float
    worst_unseen: float = Field(description="least gain of any left-out user on the labels not shown")


class HyperParameters(BaseModel):
    """Settings of the default head, chosen by leave-one-user-out on the population (never on a served user).

    `between`, `repetition` and `window` scale the prior's covariances (`window` is the number of overlapping windows
    that tell as much as one independent one); `between` grows with the repetitions seen, to the power `growth`, for
    what many repetitions agree on outweighs the population; `shrinkage` is the number of effective windows at which the
    user's own covariance weighs as much as the population's; `offset` is the share of the user's common offset given to
    a class they have not shown, where the prior has no correlation of the classes; `persistence` is the share of the
    repetitions' spread that further repetitions of one sitting do not average out; `shared` is how much of the generic
    head is added to the personal one after one repetition, falling as 1/repetitions; `temperature` divides personal
    logits before that; `pooled` says that the population was one heap without users: `between` is then the spread of
    its classes, and there is no record; `novelty` is the share of the classes' spread in which a label of the user's
    own may differ from them in any direction alike (on 19 people with one gesture taken out of the population, 0 to 0.3
    do alike: docs/heads.md); `partial` is None where no rule for labels that were not shown is safe; `set_floors` are
    the generic head's for sets of labels, by coverage (`models.heads.confidence`), from people left out.
    """

    model_config = ConfigDict(frozen=True)

    between: float = Field(1.0, gt=0)
    growth: float = Field(0.0, ge=0)
    repetition: float = Field(1.0, ge=0)
    window: float = Field(10.0, gt=0)
    shrinkage: float = Field(100.0, ge=0)
    offset: float = Field(0.0, ge=0, le=1)
    persistence: float = Field(0.0, ge=0, le=1)
    shared: float = Field(0.0, ge=0)
    temperature: float = Field(1.0, gt=0)
    pooled: bool = False
    novelty: float = Field(0.1, ge=0, le=1)
    evidence: tuple[Evidence, ...] = ()
    partial: Partial | None = None
    set_floors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Placements:
    """The population as seen at M placements of the sensor: rotations of an armband, and worn the other way round.

    Arrays as in `Prior`, with a leading M; the first is the usual placement. `log_weight (M,)` is the log prior of
    each, in nats of the marginal likelihood of a user's class means.
    """

    means: Array
    within: Array
    between: Array
    repetition: Array
    log_weight: Array

    def __len__(self) -> int:
        """Number of placements M."""
        return len(self.log_weight)


@dataclass(frozen=True, slots=True)
class Prior:
    """Generic head, class means and covariances of the population, in one feature space.

    Attributes:
        labels: the K class names, in the order of every array.
        generic_weight: `(K, d)`, and generic_bias: `(K,)`: the shared head, its temperature folded in.
        means: `(K, p)` class means over users, in the first p ≤ d features: personal heads are fitted in these; the
            others serve the generic head only.
        within: `(p, p)` covariance of windows within (user, class, repetition).
        between: `(p, p)` covariance of users' class means around `means`.
        repetition: `(p, p)` covariance of repetition means within (user, class).
        whitening: `(p, p)` matrix A with A within Aᵀ = I.
        hyper: settings of the default head.
        placements: the same population at other placements of the sensor, or None.
        gain: `(p,)` what the logarithm of the signal's gain adds to the features, the same at every placement; or None.
        correlation: `(K, K)` of what users do differently in one class and in another: their offsets from `means` have
            covariance correlation ⊗ `between`, at every placement; of the population's own classes. None: unrelated.
        base: the population's own prior where a user's labels were added behind its, or None.
        memo: factors of these matrices that fits have worked out, by name: they depend on nothing else.
    """

    labels: tuple[str, ...]
    generic_weight: Array
    generic_bias: Array
    means: Array
    within: Array
    between: Array
    repetition: Array
    whitening: Array
    hyper: HyperParameters = HyperParameters()  # noqa: RUF009 - frozen
    placements: Placements | None = None
    gain: Array | None = None
    correlation: Array | None = None
    base: Prior | None = None
    memo: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return len(self.labels)

    @property
    def known(self) -> int:
        """Number of classes that the population has; a user's own labels come behind them."""
        return len((self.base or self).labels)

    @property
    def dim(self) -> int:
        """Number of features d."""
        return int(self.generic_weight.shape[1])

    @property
    def personal(self) -> int:
        """Number of features p that personal heads are fitted in: the first ones."""
        return int(self.means.shape[1])

    def at(self, placement: int) -> Prior:
        """Return the prior of a user who wears the sensor at one of the placements."""
        if self.placements is None:
            return self
        found: Prior | None = self.memo.get(("at", placement))
        if found is None:
            p = self.placements
            found = self.memo["at", placement] = replace(
                self,
                labels=(*self.labels[: self.known], *[""] * self.own),  # no user's name stays here
                means=p.means[placement],
                within=p.within[placement],
                between=p.between[placement],
                repetition=p.repetition[placement],
                placements=None,
            )
        return found if found.labels == self.labels else found.named(self.labels)

    @property
    def own(self) -> int:
        """Number of classes that are a user's own: the last ones, of which the population knows nothing."""
        return self.classes - self.known

    def with_own(self, count: int) -> Prior:
        """Return the prior with `count` classes more, of which nothing is known before a user shows them.

        Their rows of the generic head are never answered. Their means stand in the middle of the others', where
        nothing reads them.
        """
        if not count:
            return self
        found: Prior | None = self.memo.get(("own", count))
        if found is not None:
            return found

        def middle(means: Array) -> Array:
            """Add rows to `(…, K, p)`."""
            return np.concatenate([means, np.repeat(means.mean(-2, keepdims=True), count, -2)], -2)

        p = self.placements
        found = self.memo["own", count] = replace(
            self,
            labels=(*self.labels, *[""] * count),
            generic_weight=np.pad(self.generic_weight, ((0, count), (0, 0))),
            generic_bias=np.pad(self.generic_bias, (0, count), constant_values=NEVER),
            means=middle(self.means),
            placements=None if p is None else replace(p, means=middle(p.means)),
            base=self.base or self,
        )
        return found

    def named(self, labels: tuple[str, ...]) -> Prior:
        """Return the same with other names of its classes; what was worked out of the matrices is shared."""
        found = replace(self, labels=labels)
        object.__setattr__(found, "memo", self.memo)
        return found

    @property
    def users(self) -> int:
        """People that the population's covariances were estimated from, as the record has it; at least 2."""
        return max([2, *(e.users for e in self.hyper.evidence)])

    def evidence_for(self, windows: float, repetitions: float) -> Evidence | None:
        """Return the population's record at the largest shot count not above the one given, if there is one."""
        fitting = [e for e in self.hyper.evidence if e.windows <= windows and e.repetitions <= repetitions]
        return max(fitting, key=lambda e: (e.repetitions, e.windows), default=None)

    def strongest_evidence_for(self, windows: float, repetitions: float) -> Evidence | None:
        """Return the record with the highest lower bound up to the shot count given: more windows hold fewer ones."""
        fitting = [e for e in self.hyper.evidence if e.windows <= windows and e.repetitions <= repetitions]
        return max(fitting, key=lambda e: e.lower, default=None)


def to_bytes(prior: Prior) -> bytes:
    """Encode the arrays as safetensors (labels and hyper-parameters travel in the manifest)."""
    tensors = {name: np.ascontiguousarray(getattr(prior, name), np.float64) for name in TENSORS}
    if prior.placements is not None:
        # Float32 halves the size of the largest part; the prior's own arrays stay exact.
        placed = {f"placements.{name}": getattr(prior.placements, name).astype(np.float32) for name in PLACED}
        tensors |= {name: np.ascontiguousarray(value) for name, value in placed.items()}
    if prior.gain is not None:
        tensors[GAIN] = np.ascontiguousarray(prior.gain, np.float64)
    if prior.correlation is not None:
        tensors[CORRELATION] = np.ascontiguousarray(prior.correlation, np.float64)
    return safetensors.numpy.save(tensors)


def from_bytes(data: bytes, labels: tuple[str, ...], hyper: HyperParameters) -> Prior:
    """Decode what `to_bytes` wrote.

    Raises:
        ValueError: a tensor is missing, of the wrong shape or not finite.
    """
    try:
        tensors = safetensors.numpy.load(data)
    except safetensors.SafetensorError as e:
        raise ValueError(f"not a prior: {e}") from e
    missing = [name for name in TENSORS if name not in tensors]
    if missing:
        raise ValueError(f"the prior lacks {', '.join(missing)}")
    k, d, p = len(labels), tensors["generic_weight"].shape[-1], tensors["means"].shape[-1]
    if p > d:
        raise ValueError(f"the prior's class means have {p} features, more than the {d} of the generic head")
    shapes: dict[str, tuple[int, ...]] = {"generic_weight": (k, d), "generic_bias": (k,), "means": (k, p)}
    placed = [f"placements.{name}" for name in PLACED if f"placements.{name}" in tensors]
    if placed:
        if len(placed) < len(PLACED):
            raise ValueError(f"the prior holds {', '.join(placed)} but not all of {', '.join(PLACED)}")
        m = tensors["placements.log_weight"].shape[0]
        shapes |= dict.fromkeys(placed, (m, p, p))
        shapes |= {"placements.means": (m, k, p), "placements.log_weight": (m,)}
    extra = [name for name in (GAIN, CORRELATION) if name in tensors]
    shapes |= {GAIN: (p,), CORRELATION: (k, k)}
    for name in (*TENSORS, *placed, *extra):
        want = shapes.get(name, (p, p))
        if tensors[name].shape != want:
            raise ValueError(f"the prior's {name} has shape {tensors[name].shape}; {want} was expected")
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"the prior's {name} holds values that are not finite")
    correlation = tensors.get(CORRELATION)
    if correlation is not None and not _correlates(correlation):
        raise ValueError("the prior's correlation is not one: symmetric, 1 on the diagonal, no eigenvalue below 0")
    arrays: dict[str, Any] = {name: value.astype(np.float64) for name, value in tensors.items()}
    return Prior(
        labels=labels,
        hyper=hyper,
        placements=Placements(**{name: arrays[f"placements.{name}"] for name in PLACED}) if placed else None,
        gain=arrays.get(GAIN),
        correlation=arrays.get(CORRELATION),
        base=None,
        **{name: arrays[name] for name in TENSORS},
    )


def _correlates(matrix: Array) -> bool:
    """Whether a matrix is a correlation, but for rounding."""
    return bool(
        np.allclose(matrix, matrix.T, atol=1e-9)
        and np.allclose(np.diag(matrix), 1.0, atol=1e-9)
        and np.linalg.eigvalsh(matrix).min() >= -1e-9
    )
