"""People left out, calibrated and scored: what decides about their windows, and where its classes lie for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.calibration import CalibrationError, calibrate, shared_head
from models.heads.fit import map_means, placed
from models.heads.prior import Prior

__all__ = ["Examples", "LeftOut", "Mapped", "Person", "Scorer"]

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
MAPPED_PEOPLE, MAPPED_EXAMPLES = 4, 300


@dataclass(frozen=True, eq=False)
class Examples:
    """Features `(n, d)` of one person's windows, images, texts or sounds, their labels and repetitions `(n,)`."""

    z: Array
    y: Labels
    repetition: Labels


@dataclass(frozen=True, eq=False)
class Mapped:
    """A person's examples on a map `(n, 2)`, their labels `(n,)`, and the middles of a head's K classes `(K, 2)`.

    `before`: of the population; `after`: of the person's own head. `kept`: share of both that the plane shows.
    """

    xy: Array
    y: Labels
    before: Array
    after: Array
    kept: float


@dataclass(frozen=True, eq=False)
class Person:
    """One left-out person: accuracies of the shared and of the served head on examples that did not calibrate.

    `calibrated`: examples of the one repetition that did; `outcome`: the guard's verdict. `before`, `after`: how far
    examples lie from the middle of their label's class, over how far the classes' middles lie apart.
    """

    name: str
    shared: float
    served: float
    calibrated: int
    scored: int
    outcome: str
    before: float
    after: float
    map: Mapped


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Everything of a run, left out: confusions `[true, decided]` in examples, people, and who was skipped why.

    `served` is None, and `people` empty, where the data have no users; `checked` says how the data were known again.
    """

    shared: NDArray[np.int64]
    served: NDArray[np.int64] | None = None
    people: tuple[Person, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    checked: str = ""

    @property
    def mapped(self) -> tuple[Person, ...]:
        """The people whose maps are drawn, spread evenly."""
        chosen = np.linspace(0, len(self.people) - 1, MAPPED_PEOPLE).astype(int).tolist() if self.people else []
        return tuple(self.people[i] for i in sorted(set(chosen)))


class Scorer:
    """Calibrates people as a service would, guard included, and adds up what is decided about the rest of them."""

    def __init__(self, classes: int) -> None:
        self._shared = np.zeros((classes, classes), np.int64)
        self._served = np.zeros((classes, classes), np.int64)
        self._people: list[Person] = []
        self._skipped: list[tuple[str, str]] = []

    def skip(self, name: str, why: str) -> None:
        """Note who cannot be scored."""
        self._skipped.append((name, why))

    def score(self, name: str, prior: Prior, shown: Examples, rest: Examples, overlap: int = 0) -> None:
        """Calibrate with what is shown under a prior that the person had no part in, and score the rest."""
        generic = shared_head(prior)
        try:
            found = calibrate(prior, shown.z, shown.y, shown.repetition, overlap=overlap)
        except CalibrationError as e:
            self.skip(name, str(e))
            return
        said = [head.logits(rest.z).argmax(1) for head in (generic, found.head or generic)]
        for matrix, decided in zip((self._shared, self._served), said, strict=True):
            np.add.at(matrix, (rest.y, decided), 1)
        shared, served = (float((decided == rest.y).mean()) for decided in said)
        own = map_means(found.statistics, placed(found.statistics, prior))
        before, after, drawn = _mapped(rest.z[:, : prior.personal], rest.y, prior, own)
        self._people.append(
            Person(name, shared, served, len(shown.y), len(rest.y), found.verdict.outcome, before, after, drawn)
        )

    def found(self, order: Sequence[str], checked: str = "") -> LeftOut | None:
        """What was found, people in this order; None where nobody could be scored."""
        if not self._people:
            return None
        people = tuple(sorted(self._people, key=lambda p: order.index(p.name)))
        return LeftOut(self._shared, self._served, people, tuple(self._skipped), checked)

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Who could not be scored, and why."""
        return tuple(self._skipped)


def _mapped(z: Array, y: Labels, prior: Prior, own: Array) -> tuple[float, float, Mapped]:
    """Ratios of spread to distance before and after, and the map.

    All in units of the population's covariance within a person, in the directions in which classes' middles lie, the
    population's and the person's alike; the map's plane are the two main ones of these. Examples are the same in both.
    """
    unit = np.linalg.inv(np.linalg.cholesky(prior.within)).T
    middle = z.mean(0)
    x, before, after = ((v - middle) @ unit for v in (z, prior.means, own))
    _, sizes, rows = np.linalg.svd(
        np.concatenate([before - before.mean(0), after - after.mean(0)]), full_matrices=False
    )
    rows = rows[sizes > 1e-9 * sizes[0]]
    # A direction's sign is arbitrary: fixed, so that another LAPACK draws the same map.
    rows = rows * np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(1)])[:, None]
    x, before, after = (v @ rows.T for v in (x, before, after))
    keep = np.linspace(0, len(y) - 1, min(MAPPED_EXAMPLES, len(y))).astype(int)
    plane = Mapped(
        _plane(x[keep]), y[keep], _plane(before), _plane(after), float((sizes[:2] ** 2).sum() / (sizes**2).sum())
    )
    return _spread(x, y, before), _spread(x, y, after), plane


def _plane(x: Array) -> Array:
    return np.pad(x[:, :2], ((0, 0), (0, max(0, 2 - x.shape[1]))))


def _spread(x: Array, y: Labels, middles: Array) -> float:
    """Mean squared distance of examples from the middle of their label's class, over that of middles from theirs."""
    shown = np.unique(y)
    within = np.mean([((x[y == c] - middles[c]) ** 2).sum(1).mean() for c in shown])
    between = ((middles[shown] - middles[shown].mean(0)) ** 2).sum(1).mean()
    return float(within / max(float(between), 1e-12))
