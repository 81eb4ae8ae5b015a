"""A run's people as strangers: how the shared and the personal head decide about them, and how each sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.recordings import Recordings
from models.data.windows import Windows, WindowSpec, shared_samples, windows
from models.heads.calibration import CalibrationError, calibrate, shared_head
from models.heads.fit import blended_covariance, gaussian_head, map_means, placed
from models.heads.head import Head
from models.heads.prior import Prior
from models.heads.statistics import Statistics

__all__ = ["LeftOut", "Mapped", "Person", "score_left_out"]

Array = NDArray[np.float64]
MAPPED_PEOPLE, MAPPED_WINDOWS = 4, 300


@dataclass(frozen=True, slots=True)
class Person:
    """One left-out person: accuracies of the shared and of the served head on windows that did not calibrate.

    `calibrated`: windows of the one repetition that did; `outcome`: the guard's verdict.
    """

    name: str
    shared: float
    served: float
    calibrated: int
    scored: int
    outcome: str


@dataclass(frozen=True, eq=False)
class Mapped:
    """A person's windows on the map: places before and after personalisation `(n, 2)`, and labels `(n,)`."""

    name: str
    before: Array
    after: Array
    y: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Everyone of a run, left out: confusions `[true, decided]` in windows, people, the map, and who was skipped why.

    `variance`: share of the variance of both maps' scores that their two axes keep.
    """

    shared: NDArray[np.int64]
    served: NDArray[np.int64]
    people: tuple[Person, ...]
    mapped: tuple[Mapped, ...]
    variance: float
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class _Scores:
    """Scores of some windows `(n, K)`, less their mean over labels, under the population's and the person's classes."""

    name: str
    before: Array
    after: Array
    y: NDArray[np.int64]


def score_left_out(
    folder: Path, recordings: Sequence[Recordings], progress: Callable[[str, int, int], None]
) -> LeftOut:
    """Score each person of a run under a prior and a network that they had no part in.

    A person calibrates with the first repetition of their first session as a service would do it, guard included; all
    other windows are scored.

    Raises:
        TrainingError: these are not the run's recordings, its checkpoints are gone, or nobody can be scored.
    """
    from models.training import TrainingError, load_run
    from models.training.strangers import strangers

    run = load_run(folder)
    k, spec = len(run.labels), WindowSpec(run.signal.length, run.signal.stride)
    shared, served = np.zeros((k, k), np.int64), np.zeros((k, k), np.int64)
    people: list[Person] = []
    scores: list[_Scores] = []
    skipped: list[tuple[str, str]] = []
    order = list(dict.fromkeys(r.subject for r in recordings))
    progress("windows and features", 0, len(order))
    for done, stranger in enumerate(strangers(run, recordings)):
        progress(stranger.name, done, len(order))
        own = _windows([r for r in recordings if r.subject == stranger.name], spec, run.labels)
        sitting = own.session == own.session[0]
        shown = sitting & (own.repetition == own.repetition[sitting].min())
        if shown.all():
            skipped.append((stranger.name, "one repetition only: nothing is left to score"))
            continue
        first, rest = own.select(shown), own.select(~shown)
        z, scored = stranger.features(first.x), stranger.features(rest.x)
        generic = shared_head(stranger.prior)
        try:
            found = calibrate(stranger.prior, z, first.y, first.repetition, overlap=shared_samples(first.x))
        except CalibrationError as e:
            skipped.append((stranger.name, str(e)))
            continue
        head = found.head or generic
        said = [h.logits(scored).argmax(1) for h in (generic, head)]
        for matrix, decided in zip((shared, served), said, strict=True):
            np.add.at(matrix, (rest.y, decided), 1)
        right = [float((decided == rest.y).mean()) for decided in said]
        people.append(Person(stranger.name, right[0], right[1], len(first), len(rest), found.verdict.outcome))
        scores.append(_seen(stranger.name, stranger.prior, found.statistics, scored, rest.y))
    progress("done", len(order), len(order))
    if not people:
        raise TrainingError(f"Nobody can be scored: {skipped[0][0]}: {skipped[0][1]}.")
    people.sort(key=lambda p: order.index(p.name))
    scores.sort(key=lambda s: order.index(s.name))
    mapped, variance = _mapped(scores)
    return LeftOut(shared, served, tuple(people), mapped, variance, tuple(skipped))


def _windows(files: Sequence[Recordings], spec: WindowSpec, labels: Sequence[str]) -> Windows:
    """A person's windows of all their files in order; a session is one of a file, labels are the run's."""
    found = [windows(rec, spec) for rec in files]
    index = [np.array([labels.index(n) if n in labels else -1 for n in rec.label_names]) for rec in files]
    return Windows(
        x=np.concatenate([w.x for w in found]),
        y=np.concatenate([names[w.y] for w, names in zip(found, index, strict=True)]),
        repetition=np.concatenate([w.repetition for w in found]),
        session=np.concatenate([1000 * i + w.session for i, w in enumerate(found)]),
        recording=np.concatenate([100_000 * i + w.recording for i, w in enumerate(found)]),
        start=np.concatenate([w.start for w in found]),
    )


def _seen(name: str, prior: Prior, stats: Statistics, z: Array, y: NDArray[np.int64]) -> _Scores:
    """Some of a person's windows under the population's discriminant, and under that of the person's own classes."""
    keep = np.linspace(0, len(y) - 1, min(MAPPED_WINDOWS, len(y))).astype(int)
    here = placed(stats, prior)
    p = prior.personal
    before = gaussian_head(prior.means, prior.within)
    after = gaussian_head(map_means(stats, here), blended_covariance(stats, here))

    def scores(head: Head) -> Array:
        found = head.logits(z[keep, :p])
        return np.asarray(found - found.mean(1, keepdims=True))

    return _Scores(name, scores(before), scores(after), y[keep])


def _mapped(scores: Sequence[_Scores]) -> tuple[tuple[Mapped, ...], float]:
    """The first two principal axes of some people's scores, before and after alike, and what they keep."""
    chosen = sorted(set(np.linspace(0, len(scores) - 1, MAPPED_PEOPLE).astype(int).tolist()))
    kept = [scores[i] for i in chosen]
    every = np.concatenate([part for s in kept for part in (s.before, s.after)])
    middle = every.mean(0)
    _, sizes, rows = np.linalg.svd(every - middle, full_matrices=False)
    axes = rows[:2] * np.sign(rows[:2][np.arange(len(rows[:2])), np.abs(rows[:2]).argmax(1)])[:, None]
    variance = float((sizes[:2] ** 2).sum() / (sizes**2).sum())
    return tuple(Mapped(s.name, (s.before - middle) @ axes.T, (s.after - middle) @ axes.T, s.y) for s in kept), variance
