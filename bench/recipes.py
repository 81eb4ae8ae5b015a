"""Recipes on one shifted task: accuracy, processor time, and what is forgotten of the task before.

The labels of a collection are split. On one half a linear probe is fitted on the pre-trained encoder: the source task.
The other half is the task at hand, on which each recipe trains the encoder, with the same number of steps and the same
batches. Then the source task is asked again: by the probe as it was, and by one fitted anew on the changed features.

    python -m bench.recipes --data FOLDER --backbone package:efficientnet-lite0 --json docs/benchmarks/recipes.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.machine import describe
from examples.few_shot import some, unit
from models.backbones import create_encoder
from models.backbones.probe import recorded
from models.data.collections import Collection, load_collection
from models.training.devices import Devices, one_process
from models.training.features import features_of
from models.training.inputs import Inputs
from models.training.loop import fit
from models.training.memory import keep_freed
from models.training.probe_fit import fit_probe
from models.training.starting import starting_encoder
from models.training.tuned import SCALE, Job, TuneConfig, Tuned, Tuning, encoded, loop_of, timetable_of

PULL = 1e-3
RECIPES = {
    "lp-ft": {},
    "gradual": {},
    "freezeout (cubic, scaled, 0.8)": {},
    "freezeout (cubic, scaled, 0.5)": {"freezeout_first": 0.5},
    "freezeout (linear, not scaled, 0.5)": {"freezeout_first": 0.5, "freezeout": "linear", "freezeout_scaled": False},
    "full": {},
    "scratch": {},
}


def parts(y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Seven tenths of every class to learn from, the rest to ask."""
    asked = np.zeros(len(y), bool)
    for c in np.unique(y):
        where = rng.permutation(np.flatnonzero(y == c))
        asked[where[: max(1, round(0.3 * len(where)))]] = True
    return np.flatnonzero(~asked), np.flatnonzero(asked)


def accuracy(z: np.ndarray, y: np.ndarray, head: tuple[np.ndarray, np.ndarray]) -> float:
    """Share of rows that a linear head names rightly."""
    return float(((z @ head[0].T + head[1]).argmax(1) == y).mean())


def job_of(config: TuneConfig, target: Collection, keep: np.ndarray, head: tuple | None, folder: Path) -> Job:
    """One network that learns from `keep` for all steps."""
    encoder = starting_encoder(config)
    return Job(
        name=config.recipe,
        recorded=dict(recorded(config.backbone, encoder)),
        state=encoder.state_dict(),
        files=encoder.files,
        head=head,
        collection=target,
        keep=keep,
        out=keep[:0],
        config=config,
        steps=config.steps,
        seed=config.seed,
        checkpoint=folder / "checkpoint.safetensors",
        devices=Devices(),
        logs=(folder, ()),
    )


def one_split(data: Collection, args: argparse.Namespace, split: int) -> list[dict]:
    """A row for each recipe, on one split of the labels."""
    rng = np.random.default_rng(split)
    order = rng.permutation(len(data.labels))
    half = len(order) // 2
    source, target = (some(data, sorted(p.tolist())) for p in (order[:half], order[half:]))
    size = {"size": args.size, "resize": args.size} if args.size else {}
    encoder = create_encoder(args.backbone, size)
    z_source, z_target = (unit(features_of(encoder, c)[0]) for c in (source, target))
    learn_s, ask_s = parts(source.y, rng)
    learn_t, ask_t = parts(target.y, rng)
    probe = fit_probe(z_source[learn_s], source.y[learn_s], half, PULL)
    before = accuracy(z_source[ask_s], source.y[ask_s], probe)
    begin = time.process_time()
    head = fit_probe(z_target[learn_t], target.y[learn_t], len(target.labels), PULL)
    seconds = time.process_time() - begin
    rows = [
        {
            "recipe": "linear-probe",
            "accuracy": accuracy(z_target[ask_t], target.y[ask_t], head),
            "seconds": seconds,
            "source": before,
            "source_refitted": before,
            "before": before,
        }
    ]
    for name, changes in RECIPES.items():
        recipe = name.split(" ")[0]
        settings = {"backbone": args.backbone, "settings": size, "recipe": recipe, "steps": args.steps, "seed": split}
        config = TuneConfig.model_validate({**settings, "evaluate_every": args.steps, **changes})
        with tempfile.TemporaryDirectory() as folder:
            job = job_of(config, target, learn_t, head if recipe == "lp-ft" else None, Path(folder))
            changed = job.encoder()
            tuned = Tuned(changed, len(target.labels), config.dropout, config.label_smoothing)
            if job.head is not None:
                tuned.head.weight.data.copy_(torch.from_numpy(job.head[0] / SCALE))
                tuned.head.bias.data.copy_(torch.from_numpy(job.head[1]))
            inputs = Inputs(changed, target)
            inputs.take(range(len(target)))  # decoded before the clock starts
            table = timetable_of(changed, config, config.steps)
            begin = time.process_time()
            fit(one_process(), Tuning(tuned, inputs, job), table, loop_of(job), name=name)
            seconds = time.process_time() - begin
            _, logits = encoded(tuned, inputs, ask_t)
            z = unit(encoded(tuned, Inputs(changed, source), np.arange(len(source)))[0])
        refitted = fit_probe(z[learn_s], source.y[learn_s], half, PULL)
        row = {
            "recipe": name,
            "accuracy": float((logits.argmax(1) == target.y[ask_t]).mean()),
            "seconds": seconds,
            "source": accuracy(z[ask_s], source.y[ask_s], probe),
            "source_refitted": accuracy(z[ask_s], source.y[ask_s], refitted),
            "before": before,
        }
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        rows.append(row)
    return rows


def cache_times(data: Collection, args: argparse.Namespace) -> dict[str, float]:
    """Processor seconds of features without and with a cache that has them."""
    encoder = create_encoder(args.backbone, {"size": args.size, "resize": args.size} if args.size else {})
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("computed", "from the cache"):
            begin = time.process_time()
            features_of(encoder, data, Path(folder))
            found[name] = time.process_time() - begin
    return found


def table(rows: list[dict], cache: dict[str, float], items: int) -> str:
    """The rows as Markdown, means and deviations over splits."""
    full = {r["split"]: r["seconds"] for r in rows if r["recipe"] == "full"}
    lines = [
        "| recipe | accuracy | processor time to `full` | source task, probe as it was | probe fitted anew |",
        "|--|--|--|--|--|",
    ]
    for name in dict.fromkeys(r["recipe"] for r in rows):
        own = [r for r in rows if r["recipe"] == name]
        ratio = np.mean([r["seconds"] / full[r["split"]] for r in own])
        figures = [100 * np.array([r[k] for r in own]) for k in ("accuracy", "source", "source_refitted")]
        cells = [f"{f.mean():.1f} ± {f.std():.1f}" for f in figures]
        lines.append(f"| {name} | {cells[0]} | {ratio:.2f} | {cells[1]} | {cells[2]} |")
    computed, kept = cache["computed"], cache["from the cache"]
    lines += [
        "",
        f"Features of {items} items: {computed:.1f} s of processor time computed, {kept:.2f} s from the cache",
    ]
    lines[-1] += f" ({computed / kept:.0f} times)."
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", default="package:efficientnet-lite0")
    parser.add_argument("--size", type=int, default=0, help="pixels of an image's side; 0: the backbone's own")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()
    data = load_collection(args.data)
    rows = [{"split": s, **row} for s in range(args.splits) for row in one_split(data, args, s)]
    cache = cache_times(data, args)
    text = table(rows, cache, len(data))
    print(text)
    told = {k: getattr(args, k) for k in ("backbone", "size", "steps", "splits")}
    if args.json:
        content = {"machine": describe(), "settings": told, "items": len(data), "rows": rows, "cache": cache}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(text)


if __name__ == "__main__":
    main()
