"""Test-time augmentation on a population of signals: what views gain when they are enrolled, predicted, or both.

`python -m bench.views --run runs/semg-myo --data ../shared/data/myo`: each of the run's people as a stranger
(models.training.strangers), calibrated with the first repetition or some windows of it, scored on the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from bench.guard_people import Person, left_out
from exporters.input_spec import InputSpec, Views
from models.data.views import SIGNAL, averaged, views
from models.heads.fit import fit_map
from models.heads.statistics import Statistics

SHOTS = {"1 window a class": "1 window", "5 windows a class": "5 windows", "1 cycle": "1 cycle"}
STRIDE = 5
"""Of the windows that are scored every so many are, for views are many."""


def features(person: Person, x: np.ndarray, spec: InputSpec, count: int) -> np.ndarray:
    """Features of windows, averaged over so many views."""
    return averaged(np.asarray(person.features(views(x, spec, count)), np.float32), count)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder that `headway train` wrote")
    parser.add_argument("--data", type=Path, required=True, help="the recordings it was trained on")
    parser.add_argument("--tta", type=int, default=8)
    parser.add_argument("--views", type=Views.model_validate_json, default=SIGNAL, help="JSON; by default the usual")
    chosen = parser.parse_args()
    found: dict[str, list[list[float]]] = {name: [] for name in SHOTS}
    for person in left_out(chosen.run, chosen.data):
        window = person.windows.x.shape[1:]
        spec = InputSpec(shape=(-1, *window), unit="", sample_rate=person.rate, views=chosen.views)
        shown = {name: person.shown(calibration, 0)[1] for name, calibration in SHOTS.items()}
        asked = np.flatnonzero(~np.isin(person.windows.repetition, shown["1 cycle"].repetition))[::STRIDE]
        tests = [features(person, person.windows.x[asked], spec, k) for k in (1, chosen.tta)]
        for name, w in shown.items():
            row: list[float] = []
            for k in (1, chosen.tta):
                z = features(person, w.x, spec, k)[:, : person.prior.personal]
                head = fit_map(Statistics.of(z, w.y, w.repetition, person.prior.classes), person.prior)
                row += [float((head.logits(t).argmax(1) == person.windows.y[asked]).mean()) for t in tests]
            found[name].append(row)
    print(f"{len(found['1 cycle'])} people, {chosen.tta} views, {chosen.views!r}; accuracy in %")
    print("| labelled | no views | predicted | enrolled | both | users who lose by both |\n|--|--|--|--|--|--|")
    for name, rows in found.items():
        a = np.array(rows)
        cells = " | ".join(f"{100 * m:.2f}" for m in a.mean(0))
        print(f"| {name} | {cells} | {int((a[:, 3] < a[:, 0] - 0.002).sum())} of {len(a)} |", flush=True)


if __name__ == "__main__":
    main()
