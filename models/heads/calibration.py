"""Calibration: labelled features in, a guarded personal head out. Pure; what is stored is the caller's matter."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from models.heads.doubts import doubts, turn_text
from models.heads.fit import FITS, FITS_FROM_SUMS, placement_of, without
from models.heads.folds import Fold, HeldOut, plan_folds
from models.heads.guard import (
    RECORDED,
    Shots,
    Verdict,
    judge_by_population,
    judge_held_out,
    judge_partial,
    not_recorded,
)
from models.heads.head import Head, blend, leaning, log_losses
from models.heads.inputs import Raw, inspect, those_of
from models.heads.label_noise import Trust
from models.heads.logistic import fit_logistic
from models.heads.prior import Prior
from models.heads.sent import sort_out, window_digests
from models.heads.shown import Shown, merged_before, together
from models.heads.statistics import Statistics, minus
from models.heads.sums import Sums

Array = NDArray[np.float64]
METHODS = ("auto", "map", "lda", "ncm", "ridge", "logistic")
TEMPERATURES = (1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
"""Tried on held-out windows, on top of the bundle's; never below 1: few windows make no head more certain."""
MOST_SCORED, MOST_INSPECTED = 1024, 256
"""Windows that a temperature is chosen by, and that are looked at one by one; of more, every second, third, …."""
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
        seconds: durations of `fit` (with the statistics) and `evaluate`.
        held: logits of the left-out windows, where there are any and every class was shown that the head answers.
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
    floors = np.array(prior.hyper.set_floors) if prior.hyper.set_floors else None
    return Head(prior.generic_weight, prior.generic_bias, floors)


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
    only_shown: bool = False,
    x: Raw | None = None,
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
        only_shown: let the head answer only classes that were shown. Else it is not promoted before all are.
        x: the raw windows `(n, C, T)`, or those of each sensor, to warn of flat and clipped channels.

    Raises:
        CalibrationError: one class only, no new windows, or a method that needs features where only statistics were
            kept.
    """
    started = time.perf_counter()
    values: Array = np.asarray(z, np.float64)
    prints, again, resent = [] if x is None else window_digests(x, y), set[int](), np.zeros(len(y), bool)
    if before is not None and x is not None:
        found = sort_out(before, values, y, repetition, prints, 1 if isinstance(x, np.ndarray) else len(x))
        merged = np.isin(repetition, merged_before(before, x, y, repetition))
        again = set(np.unique(repetition[found.again | merged]).tolist())
        before, new = found.base, found.new & ~merged
        prints, resent = [own for own, some in zip(prints, new, strict=True) if some], found.again[new]
        values, y, repetition, x = values[new], y[new], repetition[new], those_of(x, new)
        if not len(y):
            raise CalibrationError("all these windows were sent before and are in the statistics already: none is new")
    shown = together(prior, values, y, repetition, before, prints, x)
    resent |= np.isin(repetition, list(shown.again))
    _check(shown, method, prior)
    begin = time.perf_counter()
    # Once for all folds: a choice among a few placements, from all class means, cannot fit the held-out windows' noise.
    placement, placements = placement_of(shown.whole, prior), 0 if prior.placements is None else len(prior.placements)
    population, known = (prior.base or prior).at(placement), prior.known
    prior = prior.at(placement)
    folds = plan_folds(shown.y, shown.repetition, overlap)
    mute = ~shown.whole.seen if only_shown else np.zeros(prior.classes, bool)
    trust = shown.trust(prior) if folds else Trust(np.ones(len(y), bool), 0.0, False)
    whole = shown.only(trust.kept) if trust.noticed else shown.whole
    shared = shared_head(prior).logits(shown.z)
    chosen, logits, temperature = _choose(method, shown, folds, trust, prior, mute)
    evaluated = time.perf_counter()
    candidate = _candidate(chosen, _Part(whole, lambda: whole, trust.kept), shown, trust, prior, mute)
    candidate = candidate.scaled(temperature)
    fitted = time.perf_counter()
    witness = _by_label(shared, shown.y, trust, prior.classes)[:known, :known]
    parts = (minus(whole, shown.earlier).first(known), shown.earlier.first(known)) if shown.earlier.n.any() else None
    looks = doubts(whole.first(known), population, witness, parts)
    held = _held_out(folds, shown, shared, logits / temperature, previous, resent) if folds else None
    verdict = _judge(whole, held, trust, prior, looks.against, margin, method=chosen, only_shown=only_shown)
    head = blend(shared_head(prior), candidate, verdict.weight) if verdict.weight else None
    if head is not None and verdict.lean:
        head = leaning(head, ~whole.seen, verdict.lean)
    turn = (turn_text(placement, placements),) if placement else ()
    seen = _inspected(x, shown, population)
    warnings = (
        *looks.against,
        *looks.beside,
        *seen,
        *turn,
        *_contradictions(trust),
        *_sent_before(len(shown.again | again), compared=previous is not None and bool(resent.any())),
    )
    seconds = {
        "fit": fitted - evaluated + begin - started,
        "evaluate": time.perf_counter() - fitted + evaluated - begin,
    }
    kept = whole.merged_to(MAX_REPETITIONS)
    told = held if only_shown or whole.seen[:known].all() else None
    return Calibration(head, candidate, chosen, kept, verdict, warnings, seconds, told, temperature)


@dataclass(frozen=True, slots=True)
class _Part:
    """Windows that a head is fitted from: sums of them and all earlier ones, and which of this call's they are.

    `statistics` makes their second moments by class, which most methods do without.
    """

    sums: Sums
    statistics: Callable[[], Statistics]
    windows: NDArray[np.bool_]


def _rest(shown: Shown, fold: Fold, trust: Trust, prior: Prior) -> _Part:
    """What a fold leaves; where labels contradict each other, they are sorted out anew without the fold's."""
    rest = ~fold.removed
    if not trust.noticed:
        return _Part(shown.rest(fold), partial(shown.without, fold), rest)
    kept = shown.trust(prior, rest).kept
    statistics = shown.only(kept)
    return _Part(statistics, lambda: statistics, kept)


def _judge(
    whole: Statistics,
    held: HeldOut | None,
    trust: Trust,
    prior: Prior,
    against: tuple[str, ...],
    margin: float,
    *,
    method: str,
    only_shown: bool,
) -> Verdict:
    """Decide by the held-out windows; without any, by what others gained."""
    shots = Shots(float(whole.n[whole.seen].mean()), float(whole.repetitions_seen[whole.seen].mean()))
    known = whole.seen[: prior.known]
    if not only_shown and not known.all():
        missing = [label for label, seen in zip(prior.labels, known, strict=False) if not seen]
        # A share of the shared head would leave labels of the user's own unsaid.
        rule = None if prior.own else prior.hyper.partial
        if rule is not None and (known.sum() < rule.shown or shots.repetitions < rule.repetitions):
            rule = None
        clean = not against and not trust.noticed
        if rule is not None and held is not None:
            mixed = (1 - rule.weight) * held.shared + rule.weight * held.candidate + rule.lean * ~whole.seen
            held, clean = replace(held, candidate=mixed), clean and held.previous is None
        return judge_partial(held, missing, rule, clean)
    if held is None:
        return judge_by_population(prior, shots, against) if method == RECORDED else not_recorded(method)
    return judge_held_out(held, prior, shots, margin, trust)


def _sent_before(again: int, *, compared: bool) -> tuple[str, ...]:
    if not again:
        return ()
    told = "; the active head may be fitted on them, and is compared with on the others only" if compared else ""
    return (f"{again} of the repetitions were sent before; each counts once{told}",)


def _held_out(
    folds: Sequence[Fold],
    shown: Shown,
    shared: Array,
    candidate: Array,
    previous: Head | None,
    again: NDArray[np.bool_],
) -> HeldOut:
    """Gather the folds' scored windows, in the order of the candidate's logits; a block is a class in a fold."""
    order = np.concatenate([np.flatnonzero(f.scored) for f in folds])
    fold = np.repeat(np.arange(len(folds)), [int(f.scored.sum()) for f in folds])
    y, classes = shown.y[order], shown.whole.classes
    earlier = None if previous is None else previous.widened(classes).logits(shown.z[order])
    repetitions = len(np.unique(shown.repetition[order]))
    compared = ~again[order] if again.any() else None
    return HeldOut(y, fold * classes + y, len(folds), shared[order], candidate, earlier, repetitions, compared)


def _check(shown: Shown, method: str, prior: Prior) -> None:
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


def _fit(name: str, part: _Part, shown: Shown, prior: Prior, mute: NDArray[np.bool_]) -> Head:
    if name == "logistic":
        head = fit_logistic(shown.z[part.windows], shown.y[part.windows], prior)
    elif name in FITS_FROM_SUMS:
        head = FITS_FROM_SUMS[name](part.sums, prior)
    else:
        head = FITS[name](part.statistics(), prior)
    return without(head, mute) if mute.any() else head


def _candidate(name: str, part: _Part, shown: Shown, trust: Trust, prior: Prior, mute: NDArray[np.bool_]) -> Head:
    """The head of all windows that are trusted; the default one was fitted to tell which are."""
    if name != "map" or trust.noticed or trust.head is None:
        return _fit(name, part, shown, prior, mute)
    return without(trust.head, mute) if mute.any() else trust.head


def _choose(
    method: str,
    shown: Shown,
    folds: Sequence[Fold],
    trust: Trust,
    prior: Prior,
    mute: NDArray[np.bool_],
) -> tuple[str, Array, float]:
    """Resolve `auto` and the temperature by held-out log-loss; with nothing held out, `map` as the bundle has it.

    Returns:
        The method, its logits of the folds' scored windows one fold after the other, and the temperature.
    """
    names = (method,) if method != "auto" else tuple(FITS) if shown.earlier.n.any() else (*FITS, "logistic")
    if not folds:
        return ("map" if method == "auto" else method), np.empty((0, 0)), 1.0
    parts = [_rest(shown, f, trust, prior) for f in folds]
    order = np.concatenate([np.flatnonzero(f.scored) for f in folds])
    # How sure a head may be is not learned from labels that are wrong; and neighbours share samples.
    sound = np.flatnonzero(trust.kept[order]) if trust.kept[order].any() else np.arange(len(order))
    sound = sound[:: -(-len(sound) // MOST_SCORED)]
    y = shown.y[order][sound]
    best: tuple[float, str, Array, float] | None = None
    for name in names:
        heads = [_fit(name, part, shown, prior, mute) for part in parts]
        logits = np.concatenate([head.logits(shown.z[f.scored]) for head, f in zip(heads, folds, strict=True)])
        losses = log_losses(logits[sound], y, np.array(TEMPERATURES))
        least = int(losses.argmin())
        if best is None or losses[least] < best[0]:
            best = (float(losses[least]), name, logits, TEMPERATURES[least])
    assert best is not None
    return best[1:]


def _by_label(logits: Array, y: NDArray[np.integer], trust: Trust, classes: int) -> Array:
    """Mean logits `(K, K)` of the windows of each label; NaN where there are none."""
    if trust.noticed:
        logits, y = logits[trust.kept], y[trust.kept]
    one_of = np.eye(classes)[y]
    with np.errstate(invalid="ignore"):
        return np.asarray(one_of.T @ logits / one_of.sum(0)[:, None])


def _inspected(x: Raw | None, shown: Shown, population: Prior) -> tuple[str, ...]:
    """Warn of windows, some of many, but not of the user's own labels: the population has none like theirs."""
    familiar = np.flatnonzero(shown.y < population.classes)
    familiar = familiar[:: max(1, -(-len(familiar) // MOST_INSPECTED))]
    chosen = np.zeros(len(shown.y), bool)
    chosen[familiar] = True
    return inspect(None if x is None else those_of(x, chosen), shown.z[chosen], population).warnings


def _contradictions(trust: Trust) -> tuple[str, ...]:
    if not trust.noticed:
        return ()
    return (
        f"about {trust.wrong:.0%} of the labels contradict the others; "
        f"{int((~trust.kept).sum())} of {len(trust.kept)} windows were left out",
    )
