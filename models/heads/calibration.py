"""Calibration: labelled features in, a guarded personal head out. Pure; what is stored is the caller's matter."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
    """

    head: Head | None
    candidate: Head
    method: str
    statistics: Statistics
    verdict: Verdict
    warnings: tuple[str, ...]
    seconds: dict[str, float]


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
    z64: Array = np.asarray(z, np.float64)
    fitted_in = z64[:, : prior.personal]
    base = before if before is not None else Statistics.empty(prior.classes, prior.personal)
    first = max(base.repetitions, default=-1) + 1
    repetition = np.unique(repetition, return_inverse=True)[1]
    new = Statistics.of(fitted_in, y, repetition + first, prior.classes)
    again = repeated(base, new)
    for later, earlier in again.items():
        # Left in, the earlier copy would be in the fit that judges the later one.
        shown = repetition + first == later
        base = minus(base, Statistics.of(fitted_in[shown], y[shown], np.full(int(shown.sum()), earlier), prior.classes))
    whole = base + new
    _check(whole, base, method, prior)

    begin = time.perf_counter()
    # Once for all folds: a choice among a few placements, from all class means, cannot fit the held-out windows' noise.
    prior = placed(whole, prior)
    folds = plan_folds(y, repetition, overlap)
    parts = [
        minus(whole, Statistics.of(fitted_in[f.removed], y[f.removed], repetition[f.removed] + first, prior.classes))
        for f in folds
    ]

    def held_logits(name: str) -> Array:
        fits = (_fit(name, part, prior, z64[~f.removed], y[~f.removed]) for f, part in zip(folds, parts, strict=True))
        return np.concatenate([head.logits(z64[f.scored]) for head, f in zip(fits, folds, strict=True)])

    labels = np.concatenate([y[f.scored] for f in folds]) if folds else np.empty(0, np.int64)
    chosen, logits, temperature = _choose(method, labels, held_logits)
    evaluated = time.perf_counter()
    candidate = _fit(chosen, whole, prior, z64, y).scaled(temperature)
    fitted = time.perf_counter()

    doubts = _warnings(whole, prior)
    windows = float(whole.n[whole.seen].mean())
    repetitions = float(whole.repetitions_seen[whole.seen].mean())
    shared = shared_head(prior)
    if (refusal := unseen_classes(whole, prior)) is not None:
        verdict = refusal
    elif folds:
        held = _held_out(folds, z64, y, shared, logits / temperature, previous)
        verdict = judge_held_out(held, prior, windows, repetitions, margin)
    else:
        verdict = judge_by_population(prior, windows, repetitions, doubts)
    head = blend(shared, candidate, verdict.weight) if verdict.weight else None
    warnings = (*doubts, *_sent_before(again))
    seconds = {"fit": fitted - evaluated, "evaluate": time.perf_counter() - fitted + evaluated - begin}
    return Calibration(head, candidate, chosen, whole.merged_to(MAX_REPETITIONS), verdict, warnings, seconds)


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


def _check(whole: Statistics, base: Statistics, method: str, prior: Prior) -> None:
    if method not in METHODS:
        raise CalibrationError(f"method {method!r} is not known; the methods are {', '.join(METHODS)}")
    if whole.seen.sum() < 2:
        only = prior.labels[int(whole.seen.argmax())]
        raise CalibrationError(f"all windows are labelled {only!r}; a head needs windows of at least two classes")
    if method == "logistic" and base.n.sum():
        raise CalibrationError(
            "method 'logistic' needs the features of earlier calls, and only their statistics were retained; "
            "send all windows in one call with mode 'replace', or use 'map'"
        )


def _fit(name: str, stats: Statistics, prior: Prior, z: Array, y: NDArray[np.integer]) -> Head:
    return fit_logistic(z, y, prior) if name == "logistic" else FITS[name](stats, prior)


def _choose(method: str, y: NDArray[np.integer], held_logits: Callable[[str], Array]) -> tuple[str, Array, float]:
    """Resolve `auto` and the temperature by held-out log-loss; with nothing held out, `map` as the bundle has it."""
    names = tuple(FITS) if method == "auto" else (method,)
    if not len(y):
        return ("map" if method == "auto" else method), np.empty((0, 0)), 1.0
    best: tuple[float, str, Array, float] | None = None
    for name in names:
        logits = held_logits(name)
        for t in TEMPERATURES:
            loss = float(log_loss(logits / t, y).mean())
            if best is None or loss < best[0]:
                best = (loss, name, logits, t)
    assert best is not None
    return best[1:]


def _warnings(stats: Statistics, prior: Prior) -> tuple[str, ...]:
    found = [_swap_text(cycle) for cycle in swapped_labels(stats, prior)]
    distance = off_distribution(stats, prior)
    if distance is not None:
        found.append(
            f"the windows lie {distance:.1f} times as far from the population as users usually do: "
            "is it the same sensor, unit, scale and electrode order as the model's?"
        )
    return tuple(found)
