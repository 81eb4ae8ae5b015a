"""Guarded adaptation without labels: over a batch of windows, or causally while predicting.

Both heads are kept. The adapted one may serve only when the stream shows every class, when the labelled windows are
still to be decided as well as before, and when windows that it has not learned from are likelier under it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.adaptation import Anchor, Moved, Passages
from models.heads.head import Head

Array = NDArray[np.float64]

__all__ = ["Adaptation", "Stream", "adapt"]

LABELLED_SLACK = 0.05
"""Expected accuracy (fraction) on the labelled windows that an adapted head may lose."""
RECENT = 60
"""Passages over which a stream's likelihood under both heads is compared."""


@dataclass(frozen=True, slots=True)
class Score:
    """What is known of a head without labels of the stream.

    `labelled`: expected accuracy on the user's labelled statistics; `log_likelihood`: mean per passage of the stream's
    windows that were not learned from, but for a constant.
    """

    labelled: float
    log_likelihood: float


@dataclass(frozen=True, eq=False)
class Adaptation:
    """What an adaptation came to.

    Attributes:
        head: what may be served, or None when the calibrated head stays.
        candidate: the adapted head itself.
        outcome: `promoted`, `kept`, or `insufficient` (the stream does not show every class often enough).
        reason: why, in words.
        calibrated, adapted: scores of the two heads.
        windows: windows that count for each class `(K,)`.
        drift: the largest move of a class mean, in standard deviations per feature.
    """

    head: Head | None
    candidate: Head
    outcome: str
    reason: str
    calibrated: Score
    adapted: Score
    windows: Array
    drift: float


def adapt(anchor: Anchor, z: NDArray[np.floating]) -> Adaptation:
    """Adapt a calibrated head to a batch of unlabelled windows, features `(n, d)` in time order, and judge it."""
    passages = anchor.cut(z)
    return judge(anchor, anchor.moved(passages), *_held_out(anchor, passages))


def judge(anchor: Anchor, moved: Moved, calibrated: float, adapted: float) -> Adaptation:
    """Decide on moved class means, given the log-likelihoods of windows not learned from under both heads."""
    candidate = moved.head
    before = Score(anchor.labelled_accuracy, calibrated)
    after = Score(anchor.expected_accuracy(moved.means), adapted)
    outcome, reason = _decided(anchor, moved, before, after)
    head = candidate if outcome == "promoted" else None
    return Adaptation(head, candidate, outcome, reason, before, after, moved.windows, moved.drift)


def _decided(anchor: Anchor, moved: Moved, before: Score, after: Score) -> tuple[str, str]:
    if not moved.complete:
        rarest = int(np.where(anchor.answerable, moved.windows, np.inf).argmin())
        return "insufficient", (
            f"the windows show {anchor.prior.labels[rarest]!r} too rarely ({moved.windows[rarest]:.0f} windows, "
            f"{moved.windows.max():.0f} of the most frequent): class means move only when every class comes often"
        )
    if after.labelled < before.labelled - LABELLED_SLACK:
        return "kept", (
            f"the adapted head would decide the labelled windows worse: {after.labelled:.1%} expected, "
            f"{before.labelled:.1%} with the calibrated one"
        )
    if after.log_likelihood < before.log_likelihood:
        return "kept", (
            "windows that were not learned from are less likely under the adapted head than under the calibrated one: "
            f"{after.log_likelihood:.3f} and {before.log_likelihood:.3f} nats each"
        )
    return "promoted", (
        f"windows that were not learned from are likelier by {after.log_likelihood - before.log_likelihood:.3f} nats "
        f"each; of the labelled ones {after.labelled:.1%} should be decided rightly ({before.labelled:.1%} before)"
    )


def _held_out(anchor: Anchor, passages: Passages) -> tuple[float, float]:
    """Mean log-likelihood of each half of the stream under the calibrated head and under one adapted to the other."""
    if len(passages) < 2:
        return 0.0, 0.0
    half = len(passages) // 2
    halves = passages.part(slice(None, half)), passages.part(slice(half, None))
    adapted = [anchor.log_likelihood(b, anchor.moved(a).means) for a, b in (halves, halves[::-1])]
    calibrated = [anchor.log_likelihood(b, anchor.means) for b in halves[::-1]]
    return float(np.concatenate(calibrated).mean()), float(np.concatenate(adapted).mean())


class Stream:
    """Learns causally from windows that were predicted: each is scored by a head that has not seen it.

    Args:
        anchor: the calibrated head and its statistics.
        every: windows after which the head is fitted anew.
    """

    def __init__(self, anchor: Anchor, every: int = 50) -> None:
        self.anchor, self.every = anchor, every
        self.head = anchor.head
        self.adaptation: Adaptation | None = None
        self._waiting: list[NDArray[np.floating]] = []
        self._rows = 0
        self._count: deque[Array] = deque()
        self._mean: deque[Array] = deque()
        self._kept = 0
        self._means = anchor.means
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)

    @property
    def kept(self) -> int:
        """Passages in memory."""
        return self._kept

    def observe(self, z: NDArray[np.floating]) -> bool:
        """Learn from features `(n, d)` that were just predicted; returns whether the head was fitted anew."""
        self._waiting.append(np.asarray(z, np.float64))
        self._rows += len(z)
        if self._rows < self.every:
            return False
        self._fit(self.anchor.cut(np.concatenate(self._waiting)))
        self._waiting, self._rows = [], 0
        return True

    def _fit(self, new: Passages) -> None:
        anchor = self.anchor
        both = anchor.log_likelihood(new, anchor.means), anchor.log_likelihood(new, self._means)
        self._recent.extend(zip(*both, strict=True))
        self._count.append(new.count)
        self._mean.append(new.mean)
        self._kept += len(new)
        while self._kept - len(self._count[0]) >= anchor.settings.passages:
            self._kept -= len(self._count.popleft())
            self._mean.popleft()
        moved = anchor.moved(Passages(np.concatenate(self._count), np.concatenate(self._mean)))
        self._means = moved.means
        calibrated, adapted = np.mean(self._recent, 0)
        self.adaptation = judge(anchor, moved, float(calibrated), float(adapted))
        self.head = anchor.head if self.adaptation.head is None else self.adaptation.head
