"""The guard under bad calibrations: wrong labels, another's data, a turned or overdriven armband; who is harmed.

    python -m bench.guard --data ../shared/data/myo --run runs/semg-myo            the population, each person left out
    python -m bench.guard --data ../shared/data/myo --model models/zoo/semg-myo    evaluation people: counts as a run

Left-out people calibrate on three cycles and are scored on the fourth, which rotates with the seed; evaluation people
calibrate on the four cycles of `training0` and are scored on `Test0` and `Test1`. Damage to the signal lasts: what is
scored is damaged in the same way.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench import damage, guard_tables
from bench.guard_people import Person, left_out, tested
from models.heads.calibration import Calibration, calibrate, shared_head
from models.heads.head import Head

SHARES = (0.2, 0.4, 0.6, 0.8)
DRAWS, SHOWN = 6, 3
"""Sets of labels drawn for each person and round, and how many labels are shown."""
TURNS = (1, 2, 3, 4, -1, -2, -3)


@dataclass(slots=True)
class Outcome:
    """One calibration: accuracies of the shared head, the unguarded one and what was served; and what was said."""

    seed: int
    shared: float
    unguarded: float
    served: float
    outcome: str
    transfer: str
    warned: bool
    named: bool
    previous: float | None = None


@dataclass(slots=True)
class Row:
    """A condition's outcomes."""

    condition: str
    calibration: str
    outcomes: list[Outcome] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        """Return the figures of a table's row."""
        o = self.outcomes
        seeds = len({x.seed for x in o})
        gain = float(np.mean([x.unguarded - x.shared for x in o]))
        kept = float(np.mean([x.served - x.shared for x in o]))
        updates = [x for x in o if x.previous is not None]
        return {
            "condition": self.condition,
            "calibration": self.calibration,
            "calibrations": len(o),
            "rounds": seeds,
            "below_generic_unguarded": sum(x.unguarded < x.shared for x in o) / seeds,
            "below_generic": sum(x.served < x.shared for x in o) / seeds,
            "below_generic_most": max(sum(x.served < x.shared for x in o if x.seed == s) for s in {x.seed for x in o}),
            "below_previous_by_a_point": sum(x.served < (x.previous or 0) - 0.01 for x in updates) / seeds,
            "good_refused": sum(x.outcome in ("kept", "insufficient") and x.unguarded > x.shared for x in o) / seeds,
            "gain_unguarded": 100 * gain,
            "gain": 100 * kept,
            "warned": float(np.mean([x.warned for x in o])),
            "named": float(np.mean([x.named for x in o])),
            "transfer": {t: sum(x.transfer == t for x in o) for t in sorted({x.transfer for x in o})},
        }


class Bench:
    """Runs conditions for one person at a time and gathers rows."""

    def __init__(self, classes: int, labels: tuple[str, ...], block: int) -> None:
        self.classes, self.labels, self.block = classes, labels, block
        self.rows: dict[tuple[str, str], Row] = {}
        self.parts: dict[tuple[str, str], dict[str, list[list[float]]]] = {}

    def add(
        self,
        condition: str,
        calibration: str,
        person: Person,
        seed: int,
        result: Calibration,
        *,
        sign: str = "",
        damaged: str = "clean",
        previous: Head | None = None,
    ) -> None:
        """Score a calibration on the person's test windows; `sign` is what a right warning contains."""
        shared = shared_head(person.prior)
        active = shared if previous is None else previous
        served = result.head if result.head is not None else active
        row = self.rows.setdefault((condition, calibration), Row(condition, calibration))
        transfer = result.verdict.transfer
        row.outcomes.append(
            Outcome(
                seed,
                person.accuracy(shared, seed, damaged),
                person.accuracy(result.candidate, seed, damaged),
                person.accuracy(served, seed, damaged),
                result.verdict.outcome,
                transfer.verdict if transfer else "none",
                bool(result.warnings),
                bool(sign) and any(sign in w for w in result.warnings),
                None if previous is None else person.accuracy(previous, seed, damaged),
            )
        )

    def run(self, person: Person, others: list[Person], seed: int) -> None:
        """Run all conditions of one person."""
        rng = np.random.default_rng([seed, *person.name.encode()])
        if seed and not person.rotating:  # only what is random differs from the first round
            self._labels(person, "all cycles", seed, rng)
            return
        other = others[int(rng.integers(len(others)))]
        for name in person.calibrations(seed):
            self._labels(person, name, seed, rng)
            self._swaps(person, name, seed, rng)
            self._signals(person, name, seed)
            if "cycle" in name:
                self._some_labels(person, name, seed, rng)
            z, w = other.shown(name, seed, under=person)
            result = calibrate(person.prior, z, w.y, w.repetition, overlap=person.overlap, x=w.x)
            self.add("another's data", name, person, seed, result)
        self._update(person, other, seed, rng)

    def _labels(self, person: Person, name: str, seed: int, rng: np.random.Generator) -> None:
        z, w = person.shown(name, seed)
        for share in (0.0, *(SHARES if "cycle" in name else ())):
            y = damage.mislabelled(w.y, w.recording, share, self.classes, self.block, rng)
            result = calibrate(person.prior, z, y, w.repetition, overlap=person.overlap, x=w.x)
            title = f"labels {share:.0%} wrong" if share else "clean"
            # In a clean calibration: a false alarm of exchanged labels.
            self.add(title, name, person, seed, result, sign="contradict" if share else "were the labels")

    def _swaps(self, person: Person, name: str, seed: int, rng: np.random.Generator) -> None:
        z, w = person.shown(name, seed)
        pairs = [(a, b) for a in range(self.classes) for b in range(a)]
        for a, b in (pairs[i] for i in rng.permutation(len(pairs))[:7]):
            y = damage.swapped(w.y, a, b)
            result = calibrate(person.prior, z, y, w.repetition, overlap=person.overlap, x=w.x)
            names = {repr(self.labels[a]), repr(self.labels[b])}
            said = [warning for warning in result.warnings if all(n in warning for n in names)]
            self.add("two labels swapped", name, person, seed, result, sign=said[0] if said else "\0")

    def _signals(self, person: Person, name: str, seed: int) -> None:
        for title, sign in signals(person).items():
            z, w = person.shown(name, seed, title)
            result = calibrate(person.prior, z, w.y, w.repetition, overlap=person.overlap, x=w.x)
            group = "turned by " + ("1 electrode" if title in ("turned +1", "turned -1") else "2 to 4 electrodes")
            condition = group if title.startswith("turned") else title
            self.add(condition, name, person, seed, result, sign=sign, damaged=title)

    def _some_labels(self, person: Person, name: str, seed: int, rng: np.random.Generator) -> None:
        """Calibrations that show some of the labels; by person, the gain on those shown and on the others."""
        z, w = person.shown(name, seed)
        shared = shared_head(person.prior)
        for _ in range(DRAWS):
            labels = rng.permutation(self.classes)
            shown, others = labels[:SHOWN], labels[SHOWN:]
            keep = np.isin(w.y, shown)
            result = calibrate(
                person.prior, z[keep], w.y[keep], w.repetition[keep], overlap=person.overlap, x=w.x[keep]
            )
            heads = {"served": result.head or shared, "unguarded": result.candidate}
            for title, head in heads.items():
                gains = [
                    person.accuracy(head, seed, labels=some) - person.accuracy(shared, seed, labels=some)
                    for some in (shown, others)
                ]
                self.parts.setdefault((name, title), {}).setdefault(person.name, []).append(gains)

    def some_labels(self) -> list[dict[str, object]]:
        """Return the figures of calibrations that showed some of the labels."""
        rows: list[dict[str, object]] = []
        for (name, title), by_person in self.parts.items():
            each = np.array([np.mean(gains, 0) for gains in by_person.values()]) * 100
            runs = np.concatenate([np.array(gains) for gains in by_person.values()]) * 100
            rows.append(
                {
                    "calibration": name,
                    "head": title,
                    "people": len(each),
                    "gain_shown": float(each[:, 0].mean()),
                    "gain_others": float(each[:, 1].mean()),
                    "worst_others": float(each[:, 1].min()),
                    "below_shown": int((each[:, 0] < 0).sum()),
                    "below_others": int((each[:, 1] < 0).sum()),
                    "calibrations": len(runs),
                    "calibrations_below_others": int((runs[:, 1] < 0).sum()),
                    "calibrations_below_others_by_a_point": int((runs[:, 1] < -1).sum()),
                }
            )
        return rows

    def _update(self, person: Person, other: Person, seed: int, rng: np.random.Generator) -> None:
        z, w = person.shown("1 cycle", seed)
        first = calibrate(person.prior, z, w.y, w.repetition, overlap=person.overlap, x=w.x)
        previous = first.head or shared_head(person.prior)
        z, w = person.shown("later", seed)
        for share in (0.0, *SHARES):
            y = damage.mislabelled(w.y, w.recording, share, self.classes, self.block, rng)
            again = calibrate(
                person.prior, z, y, w.repetition, before=first.statistics, previous=first.head, overlap=person.overlap
            )
            title = f"update with {share:.0%} of labels wrong" if share else "clean update"
            sign = "contradict" if share else ""
            self.add(title, "1 cycle, then the others", person, seed, again, sign=sign, previous=previous)
        z, w = other.shown("later", seed, under=person)
        again = calibrate(
            person.prior, z, w.y, w.repetition, before=first.statistics, previous=first.head, overlap=person.overlap
        )
        title, sign = "update with another's data", "the same person"
        self.add(title, "1 cycle, then the others", person, seed, again, sign=sign, previous=previous)


def signals(person: Person) -> dict[str, str]:
    """Damages of the signal by name, with what a right warning contains."""
    turned = {f"turned {t:+d}": f"turned by {t:+d} electrode" for t in TURNS}
    channel = f"channel {person.channel} is"
    return {
        **turned,
        "gain x4": "times as strong",
        "gain x1/4": "times as strong",
        "flat channel": f"{channel} flat",
        "clipped channel": f"{channel} ",
    }


def progress(people: list[Person], others: list[Person], bench: Bench, seeds: int) -> Iterator[str]:
    """Run everything, and yield each person's name when done."""
    for person in people:
        for seed in range(seeds):
            bench.run(person, [p for p in others if p is not person], seed)
        person.forget()
        yield person.name


def main() -> None:
    """Run the benchmark, print Markdown and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--run", type=Path, help="finished run with its checkpoints: its own people, each left out")
    parser.add_argument("--model", type=Path, help="bundle: the evaluation people; counts as a run on them")
    parser.add_argument("--seeds", type=int, default=2, help="rounds")
    parser.add_argument("--only", default="", help="people whose names these are, with commas between")
    parser.add_argument("--log", type=Path, help="append a line: looks at the evaluation people are counted")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    chosen = parser.parse_args()
    if (chosen.run is None) == (chosen.model is None):
        parser.error("one of --run and --model is needed")
    found = left_out(chosen.run, chosen.data) if chosen.run else tested(chosen.model, chosen.data)
    people = [p for p in found if not chosen.only or p.name in chosen.only.split(",")]
    first = people[0]
    bench = Bench(first.prior.classes, first.prior.labels, first.block(damage.BLOCK_SECONDS))
    kind = "people of the population, each left out" if chosen.run else "evaluation people, the shipped bundle"
    for done, name in enumerate(progress(people, found, bench, chosen.seeds), 1):
        print(name, flush=True)
        rows, parts = [row.summary() for row in bench.rows.values()], bench.some_labels()
        text = guard_tables.of_conditions(rows, done, f"{done} {kind}; {chosen.seeds} rounds.")
        text += guard_tables.of_parts(parts, SHOWN, DRAWS)
        # After each person: a long run that is stopped has said something.
        if chosen.json:
            outcomes = {f"{r.calibration}, {r.condition}": [asdict(o) for o in r.outcomes] for r in bench.rows.values()}
            chosen.json.write_text(json.dumps({"rows": rows, "some_labels": parts, "outcomes": outcomes}) + "\n")
        if chosen.markdown:
            chosen.markdown.write_text(text)
    print(text)
    if chosen.log:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = {
            "at": at,
            "protocol": "guard",
            "people": len(people),
            "command": " ".join(sys.argv[1:]),
            "rows": len(rows),
        }
        with chosen.log.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
