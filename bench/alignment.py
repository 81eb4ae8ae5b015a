"""Ways to normalise a user without labels, on left-out people of the population: who gains, who loses.

All windows of a stream are looked at first (batch). `mean`: first moments of the features (AdaBN); `CORAL`: the first
two; `channels`: each raw channel is given the root mean square that it had in the calibration's repetition, and
features are computed anew; `class means`: what Headway serves (models/heads/unlabelled.py).

    python -m bench.alignment --run runs/semg-myo --data ../shared/data/myo
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.adaptation import Person, calibration, left_out
from models.evaluation.streams import BALANCED, STREAMS, StreamKind, chosen
from models.heads.adaptation import Anchor
from models.heads.fit import fit_map
from models.heads.moments import MomentAligner
from models.heads.unlabelled import adapt

WAYS = ("unadapted", "mean", "CORAL", "channels", "class means")


def accuracies(person: Person, shot: str, kind: StreamKind) -> NDArray[np.float64]:
    """Accuracy of each way, over the draws of a stream `(draws, ways)`; NaN where a way was not tried."""
    stats, follow = calibration(person, shot, 0)
    w, head = person.windows, fit_map(stats, person.prior)
    shown = np.setdiff1d(np.flatnonzero(w.repetition == w.repetition.min()), follow)
    found = []
    for draw in range(kind.draws):
        kept = follow[chosen(kind, draw, w.select(follow), person.prior.classes, seed=0)]
        z, y = person.z[kept], w.y[kept]
        anchor = Anchor(person.prior, stats, head)
        logits = [head.logits(z)]
        for second in (False, True):
            aligner = MomentAligner(anchor, second=second)
            aligner.observe(z)
            logits.append(head.logits(aligner.aligned(z)))
        row = [(found.argmax(1) == y).mean() for found in logits]
        row.append((head.logits(person.features(_as(w.x[kept], w.x[shown]))).argmax(1) == y).mean()
                   if kind.name == BALANCED else np.nan)  # fmt: skip
        row.append(((adapt(anchor, z).head or head).logits(z).argmax(1) == y).mean())
        found.append(row)
    return np.array(found)


def _as(x: NDArray[np.float32], shown: NDArray[np.float32]) -> NDArray[np.float32]:
    """Windows `(n, C, T)` whose channels have the root mean squares of others."""
    gain = np.sqrt((shown.astype(np.float64) ** 2).mean((0, 2)) / (x.astype(np.float64) ** 2).mean((0, 2)))
    return (x * gain[:, None]).astype(np.float32)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run, with its checkpoints")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shots", default="1w,5w,1 cycle")
    asked = parser.parse_args()
    people = list(left_out(asked.run, asked.data))
    print(f"{len(people)} people; mean accuracy in % (least gain of a person; people who lose more than 0.2 points)")
    print(f"| labelled | stream | {' | '.join(WAYS)} |\n|{'--|' * (2 + len(WAYS))}")
    for shot in asked.shots.split(","):
        for kind in STREAMS:
            by_person = 100 * np.array([accuracies(p, shot, kind).mean(0) for p in people])
            gain = by_person - by_person[:, :1]
            cells = [f"{by_person[:, 0].mean():.2f}"]
            for i in range(1, len(WAYS)):
                if np.isnan(by_person[:, i]).any():
                    cells.append("–")
                    continue
                least, losers = gain[:, i].min(), int((gain[:, i] < -0.2).sum())
                cells.append(f"{by_person[:, i].mean():.2f} ({least:+.2f}; {losers})")
            print(f"| {shot} | {kind.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
