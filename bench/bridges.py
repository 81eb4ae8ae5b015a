"""What bridges between families of features are worth: other features -> the shipped bundle's, people left out in turn.

python -m bench.bridges --data ../shared/data/myo --subjects 'pretrain_*'
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from exporters import bridge
from exporters import bundle as bundles
from models.data.recordings import load_folder
from models.data.windows import WindowSpec, windows
from models.evaluation import features

OTHERS = ("log_td_covariance", "log_td", "classic_td", "log_variance")


def main() -> None:
    """Print one row of a table a family."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--subjects", default="pretrain_*")
    arguments.add_argument("--to", type=Path, default=Path("models/zoo/semg-myo"))
    given = arguments.parse_args()
    new = bundles.load(bundles.resolve(given.to))
    spec = new.manifest.input
    recordings = load_folder(given.data, given.subjects)
    people = [bridge.person(rec, new, new, lambda _: None) for rec in recordings]
    print("| from | features | over the bridge | from windows | shared head | worst loss | passes |")
    print("|--|--|--|--|--|--|--|")
    for name in OTHERS:
        cut = WindowSpec(spec.window_shape[-1], spec.stride)
        found = [getattr(features, name)(windows(rec, cut).x) for rec in recordings]
        every = np.concatenate(found)
        scaled = [(z - every.mean(0)) / every.std(0) for z in found]
        fitted = bridge.fit([replace(p, old=z) for p, z in zip(people, scaled, strict=True)], new.prior)
        p = fitted.parity
        print(
            f"| `{name}` | {every.shape[1]} | {p.bridged:.2%} | {p.inputs:.2%} | {p.generic:.2%} | {p.worst_loss:.2%} "
            f"| {'yes' if p.passes else 'no'} |"
        )


if __name__ == "__main__":
    main()
