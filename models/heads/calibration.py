"""Calibration: labelled features in, a guarded personal head out. Pure; what is stored is the caller's matter."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.heads.doubts import doubts, turn_text
from models.heads.fit import FITS, placement_of, without
from models.heads.folds import Fold, HeldOut, plan_folds
from models.heads.guard import Shots, Verdict, judge_by_population, judge_held_out, judge_partial
from models.heads.head import Head, blend, leaning, log_loss
from models.heads.inputs import inspect
from models.heads.label_noise import Trust
from models.heads.logistic import fit_logistic
from models.heads.prior import Prior
from models.heads.shown import Shown, together
from models.heads.statistics import Statistics

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
    x: NDArray[np.generic] | None = None,
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
        x: the raw windows `(n, C, T)`, to warn of flat and clipped channels.

    Raises:
        CalibrationError: one class only, or a method that needs features where only statistics were kept.
    """
    started = time.perf_counter()
    shown = together(prior, np.asarray(z, np.float64), y, repetition, before)
    _check(shown, method, prior)
    begin = time.perf_counter()
    # Once for all folds: a choice among a few placements, from all class means, cannot fit the held-out windows' noise.
    placement, placements = placement_of(shown.whole, prior), 0 if prior.placements is None else len(prior.placements)
    population, known = (prior.base or prior).at(placement), prior.known
    prior = prior.at(placement)
    folds = plan_folds(shown.y, shown.repetition, overlap)
    mute = ~shown.whole.seen if only_shown else np.zeros(prior.classes, bool)
    trust = shown.trust(prior) if folds else Trust(np.ones(len(y), bool), 0.0, False)
    whole = _Part(shown.only(trust.kept) if trust.noticed else shown.whole, trust.kept)
    chosen, logits, temperature = _choose(method, shown, folds, trust, prior, mute)
    evaluated = time.perf_counter()
    candidate = _fit(chosen, whole, shown, prior, mute).scaled(temperature)
    fitted = time.perf_counter()
    witness = _shared_logits(shown, trust, prior)[:known, :known]
    looks = doubts(whole.statistics.first(known), population, witness, shown.earlier.first(known))
    held = _held_out(folds, shown, shared_head(prior), logits / temperature, previous) if folds else None
    verdict = _judge(whole.statistics, held, trust, prior, looks.against, margin, only_shown=only_shown)
    head = blend(shared_head(prior), candidate, verdict.weight) if verdict.weight else None
    if head is not None and verdict.lean:
        head = leaning(head, ~whole.statistics.seen, verdict.lean)
    turn = (turn_text(placement, placements),) if placement else ()
    seen = _inspected(x, shown, population)
    warnings = (*looks.against, *looks.beside, *seen, *turn, *_contradictions(trust), *_sent_before(shown.again))
    seconds = {
        "fit": fitted - evaluated + begin - started,
        "evaluate": time.perf_counter() - fitted + evaluated - begin,
    }
    kept = whole.statistics.merged_to(MAX_REPETITIONS)
    told = held if only_shown or whole.statistics.seen[:known].all() else None
    return Calibration(head, candidate, chosen, kept, verdict, warnings, seconds, told, temperature)


@dataclass(frozen=True, slots=True)
class _Part:
    """Windows that a head is fitted from: their statistics with all earlier ones, and which of this call's they are."""

    statistics: Statistics
    windows: NDArray[np.bool_]


def _rest(shown: Shown, fold: Fold, trust: Trust, prior: Prior) -> _Part:
    """What a fold leaves; where labels contradict each other, they are sorted out anew without the fold's."""
    rest = ~fold.removed
    if not trust.noticed:
        return _Part(shown.without(fold), rest)
    kept = shown.trust(prior, rest).kept
    return _Part(shown.only(kept), kept)


def _judge(
    whole: Statistics,
    held: HeldOut | None,
    trust: Trust,
    prior: Prior,
    against: tuple[str, ...],
    margin: float,
    *,
    only_shown: bool,
) -> Verdict:
    """Decide by the held-out windows; without any, by what others gained."""
    shots = Shots(float(whole.n[whole.seen].mean()), float(whole.repetitions_seen[whole.seen].mean()))
    known = whole.seen[: prior.known]
    if not only_shown and not known.all():
        missing = [label for label, seen in zip(prior.labels, known, strict=False) if not seen]
        # A share of the shared head would leave labels of the user's own unsaid.
        rule = None if prior.own else prior.hyper.partial
        clean = not against and not trust.noticed
        if rule is not None and held is not None:
            mixed = (1 - rule.weight) * held.shared + rule.weight * held.candidate + rule.lean * ~whole.seen
            held, clean = replace(held, candidate=mixed), clean and held.previous is None
        return judge_partial(held, missing, rule, clean)
    if held is None:
        return judge_by_population(prior, shots, against)
    return judge_held_out(held, prior, shots, margin, trust)


def _sent_before(again: dict[int, int]) -> tuple[str, ...]:
    if not again:
        return ()
    return (f"{len(again)} of the repetitions were sent before; each counts once",)


def _held_out(folds: Sequence[Fold], shown: Shown, shared: Head, candidate: Array, previous: Head | None) -> HeldOut:
    """Gather the folds' scored windows, in the order of the candidate's logits; a block is a class in a fold."""
    order = np.concatenate([np.flatnonzero(f.scored) for f in folds])
    fold = np.repeat(np.arange(len(folds)), [int(f.scored.sum()) for f in folds])
    z, y = shown.z[order], shown.y[order]
    block = fold * shown.whole.classes + y
    earlier = None if previous is None else previous.widened(shown.whole.classes).logits(z)
    repetitions = len(np.unique(shown.repetition[order]))
    return HeldOut(y, block, len(folds), shared.logits(z), candidate, earlier, repetitions)


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
    else:
        head = FITS[name](part.statistics, prior)
    return without(head, mute) if mute.any() else head


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
    # How sure a head may be is not learned from labels that are wrong.
    sound = trust.kept[order] if trust.kept[order].any() else np.ones(len(order), bool)
    best: tuple[float, str, Array, float] | None = None
    for name in names:
        heads = [_fit(name, part, shown, prior, mute) for part in parts]
        logits = np.concatenate([head.logits(shown.z[f.scored]) for head, f in zip(heads, folds, strict=True)])
        for t in TEMPERATURES:
            loss = float(log_loss(logits[sound] / t, shown.y[order][sound]).mean())
            if best is None or loss < best[0]:
                best = (loss, name, logits, t)
    assert best is not None
    return best[1:]


def _shared_logits(shown: Shown, trust: Trust, prior: Prior) -> Array:
    """Mean logits `(K, K)` of the shared head over the windows of each label in this call; NaN where there are none."""
    found = np.full((prior.classes, prior.classes), np.nan)
    logits = shared_head(prior).logits(shown.z)
    for c in np.unique(shown.y[trust.kept]):
        found[c] = logits[trust.kept & (shown.y == c)].mean(0)
    return found


def _inspected(x: NDArray[np.generic] | None, shown: Shown, population: Prior) -> tuple[str, ...]:
    """Warn of windows, but for those of labels that are the user's own: the population has none like them."""
    familiar = shown.y < population.classes
    return inspect(None if x is None else x[familiar], shown.z[familiar], population).warnings


def _contradictions(trust: Trust) -> tuple[str, ...]:
    if not trust.noticed:
        return ()
    return (
        f"about {trust.wrong:.0%} of the labels contradict the others; "
        f"{int((~trust.kept).sum())} of {len(trust.kept)} windows were left out",
    )
