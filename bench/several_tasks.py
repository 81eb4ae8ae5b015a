"""One backbone for three tasks beside three backbones of one: what each is right in, and what they cost.

Short descriptions of Debian's packages; their section (8), their interface as package tags say it (4; three quarters
of the packages have none: cells that are not known), and their installed size (log₁₀ kB, a number). Packages of half
of the sources are learned from, those of the others asked; nothing in the run knows them.

apt-get update
python -m bench.several_tasks --recipes linear-probe lp-ft --seeds 0 1 2 --json tasks.json
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bench.machine import describe
from exporters import bundle as bundles
from exporters.bundle import Bundle
from exporters.export import export_run
from models.data.asked import asks
from models.data.media import reader_of
from models.data.tasks import Measured, Task, Tasks, load_tasks
from models.training.fine_tuning import fine_tune
from models.training.linear_probe import LinearProbeConfig, train_probe
from models.training.several import fine_tune_tasks, probe_tasks
from models.training.tuned import TuneConfig
from models.training.tuned_tasks import TasksConfig

ASKED = ("section", "interface", "size")
SECTIONS = ("admin", "games", "graphics", "mail", "math", "net", "sound", "web")
INTERFACES = ("commandline", "daemon", "graphical", "text-mode")
EACH = 75
BACKBONE = "package:minilm-l6"


def packages() -> list[dict[str, str]]:
    """Every package of the sections once, with source, text and what is known of it."""
    dump = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, str]] = {}
    for entry in dump.replace("\n ", " ").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line)
        section, size = fields.get("Section", "").split("/")[-1], int(fields.get("Installed-Size", 0))
        faces = [face for face in re.findall(r"interface::([\w-]+)", fields.get("Tag", "")) if face in INTERFACES]
        if section in SECTIONS and size and "Description" in fields:
            found.setdefault(
                fields["Description"],
                {
                    "source": fields.get("Source", fields["Package"]).split()[0],
                    "text": fields["Description"],
                    "section": section,
                    "interface": faces[0] if len(faces) == 1 else "",
                    "size [log10 kB]": f"{math.log10(size):.3f}",
                },
            )
    return sorted(found.values(), key=lambda row: row["text"])


def tables(folder: Path, seed: int) -> tuple[Path, Path]:
    """Two tables of other sources, up to 75 a section each."""
    rows, rng = packages(), np.random.default_rng(seed)
    sources = sorted({row["source"] for row in rows})
    half = set(rng.permutation(sources)[: len(sources) // 2].tolist())
    order = rng.permutation(len(rows))
    files = []
    for name in ("learned", "asked"):
        own = [rows[i] for i in order if (rows[i]["source"] in half) == (name == "learned")]
        kept = [row for s in SECTIONS for row in [r for r in own if r["section"] == s][:EACH]]
        files.append(folder / f"{name}.csv")
        with files[-1].open("w", newline="") as opened:
            writer = csv.DictWriter(
                opened, ["text", *(k for k in kept[0] if k not in ("text", "source"))], extrasaction="ignore"
            )
            writer.writeheader()
            writer.writerows(kept)
    return files[0], files[1]


def trained(data: Tasks, recipe: str, steps: int, out: Path) -> tuple[Bundle, float]:
    """A bundle of all tasks of the data, and the processor time of its training."""
    begin = time.process_time()
    (task, *others) = data.tasks
    several = others or isinstance(task.data, Measured)
    if recipe == "linear-probe":
        probe = LinearProbeConfig(backbone=BACKBONE)
        run: Any = probe_tasks(data, probe, out) if several else train_probe(task.data, probe, out)  # type: ignore[arg-type]
    else:
        told = {"backbone": BACKBONE, "recipe": recipe, "steps": steps, "folds": 2}
        if several:
            run = fine_tune_tasks(data, TasksConfig.model_validate(told), out)
        else:
            run = fine_tune(task.data, TuneConfig.model_validate(told), out)  # type: ignore[arg-type]
    seconds = time.process_time() - begin
    return bundles.load(export_run(run.folder, out.parent / "models", name=out.name)), seconds


def features(bundle: Bundle, items: Tasks) -> NDArray[np.float32]:
    """Features `(n, d)` of texts, as the service computes them."""
    session = ort.InferenceSession(bundle.backbone, providers=["CPUExecutionProvider"])
    reader = reader_of(bundle.manifest.input, bundle.file)
    assert reader is not None
    blocks = [[items.read(i) for i in range(at, min(at + 32, len(items)))] for at in range(0, len(items), 32)]
    return np.concatenate([session.run(None, {"input": reader.read(block)})[0] for block in blocks])


def worth(output: Bundle, task: Task, z: NDArray[np.float32]) -> float:
    """Accuracy of the shared head, or the share of the variance that it explains, on the rows that are known."""
    manifest = output.manifest
    own = np.concatenate([z[:, a:b] for a, b in manifest.features], 1) if manifest.features else z
    if isinstance(task.data, Measured):
        said = output.regression.generic.logits(own[task.rows])
        return float(1 - ((said - task.data.t) ** 2).mean() / task.data.t.var())
    said = own[task.rows] @ output.prior.generic_weight.T + output.prior.generic_bias
    return float((np.array(manifest.labels)[said.argmax(1)] == np.array(task.labels)[task.data.y]).mean())


def compared(recipe: str, steps: int, seed: int) -> list[dict[str, Any]]:
    """The joint model and one model a task, on one split of the sources."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        learned, asked = tables(folder, seed)
        test = load_tasks(asked, asks(ASKED))
        rows = []
        for name, names in (("one backbone", [ASKED]), ("a backbone each", [(n,) for n in ASKED])):
            row: dict[str, Any] = {"recipe": recipe, "seed": seed, "model": name, "seconds": 0.0, "bytes": 0}
            for i, own in enumerate(names):
                bundle, seconds = trained(
                    load_tasks(learned, asks(own)), recipe, steps, folder / f"{name[0]}{len(names)}{i}"
                )
                row["seconds"] += seconds
                row["bytes"] += len(bundle.backbone)
                z = features(bundle, test)
                for output, each in zip(bundle.outputs or (bundle,), own, strict=True):
                    row[each] = worth(output, test.tasks[ASKED.index(each)], z)
            rows.append(row)
            print(json.dumps(row), flush=True)
        return rows


def main() -> None:
    """Compare, and print the means over splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=["linear-probe", "lp-ft"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [
        row for recipe in options.recipes for seed in options.seeds for row in compared(recipe, options.steps, seed)
    ]
    print("| recipe | model | section | interface | size, R² | processor time | MB |\n|--|--|--|--|--|--|--|")
    for recipe in options.recipes:
        for name in ("one backbone", "a backbone each"):
            own = [row for row in rows if (row["recipe"], row["model"]) == (recipe, name)]
            said = [f"{np.mean(x):.3f} ± {np.std(x):.3f}" for x in ([r[task] for r in own] for task in ASKED)]
            seconds, size = np.mean([r["seconds"] for r in own]), np.mean([r["bytes"] for r in own]) / 1e6
            print(f"| {recipe} | {name} | {' | '.join(said)} | {seconds:.0f} s | {size:.0f} |")
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": describe(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
