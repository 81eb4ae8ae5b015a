"""Empirical coverage of sets of labels, their size, and the calibration error, on people held out.

Each person calibrates as the service does it, with whole cycles of their first session; later windows are scored. With
`--run` on the population, each person under a prior and a network that they had no part in; with `--model` on others.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.recordings import Recordings, load_folder
from models.data.windows import Windows, WindowSpec, shared_samples, windows
from models.evaluation.personaliser import LocalPersonaliser
from models.heads.calibration import calibrate, shared_head
from models.heads.confidence import LEVELS, measure, population_floors
from models.heads.head import Head, softmax
from models.heads.prior import Prior
from models.heads.scores import calibration_error

COVERAGES = (0.8, 0.9, 0.95, 0.99)
Features = Callable[[NDArray[np.float32]], NDArray[np.floating]]
Array = NDArray[np.floating]


@dataclass(frozen=True)
class Person:
    """Someone to calibrate and score: `first` is the session that calibrates, `later` others, where there are any."""

    name: str
    prior: Prior
    features: Features
    first: Windows
    later: Windows


@dataclass(frozen=True)
class Held:
    """What one person's sets came to: by coverage whether each window's holds its label, and sizes; and the errors."""

    condition: str
    inside: dict[float, float]
    size: dict[float, float]
    error: dict[str, float]


def main() -> None:
    """Run, and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--run", type=Path, help="the run, to score its own people, each left out")
    parser.add_argument("--model", type=Path, help="the bundle, to score others")
    parser.add_argument("--subjects", default="eval_*", help="whom to score with --model")
    parser.add_argument("--log", type=Path, help="append a line about the run to this file")
    chosen = parser.parse_args()
    people = list(
        of_run(chosen.run, chosen.data) if chosen.run else of_model(chosen.model, chosen.data, chosen.subjects)
    )
    found = [held for person in people for held in score(person)]
    found += shared(people, left_out=chosen.run is not None)
    table = summary(found)
    print(f"{len(people)} people\n")
    print("\n".join(table))
    if chosen.log is not None:
        line = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "protocol": "coverage",
            "command": shlex.join(["python", "-m", "bench.coverage", *sys.argv[1:]]),
            "model": str(chosen.model or chosen.run),
            "people": len(people),
            "table": table,
        }
        with chosen.log.open("a") as f:
            f.write(json.dumps(line) + "\n")


def of_run(folder: Path, data: Path) -> Iterator[Person]:
    """Everyone of a run, as a stranger."""
    from models.training.run import load_run
    from models.training.strangers import strangers

    run = load_run(folder)
    stems = {s["stem"] for s in run.provenance["subjects"]}
    recordings = load_folder(data, ",".join(sorted(stems)))
    by_name = {r.subject: r for r in recordings}
    for stranger in strangers(run, recordings):
        yield _person(by_name[stranger.name], stranger.prior, stranger.features)


def of_model(path: Path, data: Path, subjects: str) -> Iterator[Person]:
    """People that a bundle was not trained on, of the publication's."""
    local = LocalPersonaliser(path)
    for rec in load_folder(data, subjects):
        if rec.in_paper:
            yield _person(rec, local.bundle.prior, local.features)


def _person(rec: Recordings, prior: Prior, features: Features) -> Person:
    every = windows(rec, WindowSpec.for_signal(rec.fs, rec.modality))
    first = every.session == every.session.min()
    return Person(rec.stem, prior, features, every.select(first), every.select(~first))


def score(person: Person) -> Iterator[Held]:
    """Calibrate with some cycles, and score what comes later."""
    cycles = np.unique(person.first.repetition)
    z, later = person.features(person.first.x), person.later
    z_later = person.features(later.x) if len(later) else np.empty((0, z.shape[1]))
    for k in (1, 2, 3, 4):
        used = np.isin(person.first.repetition, cycles[:k])
        shown = person.first.select(used)
        found = calibrate(person.prior, z[used], shown.y, shown.repetition, overlap=shared_samples(shown.x))
        if found.head is None or found.held is None:
            continue
        population = person.prior.hyper.set_floors
        floors = measure(found.held, found.temperature, found.verdict.weight, population).floors
        assert floors is not None, "the run or bundle has no floors of its population"
        if (~used).any():
            yield _held(f"{k} cycle{'s' * (k > 1)}, same session", found.head, floors, z[~used], person.first.y[~used])
        if len(later):
            yield _held(f"{k} cycle{'s' * (k > 1)}, other sessions", found.head, floors, z_later, later.y)


def shared(people: list[Person], *, left_out: bool) -> Iterator[Held]:
    """The shared head, with the bundle's floors; or with those of all others of the population."""
    parts = []
    for person in people:
        z = np.concatenate([person.features(w.x) for w in (person.first, person.later) if len(w)])
        y = np.concatenate([w.y for w in (person.first, person.later) if len(w)])
        parts.append((np.asarray(softmax(shared_head(person.prior).logits(z))), y))
    for i, (probabilities, y) in enumerate(parts):
        if left_out:
            floors = population_floors(parts[:i] + parts[i + 1 :])
        elif people[i].prior.hyper.set_floors:
            floors = np.array(people[i].prior.hyper.set_floors)
        else:
            return
        yield _of_probabilities("shared head, all sessions", floors, probabilities, y)


def _held(condition: str, head: Head, floors: Array, z: Array, y: NDArray[np.int64]) -> Held:
    return _of_probabilities(condition, floors, np.asarray(softmax(head.logits(z))), y)


def _of_probabilities(condition: str, floors: Array, probabilities: Array, y: NDArray[np.int64]) -> Held:
    inside, size = {}, {}
    for coverage in COVERAGES:
        sets = probabilities >= floors[LEVELS.index(coverage)]
        sets[np.arange(len(sets)), probabilities.argmax(1)] = True
        inside[coverage] = float(sets[np.arange(len(y)), y].mean())
        size[coverage] = float(sets.sum(1).mean())
    accuracy = float((probabilities.argmax(1) == y).mean())
    return Held(condition, inside, size, {"accuracy": accuracy, "ece": calibration_error(probabilities, y)})


def summary(found: list[Held]) -> list[str]:
    """Rows of a table: means over people, and the person with the least coverage."""
    rows = [
        "| condition | accuracy | calibration error | "
        + " | ".join(f"{c:.0%}: held (least), size" for c in COVERAGES)
        + " |"
    ]
    rows.append("|--" * (3 + len(COVERAGES)) + "|")
    for condition in dict.fromkeys(h.condition for h in found):
        own = [h for h in found if h.condition == condition]
        cells = [f"{condition} ({len(own)} people)"]
        cells.append(f"{np.mean([h.error['accuracy'] for h in own]):.2%}")
        cells.append(f"{np.mean([h.error['ece'] for h in own]):.3f}")
        for c in COVERAGES:
            inside = [h.inside[c] for h in own]
            cells.append(f"{np.mean(inside):.1%} ({min(inside):.1%}), {np.mean([h.size[c] for h in own]):.2f}")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()
