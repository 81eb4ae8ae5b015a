"""What each part of the signals' recipe is worth, on people of the population who had no part in it.

    python -m bench.ablation --data ../shared/data/myo --seeds 5 --out docs/benchmarks/ablation

Folds as in `headway train`. Every network is trained for the same number of steps, so that nobody who is left out has
a say in when it stops. A seed draws episodes, augmentation and dropout; the first weights are the same, as in the folds
of `headway train`. Personal heads have the settings of a bundle. FILE.json keeps every person's figures of every seed;
a run that was interrupted goes on from it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.ablation_networks import VARIANTS, Variant, train_branch
from exporters.bundle import read_manifest, resolve
from models.data.recordings import load_folder
from models.files import write_atomically
from models.heads.fit import fit_lda, fit_map, shared_share
from models.heads.prior import HyperParameters, Prior
from models.heads.transfer import student
from models.heads.tuning import LeftOut, Trial, trials_of, with_settings
from models.training import generic
from models.training.config import TrainConfig
from models.training.generic import HeldOutEvidence
from models.training.people import fold_members
from models.training.population import population_prior
from models.training.train import Training

Array = NDArray[np.float64]
SHOTS = {"1w": (1, 1), "5w": (5, 1), "1 cycle": (0, 1), "2 cycles": (0, 2), "3 cycles": (0, 3)}
COLUMNS = ("network alone", "0-shot", "0-shot, turned", *SHOTS)
NO_NETWORK = "no network"


class Bench:
    """The population, its folds, and everyone's calibrations under the prior of the others."""

    def __init__(self, data: Path, subjects: str, steps: int, hyper: HyperParameters) -> None:
        self.hyper = hyper
        self.config = TrainConfig(steps=steps)
        with tempfile.TemporaryDirectory() as folder:  # nothing is written there: a run is only half made
            recordings = load_folder(data, subjects)
            self.work = Training(recordings, self.config, Path(folder), lambda stage, done, total: None)
        self.people = self.work.people
        self.folds = fold_members(len(self.people), self.config)
        self.classes = len(self.people.labels)
        self.left: list[LeftOut] = []
        self.trials: list[Trial] = []
        for u, member in enumerate(self.people.members):
            others = [v for v in range(len(self.people)) if v != u]
            prior, centre, a = population_prior(self.work.moments, others, self.people.labels, self.config.personal)
            z = (self.work.features[u] - centre) @ a
            blank = np.zeros((len(member.y), self.classes))
            self.left.append(LeftOut(prior, z, member.y, member.session, member.repetition, blank))
            trials = trials_of(u, self.left[-1])
            self.trials += [t for t in trials if t.shot in SHOTS.values() and not t.hidden and not t.elsewhere]

    def held(self, variant: Variant, seed: int) -> list[HeldOutEvidence]:
        """Evidence about everyone from networks trained without them."""
        found = []
        for fold, (kept, out) in enumerate(self.folds):
            encoder, _ = self.work.encoder(kept)
            train_branch(encoder, self.people, kept, self.config, variant, 100 * seed + fold)
            for u in out:
                found += generic.held_out_evidence(encoder, self.people, u)
        return found

    def figures(self, held: Sequence[HeldOutEvidence]) -> dict[str, list[float]]:
        """Accuracy in percent by column and person, the evidence weighed as `headway train` does."""
        weights, logits = generic.weigh(held, self.classes)
        turned: list[list[float]] = [[] for _ in self.left]
        found: dict[str, list[float]] = {}
        if held[0].evidence.shape[1] > self.classes:
            worn = sorted((h for h in held if h.as_worn), key=lambda h: h.person)
            found["network alone"] = [float((h.evidence[:, : self.classes].argmax(1) == h.y).mean()) for h in worn]
        for h in held:
            if not h.as_worn:
                hits = generic.mixed(h.evidence, self.classes, weights.learned).argmax(1) == h.y
                turned[h.person].append(float(hits.mean()))
        zero = [float((logits[u].argmax(1) == p.y).mean()) for u, p in enumerate(self.left)]
        found |= {"0-shot": zero, "0-shot, turned": [float(np.mean(t)) for t in turned if t]}
        found |= self.personal(lambda prior: prior, logits)
        return {k: [round(100 * a, 3) for a in v] for k, v in found.items()}

    def personal(
        self, changed: Callable[[Prior], Prior], logits: dict[int, Array] | None, *, own: bool = False
    ) -> dict[str, list[float]]:
        """Accuracy of personal heads by shot and person, under a changed prior, or of their own discriminant."""
        priors = [changed(with_settings(p.prior, self.hyper)) for p in self.left]
        hits: dict[str, list[list[float]]] = {name: [[] for _ in self.left] for name in SHOTS}
        names = {shot: name for name, shot in SHOTS.items()}
        for t in self.trials:
            person = self.left[t.person]
            head = (fit_lda if own else fit_map)(t.stats, priors[t.person])
            found = head.logits(person.z[t.scored])
            if logits is not None:
                found = found + shared_share(t.stats, self.hyper) * logits[t.person][t.scored]
            hits[names[t.shot]][t.person].append(float((found.argmax(1) == person.y[t.scored]).mean()))
        everyone = {name: by_person for name, by_person in hits.items() if all(by_person)}
        return {name: [float(np.mean(h)) for h in by_person] for name, by_person in everyone.items()}

    def priors(self, logits: dict[int, Array]) -> dict[str, dict[str, list[float]]]:
        """Personal heads by what they know of the population; the same evidence beside those that know any."""

        def pooled(prior: Prior) -> Prior:
            away = prior.means - prior.means.mean(0)
            spread = away.T @ away / (len(away) - 1)
            between = spread + 1e-3 * np.trace(spread) / len(spread) * np.eye(len(spread))
            return replace(prior.at(0), between=between, correlation=None)

        rows = {
            "population, every placement": self.personal(lambda prior: prior, logits),
            "population, as worn": self.personal(lambda prior: prior.at(0), logits),
            "the same, no evidence beside": self.personal(lambda prior: prior.at(0), None),
            "as worn, classes unrelated": self.personal(lambda prior: replace(prior.at(0), correlation=None), logits),
            "pooled: no users, the classes' spread": self.personal(pooled, None),
            "none: the user's own discriminant": self.personal(lambda prior: prior.at(0), None, own=True),
        }
        return {row: {k: [round(100 * a, 3) for a in v] for k, v in found.items()} for row, found in rows.items()}


def average(runs: Sequence[Sequence[HeldOutEvidence]]) -> list[HeldOutEvidence]:
    """The evidence of several networks as one: the mean of their log posteriors."""
    return [replace(same[0], evidence=np.mean([h.evidence for h in same], 0)) for same in zip(*runs, strict=True)]


def table(rows: dict[str, list[dict[str, list[float]]]]) -> str:
    """A row a variant: mean over people and seeds (worst person), and beside it the difference to the first row."""
    shipped = next(iter(rows.values()))
    lines = ["| | seeds | " + " | ".join(COLUMNS) + " |", "|--|--|" + "--|" * len(COLUMNS)]
    for name, runs in rows.items():
        cells = [_cell(column, runs, shipped) for column in COLUMNS]
        lines.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(column: str, runs: list[dict[str, list[float]]], shipped: list[dict[str, list[float]]]) -> str:
    if not runs[0].get(column):
        return "–"
    own = np.mean([s[column] for s in runs], 0)
    cell = f"{own.mean():.2f} ({own.min():.1f})"
    if runs is not shipped:
        gain = own - np.mean([s[column] for s in shipped], 0)
        reach = student(0.975, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5
        return cell + f", {gain.mean():+.2f} ± {reach:.2f}"
    if len(runs) > 1:
        return cell + f", seeds ± {np.std([np.mean(s[column]) for s in runs], ddof=1):.2f}"
    return cell


def prior_table(rows: dict[str, dict[str, list[float]]]) -> str:
    """A row a prior: mean over people, and the worst."""
    shots = [name for name in SHOTS if all(name in found for found in rows.values())]
    lines = ["| prior | " + " | ".join(shots) + " |", "|--|" + "--|" * len(shots)]
    for name, found in rows.items():
        lines.append(
            f"| {name} | " + " | ".join(f"{np.mean(found[c]):.2f} ({min(found[c]):.1f})" for c in shots) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, and write FILE.json and FILE.md after every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="recordings folder")
    parser.add_argument("--subjects", default="pretrain_*")
    parser.add_argument("--model", type=Path, default=Path("models/zoo/semg-myo"), help="bundle: settings of the heads")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", type=int, default=len(VARIANTS), help="the first so many rows only")
    parser.add_argument("--steps", type=int, default=400, help="of a network; a contrast before takes as many")
    parser.add_argument("--out", type=Path, required=True, help="file to write, without .json and .md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    settings = read_manifest(resolve(asked.model))[0].head
    run(asked.data, asked.subjects, settings, asked.seeds, asked.variants, asked.steps, asked.out)


def run(data: Path, subjects: str, hyper: HyperParameters, seeds: int, variants: int, steps: int, out: Path) -> None:
    """Do what is not in FILE.json yet."""
    file = out.with_suffix(".json")
    record: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"steps": steps, "rows": {}}
    if record["steps"] != steps:
        raise SystemExit(f"{file} is of networks of {record['steps']} steps; take another --out, or --steps as then.")
    bench = Bench(data, subjects, steps, hyper)
    shipped: list[list[HeldOutEvidence]] = []
    rows: dict[str, list[dict[str, list[float]]]] = record["rows"]
    for seed in range(seeds):
        for variant in VARIANTS[:variants]:
            own = rows.setdefault(variant.name, [])
            first = variant is VARIANTS[0]
            if len(own) > seed and not (first and record.get("averaged", 1) < seeds):
                continue  # for the row of their mean, the first row's networks are trained anew, the same again
            begin = time.monotonic()
            held = bench.held(variant, seed)
            if first:
                shipped.append(held)
            if len(own) <= seed:
                own.append(bench.figures(held))
            print(f"seed {seed}, {variant.name}: {time.monotonic() - begin:.0f} s", flush=True)
            if first and not seed:
                alone = [replace(h, evidence=h.evidence[:, bench.classes :]) for h in held]
                rows[NO_NETWORK] = [bench.figures(alone)]
                record["prior"] = bench.priors(generic.weigh(held, bench.classes)[1])
            if first and seed:
                rows["mean of the seeds' networks"] = [bench.figures(average(shipped))]
                record["averaged"] = seed + 1
            write_atomically(file, json.dumps(record).encode() + b"\n")
            write_atomically(out.with_suffix(".md"), page(record, len(bench.left)).encode())


def page(record: dict[str, Any], people: int) -> str:
    """Both tables, and what they are of."""
    head = (
        f"{people} people of the population, each left out; window accuracy in %, mean over people (worst person); "
        f"networks of {record['steps']} steps. Behind the comma: the first row's deviation over seeds, or the "
        "difference to the first row with its 95 % interval over people.\n\n"
    )
    return head + table(record["rows"]) + "\n\n" + prior_table(record["prior"]) + "\n"


if __name__ == "__main__":
    main()
