"""Scores of predictions, by window and by user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.heads.scores import calibration_error, macro_f1

VOTES = 10
"""Windows of a majority vote."""
REJECT_BELOW = 0.5
REST = ("neutral", "rest", "no_motion", "no motion", "relax")


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one user's windows; all fractions.

    `voted`: accuracy after a majority vote over the last 10 windows of a recording; `active_error`: windows for which a
    wrong class other than rest is decided; `rejected`: windows whose probability is below 0.5, `accepted`: accuracy of
    the others; `calibration_error`: expected calibration error over 10 bins (Guo et al. 2017).
    """

    accuracy: float
    balanced: float
    macro_f1: float
    voted: float
    active_error: float
    rejected: float
    accepted: float
    calibration_error: float


def score(
    probabilities: NDArray[np.floating],
    y: NDArray[np.integer],
    recording: NDArray[np.integer],
    labels: Sequence[str],
) -> Scores:
    """Score probabilities `(n, K)` of windows in time order against labels `(n,)`."""
    said, top = probabilities.argmax(1), probabilities.max(1)
    hit = said == y
    accepted = top >= REJECT_BELOW
    rest = next((i for i, name in enumerate(labels) if name.lower() in REST), -1)
    return Scores(
        accuracy=float(hit.mean()),
        balanced=float(np.mean([hit[y == c].mean() for c in np.unique(y)])),
        macro_f1=macro_f1(said, y),
        voted=float((voted(said, recording, len(labels)) == y).mean()),
        active_error=float((~hit & (said != rest)).mean()),
        rejected=float((~accepted).mean()),
        accepted=float(hit[accepted].mean()) if accepted.any() else float("nan"),
        calibration_error=calibration_error(probabilities, y),
    )


def voted(said: NDArray[np.integer], recording: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Majority of the last `VOTES` decisions of the same recording; ties go to the latest of the tied classes."""
    one_hot = np.eye(classes)[said]
    result = np.empty(len(said), np.int64)
    for r in np.unique(recording):
        where = np.flatnonzero(recording == r)
        total = np.cumsum(one_hot[where], 0)
        total[VOTES:] = total[VOTES:] - total[:-VOTES]
        latest = np.maximum.accumulate(np.where(one_hot[where] > 0, np.arange(len(where))[:, None], -1), 0)
        result[where] = (total + 1e-6 * (latest + 1) / len(where)).argmax(1)
    return result


def mean_scores(several: Sequence[Scores]) -> Scores:
    """Mean of a user's test sets."""
    return Scores(*(float(np.mean([getattr(s, f.name) for s in several])) for f in fields(Scores)))


@dataclass(frozen=True, slots=True)
class Summary:
    """One method in one condition over users: means and spread of accuracy, the worst user, who is below generic."""

    mean: Scores
    sd: float
    worst: float
    worst_user: str
    harmed: tuple[str, ...]
    harmed_by_a_point: tuple[str, ...]
    users: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def summarise(by_user: dict[str, Scores], generic: dict[str, Scores]) -> Summary:
    """Summarise a method over users, beside the generic head of the same users."""
    names = list(by_user)
    accuracy = np.array([by_user[n].accuracy for n in names])
    gain = accuracy - np.array([generic[n].accuracy for n in names])
    worst = int(accuracy.argmin())
    return Summary(
        mean_scores(list(by_user.values())),
        float(accuracy.std(ddof=1)) if len(names) > 1 else 0.0,
        float(accuracy[worst]),
        names[worst],
        tuple(n for n, g in zip(names, gain, strict=True) if g < 0),
        tuple(n for n, g in zip(names, gain, strict=True) if g < -0.01),
        len(names),
    )
