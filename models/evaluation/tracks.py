"""The causal and the batch track: what windows without labels are worth, beside labelled ones.

Causal: each window is scored, then may be learned from without its label. Batch: all of a session's windows are at hand
before they are scored. The inductive track, which learns from nothing that is scored, is `models.evaluation.run`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.data.windows import Windows
from models.evaluation.personaliser import LocalPersonaliser
from models.evaluation.protocols import Protocol, Subject
from models.evaluation.run import ZERO_SHOT
from models.evaluation.streams import BALANCED, STREAMS, StreamKind, chosen
from models.heads.adaptation import Anchor
from models.heads.calibration import shared_head
from models.heads.head import Head
from models.heads.moments import MomentAligner
from models.heads.statistics import Statistics
from models.heads.unlabelled import Stream, adapt

__all__ = ["TRACKS", "Cell", "TrackTable", "evaluate_track"]

TRACKS = ("causal", "batch")
Array = NDArray[np.floating]
Progress = Callable[[str, int, int], None]

NONE, MOMENTS = "calibrated head", "moments aligned"
CONTINUING, ANEW = "adapted, the tests one after another", "adapted, each test from the calibration"
TRANSDUCTIVE, NEXT = "adapted to the test's windows", "adapted to the first test, frozen, scored on all of the last"
UNADAPTED_NEXT = "calibrated head on all of the last test"
HARM = 0.002
"""Accuracy that a user must lose to count as harmed."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One method in one condition on one kind of stream, over users (accuracies are fractions, draws averaged).

    `gain` is over the calibrated head of the same users and windows; `worst_gain` the least user's, `worst_draw` the
    least of any single draw; `harmed` the users who lost more than `HARM`.
    """

    accuracy: float
    sd: float
    worst: float
    gain: float
    worst_gain: float
    worst_draw: float
    harmed: tuple[str, ...]
    users: int


@dataclass(slots=True)
class TrackTable:
    """Figures of a track. `runs[stream][method][condition][user]` are accuracies of the draws, means over tests."""

    track: str
    protocol: str
    every: int
    seed: int
    runs: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = field(default_factory=dict)
    outcomes: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    made_of: dict[str, object] = field(default_factory=dict)

    def put(self, stream: str, method: str, condition: str, user: str, accuracy: float) -> None:
        """Note one draw."""
        by_user = self.runs.setdefault(stream, {}).setdefault(method, {}).setdefault(condition, {})
        by_user.setdefault(user, []).append(accuracy)

    def decided(self, stream: str, condition: str, outcome: str) -> None:
        """Count what the guard said at the end of a stream."""
        count = self.outcomes.setdefault(stream, {}).setdefault(condition, {})
        count[outcome] = count.get(outcome, 0) + 1

    def cell(self, stream: str, method: str, condition: str) -> Cell | None:
        """Summarise over users, beside the calibrated head on the same windows; None where it was not run."""
        found = self.runs[stream].get(method, {}).get(condition)
        if found is None:
            return None
        beside = self.runs[stream][UNADAPTED_NEXT if method in (NEXT, UNADAPTED_NEXT) else NONE][condition]
        accuracy = np.array([np.mean(found[u]) for u in found])
        gain = np.array([np.mean(found[u]) - np.mean(beside[u]) for u in found])
        draws = np.concatenate([np.subtract(found[u], beside[u]) for u in found])
        return Cell(
            float(accuracy.mean()),
            float(accuracy.std(ddof=1)) if len(accuracy) > 1 else 0.0,
            float(accuracy.min()),
            float(gain.mean()),
            float(gain.min()),
            float(draws.min()),
            tuple(u for u, g in zip(found, gain, strict=True) if g < -HARM),
            len(found),
        )


def evaluate_track(
    track: str,
    model: LocalPersonaliser,
    protocol: Protocol,
    *,
    conditions: tuple[str, ...] = (ZERO_SHOT, "1w", "5w", "1 cycle", "4 cycles"),
    kinds: tuple[StreamKind, ...] = STREAMS,
    every: int = 50,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> TrackTable:
    """Score calibrated heads with and without adaptation on streams of a protocol's tests.

    Args:
        track: of `TRACKS`.
        model: the bundle in this process; a user's head and statistics are what its guarded calibration left.
        protocol: whom to calibrate and score.
        conditions: those of the protocol that are run, and `ZERO_SHOT`.
        kinds: streams.
        every: windows after which a causal stream is fitted anew.
        seed: of the streams' draws.
        progress: told the subject, how many are done, and how many there are.
    """
    table = TrackTable(track, protocol.name, every, seed)
    for i, subject in enumerate(protocol.subjects()):
        progress(subject.name, i, len(protocol.test))
        tests = {name: (w, model.features(w.x)) for name, w in subject.tests.items()}
        for condition, stats, head in _calibrated(model, subject, conditions):
            anchor = Anchor(model.bundle.prior, stats, head)
            for kind in kinds:
                for draw in range(kind.draws):
                    streams = [_drawn(kind, draw, w, z, anchor.prior.classes, seed) for w, z in tests.values()]
                    case = _Case(table, kind.name, condition, subject.name, anchor)
                    (_causal if track == "causal" else _batch)(case, streams, list(tests.values()))
        model.forget_features()
    progress("done", len(protocol.test), len(protocol.test))
    return table


_Test = tuple[NDArray[np.int64], Array]


@dataclass(frozen=True, eq=False)
class _Case:
    table: TrackTable
    stream: str
    condition: str
    user: str
    anchor: Anchor

    def put(self, method: str, hits: list[NDArray[np.bool_]]) -> None:
        """Note the mean over tests."""
        self.table.put(self.stream, method, self.condition, self.user, float(np.mean([h.mean() for h in hits])))


def _drawn(kind: StreamKind, draw: int, w: Windows, z: Array, classes: int, seed: int) -> _Test:
    kept = chosen(kind, draw, w, classes, seed)
    return w.y[kept], z[kept]


def _calibrated(
    model: LocalPersonaliser, subject: Subject, wanted: tuple[str, ...]
) -> list[tuple[str, Statistics, Head]]:
    """The head and the statistics in each condition; without labels, and where the guard kept it, the shared head."""
    prior = model.bundle.prior
    found = []
    if ZERO_SHOT in wanted:
        found.append((ZERO_SHOT, Statistics.empty(prior.classes, prior.personal), shared_head(prior)))
    for c in (c for c in subject.conditions if c.name in wanted):
        user = f"{subject.name} {c.name}"
        model.erase(user)
        model.calibrate(user, c.calibration.x, c.calibration.y, c.calibration.repetition)
        found.append((c.name, *model.state(user)))
        model.erase(user)
    return found


def _causal(case: _Case, streams: list[_Test], _: list[tuple[Windows, Array]]) -> None:
    anchor, every = case.anchor, case.table.every
    case.put(NONE, [_hits(anchor.head, t) for t in streams])
    stream = Stream(anchor, every)
    case.put(CONTINUING, [_scored(stream, t, every) for t in streams])
    assert stream.adaptation is not None or all(len(y) < every for y, _z in streams)
    case.table.decided(case.stream, case.condition, stream.adaptation.outcome if stream.adaptation else "too short")
    if len(streams) > 1 and case.stream == BALANCED:
        case.put(ANEW, [_scored(Stream(anchor, every), t, every) for t in streams])
    aligner = MomentAligner(anchor)
    case.put(MOMENTS, [_aligned(aligner, t, every) for t in streams])


def _scored(stream: Stream, test: _Test, every: int) -> NDArray[np.bool_]:
    """Score a test's windows piece by piece, each before it is learned from."""
    y, z = test
    hits = []
    for at in range(0, len(y), every):
        part = z[at : at + every]
        hits.append(stream.head.logits(part).argmax(1) == y[at : at + every])
        stream.observe(part)
    return np.concatenate(hits)


def _aligned(aligner: MomentAligner, test: _Test, every: int) -> NDArray[np.bool_]:
    y, z = test
    hits = []
    for at in range(0, len(y), every):
        part = z[at : at + every]
        hits.append(aligner.head.logits(aligner.aligned(part)).argmax(1) == y[at : at + every])
        aligner.observe(part)
    return np.concatenate(hits)


def _batch(case: _Case, streams: list[_Test], whole: list[tuple[Windows, Array]]) -> None:
    anchor = case.anchor
    case.put(NONE, [_hits(anchor.head, t) for t in streams])
    adapted = [adapt(anchor, z) for _, z in streams]
    heads = [a.head or anchor.head for a in adapted]
    for a in adapted:
        case.table.decided(case.stream, case.condition, a.outcome)
    case.put(TRANSDUCTIVE, [_hits(h, t) for h, t in zip(heads, streams, strict=True)])
    moments = []
    for y, z in streams:
        aligner = MomentAligner(anchor)
        aligner.observe(z)
        moments.append(aligner.head.logits(aligner.aligned(z)).argmax(1) == y)
    case.put(MOMENTS, moments)
    if len(streams) > 1:
        last, z = whole[-1]
        case.put(UNADAPTED_NEXT, [_hits(anchor.head, (last.y, z))])
        case.put(NEXT, [_hits(heads[0], (last.y, z))])


def _hits(head: Head, test: _Test) -> NDArray[np.bool_]:
    y, z = test
    return np.asarray(head.logits(z).argmax(1) == y)
