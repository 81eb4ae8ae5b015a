"""A label that the population does not know: recall of it, and of the others, where one gesture is taken out.

`python -m bench.new_label --run runs/semg-myo --data ../shared/data/myo`: each of the run's people as a stranger
(models.training.strangers), each gesture in turn a label of their own; calibrated on the first repetition, scored on
the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.recordings import load_folder
from models.data.windows import WindowSpec, windows
from models.heads.fit import fit_map
from models.heads.prior import Prior
from models.heads.statistics import Statistics
from models.training.run import load_run
from models.training.strangers import strangers


@dataclass(frozen=True, eq=False)
class Person:
    """Features `(n, d)`, classes and repetitions of a stranger, and what the others tell."""

    prior: Prior
    z: NDArray[np.float64]
    y: NDArray[np.int64]
    repetition: NDArray[np.int64]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder that `headway train` wrote")
    parser.add_argument("--data", type=Path, required=True, help="the recordings it was trained on")
    chosen = parser.parse_args()
    people = list(_people(chosen.run, chosen.data))
    print(f"{len(people)} people, {people[0].prior.classes} gestures, each in turn unknown to the population")
    print("| labelled windows a class | the population knows it: others / it | a label of their own: others / it |")
    print("|--|--|--|")
    for count, name in ((1, "1"), (5, "5"), (0, "one repetition")):
        known, own = (np.mean([_recalls(p, c, count, own=own) for p in people for c in range(p.prior.classes)], 0)
                      for own in (False, True))  # fmt: skip
        print(f"| {name} | {known[0]:.1%} / {known[1]:.1%} | {own[0]:.1%} / {own[1]:.1%} |", flush=True)


def _people(folder: Path, data: Path) -> Iterator[Person]:
    run = load_run(folder)
    stems = {subject["stem"] for subject in run.provenance["subjects"]}
    recordings = [r for r in load_folder(data, ",".join(sorted(stems))) if r.stem in stems]
    by_name = {r.stem: r for r in recordings}
    spec = WindowSpec(run.windows.shape[2], run.signal.stride)
    for stranger in strangers(run, recordings):
        rec = by_name[stranger.name]
        w = windows(rec, spec, sessions={rec.session_names[0]})
        yield Person(stranger.prior, stranger.features(w.x), w.y, w.repetition)


def _recalls(person: Person, label: int, count: int, *, own: bool) -> tuple[float, float]:
    """Recall of the other labels, and of one; `own` takes it out of the population before."""
    k = person.prior.classes
    order = [c for c in range(k) if c != label] + [label]
    prior = _reordered(person.prior, order[:-1]).with_own(1) if own else _reordered(person.prior, order)
    y = np.argsort(order)[person.y]
    first = person.repetition == person.repetition.min()
    shown = np.flatnonzero(first)
    if count:  # windows behind the middle of the recording, where the gesture is held
        parts = [np.flatnonzero(first & (y == c)) for c in range(k)]
        shown = np.concatenate([part[len(part) // 2 :][:count] for part in parts])
    head = fit_map(Statistics.of(person.z[shown, : prior.personal], y[shown], person.repetition[shown], k), prior)
    right = head.logits(person.z[~first]).argmax(1) == y[~first]
    theirs = y[~first] == k - 1
    return float(right[~theirs].mean()), float(right[theirs].mean())


def _reordered(prior: Prior, classes: list[int]) -> Prior:
    p = prior.placements
    return replace(
        prior,
        labels=tuple(prior.labels[c] for c in classes),
        generic_weight=prior.generic_weight[classes],
        generic_bias=prior.generic_bias[classes],
        means=prior.means[classes],
        placements=None if p is None else replace(p, means=p.means[:, classes]),
    )


if __name__ == "__main__":
    main()
