"""Two modalities in one model: each alone, fused, and with one of them missing. Writes docs/benchmarks/fusion.md.

`python -m bench.fusion --work runs/watch`: the recordings inside `seglearn` (ten people, seven exercises),
accelerometer and gyroscope as two modalities. A model of each is trained, one of all six channels beside them, and the
two are fused; everyone is judged by models that they had no part in.

`python -m bench.fusion --work runs/stamps --stamps /usr/share/tuxpaint/stamps`: the drawings and photographs of Tux
Paint with their captions, without users; each third of every label is judged by what the others made.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.machine import describe
from exporters import bundle as bundles
from exporters.export import export_run
from exporters.fuse import fit
from exporters.fuse_items import fit_items
from exporters.fusion import Member
from models.data.collections import load_collection
from models.data.pairs import load_pairs
from models.data.recordings import Recordings, load_folder, save
from models.data.watch import SENSORS, watch_recordings, with_channels
from models.training import TrainConfig, train
from models.training.linear_probe import LinearProbeConfig, train_probe
from models.training.run import RECORD

CHANNELS = {**SENSORS, "all_six_channels": slice(0, 6)}
PARTS = tuple(SENSORS)
NOTHING = 1e9
"""A pull to 0 after which nothing is said of a part that is missing."""
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "picture": ("package:efficientnet-lite0", {}),
    "caption": ("package:minilm-l6", {"max_tokens": 32}),
}
MIRRORED = ("_mirror", "_flip", "_mirror_flip")
FEWEST = 15
"""Stamps from which on a folder is a label."""
ITEM_COLUMNS = ("generic", "1 item", "5 items")
COLUMNS = ("generic", "1 window", "5 windows", "1 repetition")
"""Of the record: the shared head, and heads calibrated with so much of each label, all parts there."""

ABOUT = """# Two sensors in one model

Smartwatch recordings of `seglearn` (Burns et al. 2018): ten people, seven exercises, 50 Hz, windows of 2 s.
Accelerometer and gyroscope are two modalities, each with a model of its own. Everyone is scored by models, weights and
statistics of the nine others; personal heads are calibrated with all parts there, on windows of one repetition (a
quarter of a recording), and scored on other repetitions of both arms. Mean over people (worst). Settings of heads are
chosen on the same ten, in every row alike.
"""
ABOUT_STAMPS = """# A picture and its caption in one model

Tux Paint's stamps (Debian's `tuxpaint-stamps-default` 2022.06.04): 295 drawings and photographs with ten labels, and
the line that the program shows of each ("A crow."). EfficientNet-Lite0 and MiniLM-L6 as they are, linear probes behind
them, and no users: each third of every label in turn is left out of probes, weights and statistics, and judged by them;
personal heads are calibrated with some items of it that have both parts (as many as there are up to half, in labels
with fewer), and scored on the others. Mean over the thirds (worst).
"""


def main() -> None:
    """Train, fuse, and write one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs; what is there is used")
    parser.add_argument("--recipe", default="handmade", help="of the watch")
    parser.add_argument("--stamps", type=Path, help="folder of Tux Paint's stamps: these instead of the watch")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/fusion.md"))
    chosen = parser.parse_args()
    if chosen.stamps is None:
        command, columns = f"python -m bench.fusion --work runs/watch --recipe {chosen.recipe}", COLUMNS
        lines, about = watch(chosen.work, chosen.recipe), ABOUT
    else:
        command, columns = "python -m bench.fusion --work runs/stamps --stamps /usr/share/tuxpaint/stamps", ITEM_COLUMNS
        lines, about = captioned(chosen.work, chosen.stamps), ABOUT_STAMPS
    write_section(chosen.out, about, page(about, command, columns, lines))


def table_rows(title: str, evaluation: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """Rows of a table: a fit's figures by which parts are there."""
    table = []
    for row in evaluation["present"]:
        there = " + ".join(row["there"]).replace("_", " ")
        figures = (f"{row[c]['mean']:.1%} ({row[c]['worst']:.1%})" for c in columns)
        table.append(f"| {title} | {there} | {' | '.join(figures)} |")
        print(table[-1], flush=True)
    return table


def watch(work: Path, recipe: str) -> list[str]:
    """Rows of the watch."""
    members, runs, recordings = prepared(work, recipe)

    def rows(title: str, names: Sequence[str], **told: Any) -> list[str]:
        """Rows of one fit."""
        found, _ = fit([members[n] for n in names], runs, {n: recordings[n] for n in names}, **told)
        return table_rows(title, found.evaluation, COLUMNS)

    lines = [line for name in CHANNELS for line in rows("one model", [name])]
    for how in ("late", "concatenated"):
        lines += rows(how, PARTS, how=how)
    lines += rows("late, nothing said of what is missing", PARTS, ridge=NOTHING)
    lines += rows("late, said less of (ridge 1)", PARTS, ridge=1.0)
    lines += rows("late, said more of (ridge 0.01)", PARTS, ridge=0.01)
    return lines


def captioned(work: Path, source: Path) -> list[str]:
    """Rows of the stamps."""
    table = work / "stamps.csv"
    if not table.is_file():
        write_stamps(source, table)
    kinds = {"picture": "image", "caption": "text"}
    items, members, runs = load_pairs(table, kinds), {}, {}
    for name, (backbone, settings) in ENCODERS.items():
        runs[name] = work / name
        if not (runs[name] / RECORD).is_file():
            config = LinearProbeConfig(backbone=backbone, settings=settings)
            train_probe(load_collection(table, column=name), config, runs[name])
        exported = work / "members" / name
        path = exported / "1" if exported.is_dir() else export_run(runs[name], work / "members", name=name)
        members[name] = Member(name, bundles.load(path))

    def rows(title: str, names: Sequence[str], **told: Any) -> list[str]:
        """Rows of one fit."""
        alone = replace(items, parts={n: items.parts[n] for n in names}, kinds={n: kinds[n] for n in names})
        found = fit_items([members[n] for n in names], {n: runs[n] for n in names}, alone, **told)
        return table_rows(title, found.evaluation, ITEM_COLUMNS)

    lines = [line for name in ENCODERS for line in rows("one model", [name])]
    for how in ("late", "concatenated"):
        lines += rows(how, list(ENCODERS), how=how)
    return [*lines, *rows("late, nothing said of what is missing", list(ENCODERS), ridge=NOTHING)]


def write_stamps(source: Path, table: Path) -> None:
    """Write the stamps that have a caption, by the folder they are in, where it holds enough of them."""
    found: dict[str, list[tuple[Path, str]]] = {}
    for path in sorted(source.rglob("*.png")):
        parts, text = path.relative_to(source).parts, path.with_suffix(".txt")
        if path.stem.endswith(MIRRORED) or parts[0] == "symbols" or len(parts) < 3 or not text.is_file():
            continue
        caption = text.read_text("utf8", "replace").partition("\n")[0].strip()  # what follows is translations
        found.setdefault("-".join(parts[:2]), []).append((path.resolve(), caption))
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "caption", "label"])
        for label, rows in found.items():
            if len(rows) >= FEWEST:
                writer.writerows([path, caption, label] for path, caption in rows)


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


def page(about: str, command: str, columns: Sequence[str], lines: Sequence[str]) -> str:
    """The table with what it is and how it was made."""
    made = describe()
    heading = [f"| | there | {' | '.join(columns)} |", f"|--|--|{'--|' * len(columns)}"]
    return "\n".join([about, f"`{command}` on {made['cores']} cores ({made['processor']}).", "", *heading, *lines, ""])


def write_section(file: Path, about: str, text: str) -> None:
    """Put a section into a page, in the place of the one of the same heading."""
    heading = about.partition("\n")[0]
    there = file.read_text() if file.is_file() else ""
    sections = [f"# {part}" for part in there.split("# ")[1:]]
    sections = [part.rstrip() + "\n" for part in sections if not part.startswith(heading)]
    file.write_text("\n".join(sorted([*sections, text], reverse=True)))


if __name__ == "__main__":
    main()
