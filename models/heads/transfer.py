"""Whether a personal head helps or harms its user beside the shared one: a word, a gain and its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.heads.folds import HeldOut, standard_error
from models.heads.prior import Evidence


@dataclass(frozen=True, slots=True)
class Transfer:
    """The gain in accuracy of a personal head over the shared one, in [−1, 1], and its two-sided 95 % interval.

    `verdict`: `positive` where the whole interval is above 0, `negative` where it is below, else `neutral`.
    `claim`: in words, what the interval speaks of: fewer repetitions allow a smaller claim.
    """

    verdict: str
    gain: float
    low: float
    high: float
    claim: str


def measured(held: HeldOut, error: float | None = None) -> Transfer:
    """Classify by held-out windows; the interval is clustered by block, for a block errs as one.

    `error`: the gain's standard error, where it is known already.
    """
    hits = (held.candidate.argmax(1) == held.y).astype(float) - (held.shared.argmax(1) == held.y)
    error = standard_error(held.candidate, held.shared, held) if error is None else error
    claim = held_out_claim(held.repetitions)
    degrees = len(np.unique(held.block)) - 1
    reach = student(0.975, degrees) * error if degrees >= 1 else 2.0
    return _classified(float(hits.mean()), reach, claim)


def expected(record: Evidence) -> Transfer:
    """Classify by what as many windows did for left-out people: the interval of their mean, not of this user."""
    degrees = record.users - 1
    reach = (record.gain - record.lower) * student(0.975, degrees) / student(0.95, degrees) if degrees >= 1 else 2.0
    return _classified(record.gain, reach, expected_claim(record.users))


def held_out_claim(repetitions: int) -> str:
    """Say what an interval over held-out windows of so many repetitions speaks of."""
    if repetitions > 1:
        return f"on left-out repetitions, {repetitions} in all, of these recordings"
    return "within one repetition only: record another one to know whether it holds"


def expected_claim(users: int) -> str:
    """Say what an interval over so many left-out people speaks of."""
    return (
        f"expected from {users} other people, not measured on this one: record two repetitions to know "
        "(low and high: two-sided 95 %)"
    )


def classified(gain: float, low: float, high: float, claim: str) -> Transfer:
    """Put a gain and its interval in a word."""
    return Transfer("positive" if low > 0 else "negative" if high < 0 else "neutral", gain, low, high, claim)


def _classified(gain: float, reach: float, claim: str) -> Transfer:
    return classified(gain, max(gain - reach, -1.0), min(gain + reach, 1.0), claim)


def student(probability: float, degrees: int) -> float:
    """Quantile of Student's t for 0.95 or 0.975, to 2 % from three degrees of freedom on.

    Source: the expansion in 1/degrees of Abramowitz & Stegun, 26.7.5.
    """
    z = {0.95: 1.6448536, 0.975: 1.9599640}[probability]
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / float(degrees) ** (i + 1) for i, term in enumerate(terms))
