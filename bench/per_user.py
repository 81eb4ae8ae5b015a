"""A person's own labels from a few examples: the served personal head, a linear probe, the encoder fine-tuned.

All see the same examples and are asked the same. Seconds of a network are of the processor, those of a personal head
what the service says of the call (features, fit, guard, store).

    python -m bench.per_user --data FOLDER_OR_TABLE --backbone package:efficientnet-lite0 --cache .cache/features
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import torch

from bench.machine import describe
from bench.recipes import job_of
from examples.few_shot import SHOTS, WAYS, probe_accuracy, pull_of, served_accuracy, some, tasks, unit
from exporters.export import export_run
from models.backbones import create_encoder
from models.data.collections import Collection, load_collection
from models.training.devices import one_process
from models.training.features import features_of
from models.training.inputs import Inputs
from models.training.linear_probe import LinearProbeConfig, train_probe
from models.training.loop import fit
from models.training.memory import keep_freed
from models.training.probe_fit import fit_probe
from models.training.tuned import SCALE, TuneConfig, Tuned, Tuning, encoded, loop_of, timetable_of
from service.commands.process import running_service

RECIPES = ("full", "lp-ft")


def own_collection(own: Collection, shown: np.ndarray, asked: np.ndarray) -> tuple[Collection, np.ndarray, np.ndarray]:
    """A person's items as a collection, and which of them are shown and asked."""
    rows = np.concatenate([shown.ravel(), asked.ravel()])
    y = np.concatenate([np.repeat(np.arange(WAYS), shown.shape[1]), np.repeat(np.arange(WAYS), asked.shape[1])])
    zeros = np.zeros(len(rows), np.int64)
    labels = tuple(map(str, range(WAYS)))
    items = tuple(own.items[i] for i in rows)
    mine = replace(own, items=items, labels=labels, y=y, user=zeros, users=(), repetition=zeros)
    return mine, np.arange(shown.size), np.arange(shown.size, len(rows))


def tuned_accuracy(
    recipe: str, args: argparse.Namespace, mine: Collection, shown: np.ndarray, asked: np.ndarray, z: np.ndarray
) -> tuple[float, float]:
    """Accuracy and processor seconds of a network that a person's examples alone have fine-tuned."""
    settings = {"backbone": args.backbone, "recipe": recipe, "steps": args.steps, "evaluate_every": args.steps}
    config = TuneConfig.model_validate({**settings, "batch": min(16, max(2, len(shown)))})
    begin = time.process_time()
    head = fit_probe(z[shown], mine.y[shown], WAYS, args.pull) if recipe == "lp-ft" else None
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(config, mine, shown, head, Path(folder))
        encoder = job.encoder()
        tuned = Tuned(encoder, WAYS, config.dropout, config.label_smoothing)
        if head is not None:
            tuned.head.weight.data.copy_(torch.from_numpy(head[0] / SCALE))
            tuned.head.bias.data.copy_(torch.from_numpy(head[1]))
        inputs = Inputs(encoder, mine)
        table = timetable_of(encoder, config, config.steps)
        fit(one_process(), Tuning(tuned, inputs, job), table, loop_of(job), name=recipe)
        seconds = time.process_time() - begin
        _, logits = encoded(tuned, inputs, asked)
    return float((logits.argmax(1) == mine.y[asked]).mean()), seconds


def one_split(data: Collection, args: argparse.Namespace, split: int) -> list[dict]:
    """A row for each person of a split of the labels, and number of shots."""
    rng = np.random.default_rng(split)
    order = rng.permutation(len(data.labels))
    half = len(order) // 2
    known, own = (some(data, sorted(part.tolist())) for part in (order[:half], order[half:]))
    encoder = create_encoder(args.backbone)
    z = {name: unit(features_of(encoder, part, args.cache)[0]) for name, part in (("known", known), ("own", own))}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        probe = LinearProbeConfig(backbone=args.backbone)
        train_probe(known, probe, Path(folder) / "run", cache=args.cache)
        export_run(Path(folder) / "run", Path(folder) / "models", name="few", user_labels=WAYS)
        with (
            running_service(Path(folder) / "models", Path(folder), "--frontends", "1") as service,
            httpx.Client(base_url=service.url, timeout=120) as client,
        ):
            for shots in SHOTS:
                args.pull = pull_of(z["known"], tasks(known, 10, np.random.default_rng(99)), shots)
                for n, (all_shown, asked) in enumerate(tasks(own, args.people, rng)):
                    shown = all_shown[:, :shots]
                    personal, report = served_accuracy(client, f"user-{shots}-{n}", own, shown, asked)
                    mine, s, a = own_collection(own, shown, asked)
                    mine_z = z["own"][np.concatenate([shown.ravel(), asked.ravel()])]
                    row = {"split": split, "shots": shots, "personal": personal}
                    row["personal seconds"] = sum(report["timings_ms"].values()) / 1e3
                    row["linear probe"] = probe_accuracy(z["own"], shown, asked, args.pull)
                    for recipe in RECIPES:
                        row[recipe], row[f"{recipe} seconds"] = tuned_accuracy(recipe, args, mine, s, a, mine_z)
                    print({k: round(v, 3) for k, v in row.items()}, flush=True)
                    rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """The rows as Markdown, means and deviations over people."""
    names = ("personal", "linear probe", *RECIPES)
    lines = ["| examples a label | " + " | ".join(names) + " |", "|--" * (len(names) + 1) + "|"]
    for shots in SHOTS:
        own = [r for r in rows if r["shots"] == shots]
        cells = []
        for name in names:
            values = 100 * np.array([r[name] for r in own])
            seconds = [r[f"{name} seconds"] for r in own if f"{name} seconds" in r]
            took = f", {np.mean(seconds):.2g} s" if seconds and np.isfinite(seconds).all() else ""
            cells.append(f"{values.mean():.1f} ± {values.std(ddof=1):.1f}{took}")
        lines.append(f"| {shots} ({len(own)} people) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", default="package:efficientnet-lite0")
    parser.add_argument("--cache", type=Path, default=Path(".cache/features"))
    parser.add_argument("--people", type=int, default=4, help="of each of two splits of the labels")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()
    data = load_collection(args.data)
    rows = [row for split in range(2) for row in one_split(data, args, split)]
    text = table(rows)
    print(text)
    told = {k: getattr(args, k) for k in ("backbone", "people", "steps")}
    if args.json:
        content = {"machine": describe(), "settings": told, "items": len(data), "rows": rows}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(text)


if __name__ == "__main__":
    main()
