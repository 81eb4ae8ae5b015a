"""Time of fit and guard, windows and features given: a synthetic population at 256 features, and a bundle; one core.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m bench.calibration_maths --model models/zoo/semg-myo

The store's commit and the backbone are left out. Medians over `--runs` after three runs that are not counted: the first
factors what depends on the population only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from bench import machine
from exporters import bundle as bundles
from models.heads.calibration import Calibration, calibrate
from models.heads.prior import Evidence, HyperParameters, Prior
from models.heads.statistics import Statistics

CLASSES, OVERLAP = 7, 10
WINDOW = (8, 52)
"""Channels and samples of a window, as from a Myo armband: looked at for flaws, and digested."""
RECORDING = 190
"""Windows of a gesture in a cycle, as in the Myo recordings: 5 s at a stride of 25 ms."""


def synthetic(dim: int, rng: np.random.Generator) -> Prior:
    """A population of Gaussian classes in `dim` features, without placements."""
    means = rng.standard_normal((CLASSES, dim)) * 1.5

    def spread(scale: float) -> np.ndarray:
        a = rng.standard_normal((dim, 2 * dim)) / np.sqrt(2 * dim)
        return scale * (a @ a.T)

    within = spread(1.0) + 0.1 * np.eye(dim)
    weight = np.linalg.solve(within + spread(1.0), means.T).T
    evidence = tuple(
        Evidence(windows=w, repetitions=r, users=19, gain=0.1, lower=0.05, floor=0.5)
        for w, r in ((1, 1), (5, 1), (150, 1), (300, 2), (450, 3), (600, 4))
    )
    hyper = HyperParameters(growth=1.0, window=30.0, shrinkage=100.0, temperature=8.0, shared=0.1, evidence=evidence)
    return Prior(
        labels=tuple(f"class {c}" for c in range(CLASSES)),
        generic_weight=weight,
        generic_bias=-0.5 * (weight * means).sum(1),
        means=means,
        within=within,
        between=spread(0.5),
        repetition=spread(0.1),
        whitening=np.eye(dim),
        hyper=hyper,
    )


def person(prior: Prior, per_recording: int, cycles: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Features `(n, d)`, labels and repetition ids of somebody of the population."""
    people = np.linalg.cholesky(prior.between + 1e-9 * np.eye(prior.personal)).T
    own = prior.means + rng.standard_normal(prior.means.shape) @ people
    noise = np.linalg.cholesky(prior.within + 1e-9 * np.eye(prior.personal)).T
    z, y, r = [], [], []
    for cycle in range(cycles):
        for c in range(prior.classes):
            z.append(own[c] + rng.standard_normal((per_recording, prior.personal)) @ noise)
            y.append(np.full(per_recording, c))
            r.append(np.full(per_recording, cycle))
    features = np.concatenate(z)
    rest = prior.dim - prior.personal
    if rest:  # the generic head's own features: here log-odds of the right class, as confident as usual
        labels = np.concatenate(y)
        evidence = rng.standard_normal((len(labels), rest)) - 4.0
        for block in range(rest // prior.classes):
            evidence[np.arange(len(labels)), block * prior.classes + labels] += 4.0
        features = np.concatenate([features, evidence], 1)
    return features.astype(np.float32), np.concatenate(y), np.concatenate(r)


def timed(runs: int, call: Callable[[], object]) -> dict[str, float]:
    """Median and least of a call's processor time, in ms; others at work on the machine inflate the median."""
    taken = []
    for run in range(runs + 3):
        begin = time.thread_time()
        call()
        if run >= 3:
            taken.append((time.thread_time() - begin) * 1e3)
    return {"median_ms": float(np.median(taken)), "least_ms": min(taken)}


def cases(prior: Prior, rng: np.random.Generator) -> dict[str, Callable[[], Calibration]]:
    """What is timed, by name."""
    z, y, r = person(prior, RECORDING, 4, rng)
    few = person(prior, 5, 1, rng)
    x, x_few = (rng.standard_normal((len(own[1]), *WINDOW), np.float32) for own in ((z, y), few))
    three = r < 3
    first = calibrate(prior, z[three], y[three], r[three], overlap=OVERLAP, x=x[three])
    known = {"before": first.statistics, "previous": first.head}
    last = ~three
    return {
        "4 cycles": partial(calibrate, prior, z, y, r, overlap=OVERLAP, x=x),
        "1 repetition added to 3": partial(
            calibrate, prior, z[last], y[last], r[last], overlap=OVERLAP, x=x[last], **known
        ),
        "5 windows a class": partial(calibrate, prior, *few, overlap=OVERLAP, x=x_few),
    }


def main() -> None:
    """Run the benchmark, print Markdown and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="bundle, timed beside the synthetic population")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rng = np.random.default_rng(0)
    priors = {"synthetic, 256 features": synthetic(256, rng), "synthetic, 64 features": synthetic(64, rng)}
    if chosen.model:
        bundle = bundles.load(bundles.resolve(chosen.model))
        p = bundle.prior
        priors[f"{bundle.manifest.name}, {p.personal} of {p.dim} features"] = p
    rows = []
    print("| population | calibration | windows | all (ms) | least | statistics | fit + guard | least | a second |")
    print("|--|--|--|--|--|--|--|--|--|")
    for name, prior in priors.items():
        for what, call in cases(prior, rng).items():
            row = {"population": name, "calibration": what, "windows": len(call.args[2]), **timed(chosen.runs, call)}
            sums = timed(
                chosen.runs, partial(Statistics.of, call.args[1][:, : prior.personal], *call.args[2:4], CLASSES)
            )
            row |= {"statistics_ms": sums["median_ms"], "per_second": 1e3 / row["median_ms"]}
            row["fit_and_guard_ms"] = row["median_ms"] - row["statistics_ms"]
            row["fit_and_guard_least_ms"] = row["least_ms"] - sums["least_ms"]
            rows.append(row)
            print(
                f"| {name} | {what} | {row['windows']} | {row['median_ms']:.2f} | {row['least_ms']:.2f} "
                f"| {row['statistics_ms']:.2f} | {row['fit_and_guard_ms']:.2f} | {row['fit_and_guard_least_ms']:.2f} "
                f"| {row['per_second']:.0f} |",
                flush=True,
            )
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": machine.describe(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
