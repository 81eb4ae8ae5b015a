"""Adaptation without labels on left-out people of the population: the figures that its settings were chosen by.

Each person's prior is made of the others, the generic logits are of a network that did not see them (the checkpoints
of the training run), so that nothing here looks at the evaluation's people. A person is calibrated on the first
repetitions from a start, and the others are the stream.

    python -m bench.adaptation --run runs/semg-myo --data ../shared/data/myo --set sharpness=0.5 --set share=0
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.recordings import load_folder
from models.data.windows import Windows, WindowSpec, windows
from models.evaluation.streams import STREAMS, StreamKind, chosen
from models.heads.adaptation import Anchor, Settings
from models.heads.fit import fit_map
from models.heads.prior import Prior
from models.heads.statistics import Statistics
from models.heads.unlabelled import Stream, adapt
from models.training import load_run
from models.training.strangers import strangers

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Person:
    """A left-out person: features `(n, p + K)` with the generic logits behind, under the prior of the others.

    `features` are of any windows of theirs.
    """

    name: str
    prior: Prior
    z: Array
    windows: Windows
    features: Callable[[NDArray[np.float32]], Array]


def left_out(run: Path, data: Path) -> Iterator[Person]:
    """Every person of a training run, left out."""
    recordings = load_folder(data, "pretrain_*")
    by_name = {r.subject: r for r in recordings}
    for who in strangers(load_run(run), recordings):
        rec = by_name[who.name]
        found = windows(rec, WindowSpec.for_signal(rec.fs, rec.modality))
        yield Person(who.name, who.prior, who.features(found.x), found, who.features)


def calibration(person: Person, shot: str, first: int) -> tuple[Statistics, NDArray[np.intp]]:
    """Statistics of a calibration (`5w`, `1 cycle`) that begins at a repetition, and the windows that follow."""
    w, k = person.windows, person.prior.classes
    order = np.roll(np.unique(w.repetition), -first)
    used, shown = 1, np.zeros(len(w), bool)
    if shot.endswith("w"):
        for c in range(k):
            own = np.flatnonzero((w.repetition == order[0]) & (w.y == c))
            few = int(shot[:-1])
            middle = min(len(own) // 2, len(own) - few)
            shown[own[middle : middle + few]] = True
    else:
        used = int(shot.split()[0])
        shown = np.isin(w.repetition, order[:used])
    stats = Statistics.of(person.z[shown, : person.prior.personal], w.y[shown], w.repetition[shown], k)
    return stats, np.concatenate([np.flatnonzero(w.repetition == r) for r in order[used:]])


def gains(
    person: Person, shot: str, first: int, kind: StreamKind, settings: Settings, every: int
) -> Iterator[tuple[float, float, float, str]]:
    """For each draw of a stream: accuracy unadapted, causal and over the batch, and the guard's last word."""
    stats, follow = calibration(person, shot, first)
    head = fit_map(stats, person.prior)
    for draw in range(kind.draws):
        kept = follow[chosen(kind, draw, person.windows.select(follow), person.prior.classes, seed=0)]
        z, y = person.z[kept], person.windows.y[kept]
        anchor = Anchor(person.prior, stats, head, settings)
        stream, hits = Stream(anchor, every), []
        for at in range(0, len(y), every):
            hits.append(stream.head.logits(z[at : at + every]).argmax(1) == y[at : at + every])
            stream.observe(z[at : at + every])
        batch = adapt(anchor, z).head or head
        said = stream.adaptation.outcome if stream.adaptation else "too short"
        yield (
            float((head.logits(z).argmax(1) == y).mean()),
            float(np.concatenate(hits).mean()),
            float((batch.logits(z).argmax(1) == y).mean()),
            said,
        )


def main() -> None:
    """Print a line a shot and stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run, with its checkpoints")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shots", default="1w,5w,1 cycle,2 cycles")
    parser.add_argument("--starts", default="0,2", help="repetitions that calibrations begin at")
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting to change")
    asked = parser.parse_args()
    changes = dict(pair.split("=") for pair in asked.set)
    settings = replace(Settings(), **{k: type(getattr(Settings(), k))(float(v)) for k, v in changes.items()})
    people = list(left_out(asked.run, asked.data))
    print(settings)
    print("| shot | stream | unadapted | causal | least user, draw | below by > 0.2 | batch | guard |")
    print(f"|{'--|' * 8}")
    for shot in asked.shots.split(","):
        for kind in STREAMS:
            print(
                _row(people, shot, kind, [int(s) for s in asked.starts.split(",")], settings, asked.every), flush=True
            )


def _row(people: list[Person], shot: str, kind: StreamKind, starts: list[int], settings: Settings, every: int) -> str:
    by_user, said = [], Counter[str]()
    for person in people:
        found = [g for first in starts for g in gains(person, shot, first, kind, settings, every)]
        by_user.append(100 * np.array([g[:3] for g in found]))
        said.update(g[3] for g in found)
    mean = np.array([user.mean(0) for user in by_user])
    gain = mean[:, 1] - mean[:, 0]
    draw = min(float((user[:, 1] - user[:, 0]).min()) for user in by_user)
    return (
        f"| {shot} | {kind.name} | {mean[:, 0].mean():.2f} | {mean[:, 1].mean():.2f} | {gain.min():+.2f}, {draw:+.2f} "
        f"| {int((gain < -0.2).sum())} | {mean[:, 2].mean():.2f} | {', '.join(f'{n} {w}' for w, n in said.items())} |"
    )


if __name__ == "__main__":
    main()
