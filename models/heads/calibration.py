"""Calibration: labelled features in, a guarded personal head out. Pure; what is stored is the caller's matter."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.fit import FITS, placed
from models.heads.guard import (
    Fold,
    HeldOut,
    Verdict,
    judge_by_population,
    judge_held_out,
    off_distribution,
    plan_folds,
    swapped_labels,
    unseen_classes,
)
from models.heads.head import Head, blend, log_loss
from models.heads.logistic import fit_logistic
from models.heads.prior import Prior
from models.heads.statistics import Statistics, minus, repeated

Array = NDArray[np.float64]
METHODS = ("auto", "map", "lda", "ncm", "ridge", "logistic")
TEMPERATURES = (1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
"""Tried on held-out windows, on top of the bundle's; never below 1: few windows make no head more certain."""
MAX_REPETITIONS = 8
"""Repetitions kept apart in a user's statistics; older ones are merged."""


class CalibrationError(ValueError):
    """The samples are well formed but nothing can be fitted from them."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What one calibration produced.

    Attributes:
        head: what may be served, or None when the guard keeps what was there.
        candidate: the personal head itself, unblended.
        method: the method fitted (`auto` resolved).
        statistics: all the user's windows after this call.
        verdict: the guard's decision.
        warnings: sentences about the input.
        seconds: durations of `fit` and `evaluate`.
        held: logits of the left-out windows, where there are any.
        temperature: of the candidate, on top of the bundle's.
    """

    head: Head | None
    candidate: Head
    method: str
    statistics: Statistics
    verdict: Verdict
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    held: HeldOut | None = None
    temperature: float = 1.0


def shared_head(prior: Prior) -> Head:
    """Return the population's generic head."""
    return Head(prior.generic_weight, prior.generic_bias)


def calibrate(
    prior: Prior,
    z: NDArray[np.floating],
    y: NDArray[np.integer],
    repetition: NDArray[np.integer],
    *,
    before: Statistics | None = None,
    previous: Head | None = None,
    method: str = "map",
    overlap: int = 0,
    margin: float = 0.0,
) -> Calibration:
    """Fit a personal head on labelled features and judge it.

    Args:
        prior: the bundle's population prior. Where it knows several placements of the sensor, the likeliest is used.
        z: features `(n, d)`, in time order within a repetition.
        y: labels `(n,)`, indices into `prior.labels`.
        repetition: repetition ids `(n,)`; new ones, whatever ids `before` holds.
        before: statistics of earlier calls to add to, or None to begin anew.
        previous: the user's active personal head, compared with.
        method: one of `METHODS`.
        overlap: how many following windows share samples with a window.
        margin: accuracy gain (fraction) that a promotion needs.

    Raises:
        CalibrationError: one class only, or a method that needs features where only statistics were kept.
    """
    shown = _together(prior, np.asarray(z, np.float64), y, repetition, before)
    _check(shown, method, prior)
    begin = time.perf_counter()
    # Once for all folds: a choice among a few placements, from all class means, cannot fit the held-out windows' noise.
    prior = placed(shown.whole, prior)
    folds = plan_folds(shown.y, shown.repetition, overlap)
    chosen, logits, temperature = _choose(method, shown, folds, prior)
    evaluated = time.perf_counter()
    candidate = _fit(chosen, shown.whole, prior, shown.z, shown.y).scaled(temperature)
    fitted = time.perf_counter()
    doubts = _warnings(shown.whole, prior)
    held = _held_out(folds, shown.z, shown.y, shared_head(prior), logits / temperature, previous) if folds else None
    verdict = _judge(shown, held, prior, doubts, margin)
    head = blend(shared_head(prior), candidate, verdict.weight) if verdict.weight else None
    warnings = (*doubts, *_sent_before(shown.again))
    seconds = {"fit": fitted - evaluated, "evaluate": time.perf_counter() - fitted + evaluated - begin}
    statistics = shown.whole.merged_to(MAX_REPETITIONS)
    return Calibration(head, candidate, chosen, statistics, verdict, warnings, seconds, held, temperature)


@dataclass(frozen=True, slots=True)
class _Shown:
    """The windows of this call, and all of the user's by their statistics.

    Attributes:
        z: features `(n, d)` of this call.
        y: labels `(n,)`.
        repetition: repetition ids `(n,)`, which no earlier call had.
        earlier: statistics of earlier calls, without what this call sends again.
        whole: statistics of all windows.
        again: repetitions that were sent before: their id in this call, and then.
    """

    z: Array
    y: NDArray[np.integer]
    repetition: NDArray[np.integer]
    earlier: Statistics
    whole: Statistics
    again: dict[int, int]

    def without(self, removed: NDArray[np.bool_]) -> Statistics:
        """Statistics of all windows but these of this call."""
        dim, classes = self.whole.dim, self.whole.classes
        z, y, repetition = self.z[removed, :dim], self.y[removed], self.repetition[removed]
        return minus(self.whole, Statistics.of(z, y, repetition, classes))


def _together(
    prior: Prior, z: Array, y: NDArray[np.integer], repetition: NDArray[np.integer], before: Statistics | None
) -> _Shown:
    """Add the windows to what earlier calls brought; what is sent again counts once."""
    fitted_in = z[:, : prior.personal]
    base = before if before is not None else Statistics.empty(prior.classes, prior.personal)
    repetition = np.unique(repetition, return_inverse=True)[1] + max(base.repetitions, default=-1) + 1
    new = Statistics.of(fitted_in, y, repetition, prior.classes)
    again = repeated(base, new)
    for later, earlier in again.items():
        # Left in, the earlier copy would be in the fit that judges the later one.
        mask = repetition == later
        base = minus(base, Statistics.of(fitted_in[mask], y[mask], np.full(int(mask.sum()), earlier), prior.classes))
    return _Shown(z, y, repetition, base, base + new, again)


def _judge(shown: _Shown, held: HeldOut | None, prior: Prior, doubts: tuple[str, ...], margin: float) -> Verdict:
    """Decide by the held-out windows; without any, by what others gained."""
    whole = shown.whole
    windows = float(whole.n[whole.seen].mean())
    repetitions = float(whole.repetitions_seen[whole.seen].mean())
    if (refusal := unseen_classes(whole, prior)) is not None:
        return refusal
    if held is not None:
        return judge_held_out(held, prior, windows, repetitions, margin)
    return judge_by_population(prior, windows, repetitions, doubts)


def _swap_text(cycle: tuple[str, ...]) -> str:
    if len(cycle) == 2:
        a, b = cycle
        return (
            f"windows labelled {a!r} look like the population's {b!r} and the other way round: were the labels swapped?"
        )
    looks = ", ".join(f"{a!r} look like {b!r}" for a, b in zip(cycle, (*cycle[1:], cycle[0]), strict=True))
    return f"compared with the population, windows labelled {looks}: were the labels mixed up?"


def _sent_before(again: dict[int, int]) -> tuple[str, ...]:
    if not again:
        return ()
    return (f"{len(again)} of the repetitions were sent before; each counts once",)


def _held_out(
    folds: Sequence[Fold], z: Array, y: NDArray[np.integer], shared: Head, candidate: Array, previous: Head | None
) -> HeldOut:
    """Gather the folds' scored windows, in the order of the candidate's logits; a block is a class in a fold."""
    order = np.concatenate([np.flatnonzero(f.scored) for f in folds])
    fold = np.repeat(np.arange(len(folds)), [int(f.scored.sum()) for f in folds])
    block = fold * (int(y.max()) + 1) + y[order]
    earlier = None if previous is None else previous.logits(z[order])
    return HeldOut(y[order], block, len(folds), shared.logits(z[order]), candidate, earlier)


def _check(shown: _Shown, method: str, prior: Prior) -> None:
    if method not in METHODS:
        raise CalibrationError(f"method {method!r} is not known; the methods are {', '.join(METHODS)}")
    seen = shown.whole.seen
    if seen.sum() < 2:
        only = prior.labels[int(seen.argmax())]
        raise CalibrationError(f"all windows are labelled {only!r}; a head needs windows of at least two classes")
    if method == "logistic" and shown.earlier.n.sum():
        raise CalibrationError(
            "method 'logistic' needs the features of earlier calls, and only their statistics were retained; "
            "send all windows in one call with mode 'replace', or use 'map'"
        )


def _fit(name: str, stats: Statistics, prior: Prior, z: Array, y: NDArray[np.integer]) -> Head:
    return fit_logistic(z, y, prior) if name == "logistic" else FITS[name](stats, prior)


def _choose(method: str, shown: _Shown, folds: Sequence[Fold], prior: Prior) -> tuple[str, Array, float]:
    """Resolve `auto` and the temperature by held-out log-loss; with nothing held out, `map` as the bundle has it.

    Returns:
        The method, its logits of the folds' scored windows one fold after the other, and the temperature.
    """
    names = tuple(FITS) if method == "auto" else (method,)
    if not folds:
        return ("map" if method == "auto" else method), np.empty((0, 0)), 1.0
    parts = [shown.without(f.removed) for f in folds]
    y = np.concatenate([shown.y[f.scored] for f in folds])
    best: tuple[float, str, Array, float] | None = None
    for name in names:
        logits = _held_logits(name, shown, folds, parts, prior)
        for t in TEMPERATURES:
            loss = float(log_loss(logits / t, y).mean())
            if best is None or loss < best[0]:
                best = (loss, name, logits, t)
    assert best is not None
    return best[1:]


def _held_logits(name: str, shown: _Shown, folds: Sequence[Fold], parts: Sequence[Statistics], prior: Prior) -> Array:
    """Logits of each fold's scored windows by a head fitted on the rest, whose statistics are in `parts`."""
    found = []
    for f, part in zip(folds, parts, strict=True):
        head = _fit(name, part, prior, shown.z[~f.removed], shown.y[~f.removed])
        found.append(head.logits(shown.z[f.scored]))
    return np.concatenate(found)


def _warnings(stats: Statistics, prior: Prior) -> tuple[str, ...]:
    found = [_swap_text(cycle) for cycle in swapped_labels(stats, prior)]
    distance = off_distribution(stats, prior)
    if distance is not None:
        found.append(
            f"the windows lie {distance:.1f} times as far from the population as users usually do: "
            "is it the same sensor, unit, scale and electrode order as the model's?"
        )
    return tuple(found)
