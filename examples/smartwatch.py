"""Shoulder exercises told by a smartwatch: people whom the model never saw, and what a few labelled windows are worth.

The recordings are those inside the Python package seglearn: ten people, seven exercises, one recording of 19 to 52 s a
person, exercise and arm. Each fold of people is left out of a training; the bundle is exported and served, and everyone
of the fold is calibrated and scored over HTTP: with windows of one arm, on the rest of the very same recordings and on
those of the other arm, and then the other way round.

pip install seglearn
python -m examples.smartwatch
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.bundle import Bundle
from exporters.export import export_run
from models.data.recordings import Recordings
from models.data.watch import watch_recordings
from models.data.windows import Windows, WindowSpec, first_windows, windows
from models.evaluation.baselines import own_lda
from models.evaluation.scores import score
from models.heads.head import softmax
from models.training import TrainConfig, train
from service.client import Client
from service.commands.process import running_service

MODEL = "watch"
SAME, OTHER = "the same recording, its later half (within-recording)", "the other arm"
COLUMNS = (SAME, OTHER)
GENERIC, LDA, SERVED, ALWAYS = "generic head", "own LDA", "personal head", "personal head, guard off"


@dataclass(slots=True)
class Scores:
    """Balanced accuracies: `found[labelled, method][column][person]`, one value a direction between the arms."""

    found: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    served: dict[str, list[bool]] = field(default_factory=dict)

    def put(self, labelled: str, method: str, column: str, person: str, value: float) -> None:
        """Note one score."""
        self.found.setdefault((labelled, method), {}).setdefault(column, {}).setdefault(person, []).append(value)

    def worst(self, labelled: str, method: str, column: str) -> str:
        """Name who has the least."""
        return list(self.found[labelled, method][column])[int(self.people(labelled, method, column).argmin())]

    def people(self, labelled: str, method: str, column: str) -> NDArray[np.float64]:
        """Return everyone's mean over the directions, `(people,)`."""
        return np.array([np.mean(values) for values in self.found[labelled, method][column].values()])


def calibrations(rec: Recordings, spec: WindowSpec, arm: str) -> Iterator[tuple[str, Windows]]:
    """Growing parts of the recordings of one arm; all but the last leave their later half to be scored."""
    for few in (1, 5):
        yield f"{few} window{'s' * (few > 1)} an exercise", first_windows(rec, spec, few, session=arm)
    blocks = sorted({int(r) for r in rec.repetition})
    yield "half of each recording", windows(rec, spec, sessions={arm}, repetitions=blocks[: len(blocks) // 2])
    yield "the whole recordings", windows(rec, spec, sessions={arm})


def tests_of(rec: Recordings, spec: WindowSpec, arm: str, other: str) -> dict[str, Windows]:
    """What a person calibrated on one arm is scored on, by column."""
    later = sorted({int(r) for r in rec.repetition})[len(set(rec.repetition.tolist())) // 2 :]
    return {
        SAME: windows(rec, spec, sessions={arm}, repetitions=later),
        OTHER: windows(rec, spec, sessions={other}),
    }


def personalise(client: Client, bundle: Bundle, rec: Recordings, scores: Scores) -> None:
    """Calibrate and score one person over HTTP, from either arm."""
    manifest = bundle.manifest
    spec = WindowSpec(manifest.input.window_shape[1], manifest.input.stride)
    index = np.array([manifest.labels.index(name) for name in rec.label_names])

    def features(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return client.infer(MODEL, x, output="features")[0][:, : bundle.prior.personal]

    for arm, other in (("left", "right"), ("right", "left")):
        tests = tests_of(rec, spec, arm, other)
        told = {column: features(test.x) for column, test in tests.items()}

        def note(labelled: str, method: str, column: str, p: NDArray[np.floating], tests: dict[str, Windows]) -> None:
            test = tests[column]
            right = score(p, index[test.y], test.recording, manifest.labels).balanced
            scores.put(labelled, method, column, rec.subject, right)

        for column, test in tests.items():
            note("none", GENERIC, column, client.infer(MODEL, test.x)[0], tests)
        for labelled, shown in calibrations(rec, spec, arm):
            columns = COLUMNS if labelled != "the whole recordings" else (OTHER,)
            head = own_lda(len(manifest.labels))(features(shown.x), index[shown.y], shown.repetition)
            for column in columns:
                note(labelled, LDA, column, softmax(head.logits(told[column])), tests)
            names = [rec.label_names[i] for i in shown.y]
            for method, activate in ((SERVED, "if_better"), (ALWAYS, "always")):
                user = f"{rec.subject} {arm} {labelled} {activate}"
                report = client.calibrate(MODEL, user, shown.x, names, shown.repetition.tolist(), activate=activate)
                if method == SERVED:
                    scores.served.setdefault(labelled, []).append(report["outcome"] in ("promoted", "blended"))
                for column in columns:
                    note(labelled, method, column, client.infer(MODEL, tests[column].x, user=user)[0], tests)


def run(folder: Path, people: list[Recordings], folds: int, config: TrainConfig) -> Scores:
    """Leave each of `folds` parts of the people out of a training, and personalise them."""
    scores = Scores()
    for fold in range(folds):
        out, place = people[fold::folds], folder / f"fold-{fold}"
        train([p for p in people if p not in out], config, place / "run")
        bundle = bundles.load(export_run(place / "run", place / "models", name=MODEL))
        print(f"fold {fold + 1} of {folds}: left out {', '.join(p.subject for p in out)}", flush=True)
        with (
            running_service(place / "models", place / "store", "--frontends", "1") as service,
            Client(service.url) as client,
        ):
            for person in out:
                personalise(client, bundle, person, scores)
    return scores


def show(scores: Scores) -> None:
    """Print a table for each column: mean and worst person, and how many are below the generic head."""
    for column in COLUMNS:
        print(f"\nBalanced accuracy on {column}\n{'labelled':<24}{'head':<26}{'mean':>7}{'worst':>7}  {'of':<10}harmed")
        generic = scores.people("none", GENERIC, column)
        for (labelled, method), by_column in scores.found.items():
            if column not in by_column:
                continue
            own = scores.people(labelled, method, column)
            harmed = "" if method == GENERIC else f"{(own < generic - 1e-9).sum()} of {len(own)}"
            served = scores.served.get(labelled, [])
            said = f", the guard served {sum(served)} of {len(served)}" if method == SERVED else ""
            worst = scores.worst(labelled, method, column)
            print(f"{labelled:<24}{method:<26}{own.mean():>7.1%}{own.min():>7.1%}  {worst:<10}{harmed}{said}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="episodic", choices=("episodic", "handmade"))
    parser.add_argument("--folds", type=int, default=5, help="trainings; 10 leave one person out each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        config = TrainConfig.model_validate(
            {**TrainConfig.QUICK, "recipe": options.recipe, "seed": options.seed, "unit": "g and rad/s"}
        )
        show(run(Path(made), watch_recordings(), options.folds, config))
    print(f"\n{time.monotonic() - begin:.0f} s")
