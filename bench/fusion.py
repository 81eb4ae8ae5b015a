"""Two sensors of a watch in one model: each alone, fused, and with one of them missing.

`python -m bench.fusion --work runs/watch`: the recordings inside `seglearn` (ten people, seven exercises),
accelerometer and gyroscope as two modalities. A model of each is trained, one of all six channels beside them, and the
two are fused; everyone is judged by models that they had no part in. Writes docs/benchmarks/fusion.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.machine import describe
from exporters import bundle as bundles
from exporters.export import export_run
from exporters.fuse import fit
from exporters.fusion import Member
from models.data.recordings import Recordings, load_folder, save
from models.data.watch import watch_recordings
from models.training import TrainConfig, train
from models.training.run import RECORD

CHANNELS = {"accelerometer": slice(0, 3), "gyroscope": slice(3, 6), "all_six_channels": slice(0, 6)}
PARTS = ("accelerometer", "gyroscope")
NOTHING = 1e9
"""A pull to 0 after which nothing is said of a part that is missing."""
COLUMNS = ("generic", "1 window", "5 windows", "1 repetition")
"""Of the record: the shared head, and heads calibrated with so much of each label, all parts there."""

ABOUT = """# Two sensors in one model

Smartwatch recordings of `seglearn` (Burns et al. 2018): ten people, seven exercises, 50 Hz, windows of 2 s.
Accelerometer and gyroscope are two modalities, each with a model of its own. Everyone is scored by models, weights and
statistics of the nine others; personal heads are calibrated with all parts there, on windows of one repetition (a
quarter of a recording), and scored on other repetitions of both arms. Mean over people (worst). Settings of heads are
chosen on the same ten, in every row alike.
"""


def main() -> None:
    """Train, fuse, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for recordings and runs; what is there is used"
    )
    parser.add_argument("--recipe", default="handmade")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/fusion.md"))
    chosen = parser.parse_args()
    members, runs, recordings = prepared(chosen.work, chosen.recipe)

    def rows(title: str, names: Sequence[str], **told: Any) -> list[str]:
        """Rows of the table: a fit's figures by which parts are there."""
        found, _ = fit([members[n] for n in names], runs, {n: recordings[n] for n in names}, **told)
        table = []
        for row in found.evaluation["present"]:
            there = " + ".join(row["there"]).replace("_", " ")
            figures = (f"{row[c]['mean']:.1%} ({row[c]['worst']:.1%})" for c in COLUMNS)
            table.append(f"| {title} | {there} | {' | '.join(figures)} |")
            print(table[-1], flush=True)
        return table

    lines = [line for name in CHANNELS for line in rows("one model", [name])]
    for how in ("late", "concatenated"):
        lines += rows(how, PARTS, how=how)
    lines += rows("late, nothing said of what is missing", PARTS, ridge=NOTHING)
    lines += rows("late, said less of (ridge 1)", PARTS, ridge=1.0)
    lines += rows("late, said more of (ridge 0.01)", PARTS, ridge=0.01)
    chosen.out.write_text(page(lines, chosen.recipe))


def prepared(work: Path, recipe: str) -> tuple[dict[str, Member], Mapping[str, Path], dict[str, Sequence[Recordings]]]:
    """Recordings by channels, a run of each, and the runs' bundles as members."""
    folders = {name: name.replace("_", "-") for name in CHANNELS}
    people = watch_recordings()
    members, runs, recordings = {}, {}, {}
    for name, folder in folders.items():
        data, run = work / "data" / folder, work / f"{recipe}-{folder}"
        if not data.is_dir():
            for person in people:
                save(data / f"{person.subject}.npz", with_channels(person, CHANNELS[name]))
        recordings[name] = load_folder(data)
        if not (run / RECORD).is_file():
            train(recordings[name], TrainConfig(recipe=recipe, unit="g, rad/s"), run)
        exported = work / "members" / recipe / folder
        path = exported / "1" if exported.is_dir() else export_run(run, work / "members" / recipe, name=folder)
        members[name], runs[name] = Member(name, bundles.load(path)), run
    return members, runs, recordings


def with_channels(person: Recordings, channels: slice) -> Recordings:
    """The same recordings with some of their channels."""
    told = {"label_names": person.label_names, "fs": person.fs, "subject": person.subject, "modality": person.modality}
    sessions = {"session": person.session, "session_names": person.session_names}
    where = person.start, person.stop, person.label, person.repetition
    return Recordings.build(person.signal[:, channels], *where, **told, **sessions)


def page(lines: Sequence[str], recipe: str) -> str:
    """The table with what it is and how it was made."""
    made = describe()
    command = f"`python -m bench.fusion --work runs/watch --recipe {recipe}`"
    heading = [f"| | there | {' | '.join(COLUMNS)} |", f"|--|--|{'--|' * len(COLUMNS)}"]
    return "\n".join([ABOUT, f"{command} on {made['cores']} cores ({made['processor']}).", "", *heading, *lines, ""])


if __name__ == "__main__":
    main()
