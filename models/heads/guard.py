"""The guard against negative transfer: held-out scores, and what may be served because of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.heads.folds import HeldOut, Score, score, standard_error
from models.heads.label_noise import Trust
from models.heads.prior import Partial, Prior
from models.heads.transfer import Transfer, expected, measured

__all__ = [
    "RECORDED",
    "Score",
    "Shots",
    "Verdict",
    "judge_by_population",
    "judge_held_out",
    "judge_partial",
    "not_recorded",
]

RECORDED = "map"
"""The method whose heads the population's record is of."""

BLEND_WEIGHTS = (0.25, 0.5, 0.75)
LEGIBLE, CLEARLY_LEGIBLE = 0.22, 0.42
"""What is left of a difference in accuracy under wrong labels, 1 − wrong·K/(K − 1), below which nothing tells the right
labels from the wrong ones; and below which a gain must be a whole standard error, else half of one."""
FLOOR_SLACK = 0.10
"""A calibration is trusted down to this far below the worst left-out population user."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the guard decided, with the numbers and the words.

    `outcome` is `promoted`, `blended`, `kept` or `insufficient`; `weight` is the share of the personal head in what may
    be served (0 for `kept` and `insufficient`); `evidence` is `held_out` or `population`. `remember`: whether later
    updates may add to these windows; not to ones that contradict each other, or the active head. `transfer`: what the
    personal head does to the user beside the shared one; None where nothing tells. `lean`: added to the logits of
    labels that were not shown.
    """

    outcome: str
    evidence: str
    weight: float
    reason: str
    remember: bool = True
    shared: Score | None = None
    previous: Score | None = None
    candidate: Score | None = None
    transfer: Transfer | None = None
    lean: float = 0.0


@dataclass(frozen=True, slots=True)
class Shots:
    """How much a calibration rests on: windows a class and repetitions, on average over the classes shown."""

    windows: float
    repetitions: float


def judge_held_out(
    held: HeldOut, prior: Prior, shots: Shots, margin: float = 0.0, trust: Trust | None = None
) -> Verdict:
    """Decide on held-out scores: promote, blend or keep.

    Where many labels contradict the others (`trust.noticed`) a head is promoted on a gain beyond chance only and never
    blended, and not at all where most labels are wrong: then nothing tells the right ones. The same holds for a
    calibration whose labels agree with each other less than any left-out population user's did.
    """
    case = _Case(held, prior, margin)
    if (refusal := case.against_active(trust) or case.against_known(prior.known)) is not None:
        return refusal
    record = prior.evidence_for(shots.windows, shots.repetitions)
    if trust is not None and trust.noticed:
        least = max(record.floor - 2 * FLOOR_SLACK if record else 0.0, 1.5 / prior.classes)
        # What a head that is right so often agrees with labels of which so many are wrong.
        floor = (1 - trust.wrong) * least + trust.wrong * (1 - least) / (prior.classes - 1)
        return case.below_floor(floor) if case.candidate.accuracy < floor else case.contradicting(trust.wrong)
    floor = max(record.floor - FLOOR_SLACK if record else 0.0, 1.5 / prior.classes)
    return case.below_floor(floor) if case.candidate.accuracy < floor else case.sound()


class _Case:
    """The scores of one calibration's heads, and the verdicts that they allow."""

    def __init__(self, held: HeldOut, prior: Prior, margin: float) -> None:
        self.held, self.margin = held, margin
        # The shared head cannot say labels of the user's own: a share of it would leave the rest of the head mute, too.
        self.blends = () if prior.own else BLEND_WEIGHTS
        self.shared, self.candidate = score(held.shared, held), score(held.candidate, held)
        self.beside = held.beside_previous()
        self.previous = None
        if self.beside is not None and self.beside.previous is not None:
            self.previous = score(self.beside.previous, self.beside)
        self.gain = self.candidate.accuracy - self.shared.accuracy
        self.error = standard_error(held.candidate, held.shared, held)
        self.transfer = measured(held, self.error)
        self.numbers = (
            f"{self.candidate.accuracy:.1%} against the shared head's {self.shared.accuracy:.1%} "
            f"on {self.candidate.n} held-out windows"
        )

    def verdict(self, outcome: str, weight: float, reason: str, *, remember: bool = True) -> Verdict:
        """Return a verdict with this case's numbers."""
        scores = self.shared, self.previous, self.candidate
        return Verdict(outcome, "held_out", weight, reason, remember, *scores, self.transfer)

    def against_active(self, trust: Trust | None) -> Verdict | None:
        """Refuse a head that is worse than the active one; by a hair if labels contradict each other."""
        if self.previous is None or self.beside is None or self.beside.previous is None:
            return None
        candidate = score(self.beside.candidate, self.beside)
        loss = self.previous.accuracy - candidate.accuracy
        allowed = max(2 * standard_error(self.beside.previous, self.beside.candidate, self.beside), self.margin)
        if loss <= (0.0 if trust is not None and trust.noticed else allowed):
            return None
        text = (
            f"the active head is better: {self.previous.accuracy:.1%} against the new one's "
            f"{candidate.accuracy:.1%} on {candidate.n} held-out windows"
        )
        return self.verdict("kept", 0.0, text, remember=False)

    def against_known(self, known: int) -> Verdict | None:
        """Refuse a head that learns a user's own labels at the cost of the population's."""
        held = self.held if self.beside is None else self.beside
        old = held.y < known
        if old.all() or not old.any():
            return None
        some = held.only(old)
        before = some.shared if self.beside is None or some.previous is None else some.previous
        loss = float(((before.argmax(1) == some.y).astype(float) - (some.candidate.argmax(1) == some.y)).mean())
        if loss <= max(2 * standard_error(before, some.candidate, some), self.margin):
            return None
        text = f"the labels known before would be decided worse, by {loss:.1%}: {self.numbers}"
        return self.verdict("kept", 0.0, text, remember=False)

    def contradicting(self, wrong: float) -> Verdict:
        """Decide where about `wrong` of the labels contradict the others and were left out."""
        classes = self.held.shared.shape[1]
        legible = 1 - wrong * classes / (classes - 1)
        if legible < LEGIBLE:
            text = f"about {wrong:.0%} of the labels contradict the others: nothing tells which are right"
            return self.verdict("kept", 0.0, text, remember=False)
        needed = self.error * (0.5 if legible >= CLEARLY_LEGIBLE else 1.0)
        if self.gain > max(needed, self.margin):
            return self.verdict(
                "promoted", 1.0, f"personal head better, from the labels that agree with each other: {self.numbers}"
            )
        text = f"about {wrong:.0%} of the labels contradict the others, and the rest shows no gain: {self.numbers}"
        return self.verdict("kept", 0.0, text, remember=False)

    def below_floor(self, floor: float) -> Verdict:
        """Decide where the head does worse on what was held out than any left-out user's did."""
        if self.gain > max(2 * self.error, self.margin):
            text = f"personal head clearly better, though labels disagree: {self.numbers}"
            return self.verdict("promoted", 1.0, text)
        text = f"labels and windows contradict each other: {self.numbers}; {floor:.0%} is the least to be expected"
        return self.verdict("kept", 0.0, text, remember=False)

    def sound(self) -> Verdict:
        """Decide where labels agree with each other."""
        at_least = self.gain >= self.margin
        if self.gain > max(self.error, self.margin) or (at_least and self.candidate.log_loss <= self.shared.log_loss):
            return self.verdict("promoted", 1.0, f"personal head better: {self.numbers}")
        best = _best_blend(self.held, (*self.blends, *((1.0,) if at_least else ())))
        if best == 1.0:
            return self.verdict("promoted", 1.0, f"personal head better: {self.numbers}")
        if best == 0.0:
            return self.verdict("kept", 0.0, f"the personal head is not better: {self.numbers}")
        text = f"a blend of {best:.0%} personal is best on held-out windows; alone {self.numbers}"
        return self.verdict("blended", best, text)


def _best_blend(held: HeldOut, weights: Sequence[float]) -> float:
    """The share of the personal head with the least held-out log-loss; 0 if accuracy falls below the shared head's."""
    scores = {w: score((1 - w) * held.shared + w * held.candidate, held) for w in (0.0, *weights)}
    best = min(scores, key=lambda w: scores[w].log_loss)
    return best if scores[best].accuracy >= scores[0.0].accuracy else 0.0


def judge_partial(held: HeldOut | None, missing: Sequence[str], rule: Partial | None, clean: bool) -> Verdict:
    """Decide where labels are `missing`, of which nothing held out can tell what a head does to them.

    A cautious blend is served if the population's record says that it leaves nobody worse off, if it does better on
    what was held out of the labels shown (`held.candidate` being the blend), and if the input is `clean`: without
    doubts, and without an active head to lose. Else nothing is promoted.
    """
    names = ", ".join(missing)
    if rule is None or held is None or not clean:
        text = (
            f"no windows yet of {names}: a head is promoted when it was shown every label. Send windows of them, too, "
            "or let the head answer no others: among 'shown'"
        )
        return Verdict("insufficient", "population", 0.0, text)
    shared, blend = score(held.shared, held), score(held.candidate, held)
    base = Verdict("insufficient", "population", 0.0, "", shared=shared, candidate=blend, transfer=measured(held))
    numbers = f"{blend.accuracy:.1%} against the shared head's {shared.accuracy:.1%} on {blend.n} held-out windows"
    if blend.accuracy <= shared.accuracy:
        text = f"no windows yet of {names}, and a cautious blend does no better on the labels shown: {numbers}"
        return replace(base, reason=text)
    text = (
        f"no windows yet of {names}: a cautious blend, which left none of {rule.users} left-out users worse on labels "
        f"not shown ({rule.gain_unseen:+.1%} on average, {rule.worst_unseen:+.1%} at worst); on those shown {numbers}"
    )
    return replace(base, outcome="blended", weight=rule.weight, reason=text, lean=rule.lean)


def not_recorded(method: str) -> Verdict:
    """Return the verdict on a method of which the population has no record, where nothing is held out."""
    text = (
        f"nothing is held out, and what so few windows did for others is known of method {RECORDED!r} only, not of "
        f"{method!r}: send two repetitions a class"
    )
    return Verdict("insufficient", "population", 0.0, text)


def judge_by_population(prior: Prior, shots: Shots, warnings: Sequence[str]) -> Verdict:
    """Decide without anything held out: on what the same number of windows did for left-out population users."""
    record = prior.strongest_evidence_for(shots.windows, shots.repetitions)
    if record is None and prior.hyper.pooled:
        text = (
            "the model's population has no users, so only windows left out tell whether a head helps: send two or more "
            "repetitions (of images and texts: number each shot), and each is left out in turn"
        )
        return Verdict("insufficient", "population", 0.0, text)
    if record is None:
        text = "fewer labelled windows than the population's record begins with"
        return Verdict("insufficient", "population", 0.0, text)
    transfer = expected(record)
    if warnings:
        text = "a warning on the input needs held-out evidence: send two repetitions a class"
        return Verdict("insufficient", "population", 0.0, text, transfer=transfer)
    text = (
        f"{record.windows} windows a class gained {record.gain:+.1%} (at least {record.lower:+.1%}, "
        f"a one-sided 95 % bound) for {record.users} left-out users"
    )
    if record.lower > 0:
        return Verdict("promoted", "population", 1.0, text, transfer=transfer)
    return Verdict("insufficient", "population", 0.0, f"{text}: too little to promote unseen", transfer=transfer)
