"""Hyper-parameters of the default head by leave-one-user-out, and the record of what personal heads gained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.heads.fit import fit_map, shared_share
from models.heads.head import Head, log_loss
from models.heads.prior import Evidence, HyperParameters, Prior
from models.heads.statistics import Statistics

__all__ = ["LeftOut", "Trial", "evidence", "trials_of", "tune", "with_settings"]

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Kind = tuple[int, int, bool, bool]
"""Windows a class (0: all), repetitions, whether a class was hidden, whether other sessions were scored."""
GRID: dict[str, tuple[float, ...]] = {
    "persistence": (0.0, 0.25, 0.5, 1.0),
    "repetition": (0.5, 1.0, 2.0, 4.0),
    "between": (0.5, 1.0, 2.0),
    "growth": (0.0, 0.5, 1.0, 1.5),
    "window": (10.0, 30.0, 90.0),
    "shrinkage": (30.0, 100.0, 300.0, 1000.0),
    "offset": (0.0, 0.5, 1.0),
}
SHARED = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
WORTH = 0.006
"""Accuracy (fraction), over the number of people, that a setting must gain to leave its default: less is noise."""
TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.0)


@dataclass(frozen=True, eq=False)
class LeftOut:
    """A person left out: the prior of the others, their features in it `(n, p)`, and the generic logits `(n, K)`."""

    prior: Prior
    z: Array
    y: Labels
    session: Labels
    repetition: Labels
    generic: Array


@dataclass(frozen=True, eq=False)
class Trial:
    """One calibration of a left-out person: statistics of what was shown, and the indices to score.

    `hidden`: a class was not shown. `elsewhere`: scored in other sessions than the one of the calibration.
    """

    person: int
    shot: tuple[int, int]
    stats: Statistics
    scored: NDArray[np.int64]
    hidden: bool = False
    elsewhere: bool = False


def trials_of(number: int, person: LeftOut, shots: Sequence[int] = (1, 5), starts: int = 2) -> list[Trial]:
    """Calibrations of one person: some windows a class of one repetition, or whole repetitions of a session.

    What is left of the session is scored, and apart from it the other sessions: what a sitting has in common must not
    pass for the person. A shot is `(windows a class, repetitions)`; whole repetitions have windows 0.
    """
    repetition, usable = _repetitions(person)
    ids = np.unique(repetition[usable])
    classes = person.prior.classes
    found: list[Trial] = []

    def add(shot: tuple[int, int], shown: NDArray[np.bool_], kept: NDArray[np.bool_], hidden: bool = False) -> None:
        """Add the calibration with the windows `shown`, scored on `kept`: in its own session, and in others."""
        if len(np.unique(person.y[shown])) < 2:
            return
        stats = Statistics.of(person.z[shown], person.y[shown], repetition[shown], classes)
        same = person.session == person.session[shown][0]
        for elsewhere, where in ((False, same), (True, ~same)):
            scored = np.flatnonzero(kept & usable & where)
            if len(scored):
                found.append(Trial(number, shot, stats, scored, hidden, elsewhere))

    for start in ids[:: max(1, len(ids) // starts)][:starts]:
        here = usable & (repetition == start)
        for w in shots:
            shown = np.zeros(len(here), bool)
            for c in np.unique(person.y[here]):
                own = np.flatnonzero(here & (person.y == c))
                middle = min(len(own) // 2, max(len(own) - w, 0))
                shown[own[middle : middle + w]] = True
            add((w, 1), shown, repetition != start)
        hide = here & (person.y != number % classes)
        add((0, 1), hide, repetition != start, hidden=True)
        sitting = np.unique(repetition[usable & (person.session == person.session[here][0])])
        order = np.roll(sitting, -int(np.flatnonzero(sitting == start)[0]))
        last = len(order) if len(order) < len(ids) else len(order) - 1
        for r in range(1, last + 1):
            shown = usable & np.isin(repetition, order[:r])
            add((0, r), shown, ~np.isin(repetition, order[:r]))
    return found


def _repetitions(person: LeftOut) -> tuple[Labels, NDArray[np.bool_]]:
    """Repetition ids and which windows to use; the only repetition is cut into halves, with a gap between them."""
    if len(np.unique(person.repetition)) > 1:
        return person.repetition, np.ones(len(person.y), bool)
    half, usable = np.zeros(len(person.y), np.int64), np.ones(len(person.y), bool)
    for c in np.unique(person.y):
        own = np.flatnonzero(person.y == c)
        half[own[len(own) // 2 :]] = 1
        gap = max(1, len(own) // 10)
        usable[own[len(own) // 2 - gap : len(own) // 2]] = False
    return half, usable


def tune(people: Sequence[LeftOut], trials: Sequence[Trial], start: HyperParameters) -> HyperParameters:
    """Choose each setting in turn by mean accuracy over kinds of calibration, then the temperature by log-loss."""
    scored = [_thinned(t) for t in trials]
    hyper, best = start, _score(people, scored, start)
    for name, values in GRID.items():
        hyper, best = _improved(people, scored, hyper, best, name, values)
    hyper = hyper.model_copy(update={"temperature": _temperature(people, scored, hyper)})
    return _improved(people, scored, hyper, best, "shared", SHARED)[0]


def _improved(
    people: Sequence[LeftOut],
    trials: Sequence[Trial],
    hyper: HyperParameters,
    best: float,
    name: str,
    values: Sequence[float],
) -> tuple[HyperParameters, float]:
    before = getattr(hyper, name)
    for value in values:
        trial = hyper.model_copy(update={name: value})
        if value != before and (score := _score(people, trials, trial)) > best + WORTH / len(people):
            best, hyper = score, trial
    return hyper, best


def _temperature(people: Sequence[LeftOut], trials: Sequence[Trial], hyper: HyperParameters) -> float:
    """The temperature of the least log-loss after one repetition."""
    single = [t for t in trials if t.shot == (0, 1) and not t.hidden] or trials
    judged = [(t, people[t.person]) for t in single]
    logits = [(_head(people, t, hyper).logits(person.z[t.scored]), person.y[t.scored]) for t, person in judged]
    losses = {k: float(np.mean([log_loss(v / k, y).mean() for v, y in logits])) for k in TEMPERATURES}
    return hyper.temperature * min(losses, key=lambda k: losses[k])


def _thinned(trial: Trial) -> Trial:
    return replace(trial, scored=trial.scored[::3])


def _head(people: Sequence[LeftOut], trial: Trial, hyper: HyperParameters, *, place: bool = False) -> Head:
    prior = people[trial.person].prior
    return fit_map(trial.stats, with_settings(prior if place else prior.at(0), hyper))


def with_settings(prior: Prior, hyper: HyperParameters) -> Prior:
    """Return a prior with other settings, for heads in the personal features alone.

    The generic logits, which are of an encoder that did not see the person, are added apart.
    """
    hyper = hyper.model_copy(update={"shared": 0.0})
    held: tuple[HyperParameters, Prior] | None = prior.memo.get("tuned")
    if held is None or held[0] != hyper:  # many trials come with one setting, whose factors are worth keeping
        p = prior.personal
        held = hyper, replace(prior, hyper=hyper, generic_weight=prior.generic_weight[:, :p])
        prior.memo["tuned"] = held
    return held[1]


def accuracies(
    people: Sequence[LeftOut], trials: Sequence[Trial], hyper: HyperParameters, *, place: bool
) -> dict[Kind, dict[int, list[tuple[float, float]]]]:
    """Accuracy of the personal and of the generic head, by kind of calibration and by person."""
    found: dict[Kind, dict[int, list[tuple[float, float]]]] = {}
    for t in trials:
        person = people[t.person]
        generic, y = person.generic[t.scored], person.y[t.scored]
        logits = _head(people, t, hyper, place=place).logits(person.z[t.scored])
        logits = logits + shared_share(t.stats, hyper) * generic
        pair = (float((logits.argmax(1) == y).mean()), float((generic.argmax(1) == y).mean()))
        found.setdefault((*t.shot, t.hidden, t.elsewhere), {}).setdefault(t.person, []).append(pair)
    return found


def _score(people: Sequence[LeftOut], trials: Sequence[Trial], hyper: HyperParameters) -> float:
    table = accuracies(people, trials, hyper, place=False)
    return float(np.mean([np.mean([np.mean([a for a, _ in own]) for own in kind.values()]) for kind in table.values()]))


def evidence(
    people: Sequence[LeftOut], trials: Sequence[Trial], hyper: HyperParameters, thinning: int, *, place: bool
) -> tuple[tuple[Evidence, ...], list[dict[str, float]]]:
    """Return the guard's record of the gain over the generic head by shots, and the same as a table of figures.

    The record counts later windows of the same session and other sessions alike; the table has them apart.
    """
    rows: list[Evidence] = []
    table: list[dict[str, float]] = []
    found = accuracies(people, trials, hyper, place=place)
    for windows, repetitions, hidden, elsewhere in sorted(found):
        kind = found[windows, repetitions, hidden, elsewhere]
        if hidden or len(kind) < 2:
            continue
        own = np.array([np.mean(v, 0) for v in kind.values()])
        table.append({"windows": windows, "repetitions": repetitions, "other_sessions": elsewhere, **_figures(own)})
        other = found.get((windows, repetitions, hidden, True), {})
        if elsewhere and (windows, repetitions, hidden, False) in found:
            continue
        if not elsewhere and other:
            own = np.array([np.mean([np.mean(s[u], 0) for s in (kind, other) if u in s], 0) for u in kind])
        gain = own[:, 0] - own[:, 1]
        sd, users = float(gain.std(ddof=1)), len(gain)
        typical = [t.stats.n[t.stats.seen].mean() for t in trials if t.shot == (windows, repetitions) and not t.hidden]
        # A little below what is usual, so that a user with slightly shorter recordings has a record too.
        shown = windows or max(1, int(0.8 * float(np.median(typical)) * thinning))
        lower = float(gain.mean()) - _one_sided_t(users - 1) * sd / users**0.5
        rows.append(
            Evidence(
                windows=shown,
                repetitions=repetitions,
                users=users,
                gain=float(gain.mean()),
                lower=lower,
                floor=float(own[:, 0].min()),
            )
        )
    return tuple(rows), table


def _figures(own: Array) -> dict[str, float]:
    """Figures of personal and generic accuracy `(users, 2)`."""
    gain = own[:, 0] - own[:, 1]
    return {
        "users": len(gain),
        "personal": float(own[:, 0].mean()),
        "personal_sd": float(own[:, 0].std()),
        "personal_worst": float(own[:, 0].min()),
        "generic": float(own[:, 1].mean()),
        "below_generic": int((gain < 0).sum()),
        "gain": float(gain.mean()),
        "gain_sd": float(gain.std(ddof=1)),
    }


def _one_sided_t(df: int) -> float:
    """The 95 % quantile of Student's t, to two per cent from two degrees of freedom on."""
    return 1.645 + 1.52 / df + 1.9 / df**2
