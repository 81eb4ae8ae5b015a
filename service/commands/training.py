"""`headway train`: recordings to a finished run, with a bar for each stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from models.data.recordings import Recordings, load_folder
from models.training import Run, TrainConfig, train
from service.commands.progress import stages
from service.commands.tables import counted

console = Console()


def run_training(
    data: Path,
    out: Path,
    *,
    subjects: str,
    recipe: str,
    steps: int | None,
    unit: str,
    quick: bool,
    resume: bool,
    seed: int,
    command: str,
) -> None:
    """Train on a folder of recordings and say what left-out people would get."""
    recordings = load_folder(data, subjects)
    console.print(f"{len(recordings)} people in {data}", highlight=False)
    run = train_on(
        recordings, out, recipe=recipe, steps=steps, unit=unit, quick=quick, resume=resume, seed=seed, command=command
    )
    zero = run.evaluation["zero_shot"]
    console.print(
        f"left-out people of this population: generic head {zero['mean']:.1%} (worst {zero['worst']:.1%})",
        highlight=False,
    )
    for e in run.prior.hyper.evidence:
        console.print(
            f"  personal head from {counted(e.windows, 'window')} a class ({counted(e.repetitions, 'repetition')}): "
            f"{e.gain:+.1%} over generic, worst user {e.floor:.1%}",
            highlight=False,
        )
    console.print(f"written to {out}; next: headway export {out} --models bundles", highlight=False)


def train_on(
    recordings: Sequence[Recordings],
    out: Path,
    *,
    recipe: str = "episodic",
    steps: int | None = None,
    unit: str = "counts",
    quick: bool = False,
    resume: bool = False,
    seed: int = 0,
    command: str = "",
) -> Run:
    """Train with a progress bar a stage."""
    settings = {"recipe": recipe, "seed": seed, "unit": unit, **({} if steps is None else {"steps": steps})}
    config = TrainConfig.quick(**settings) if quick else TrainConfig.model_validate(settings)
    with stages(console) as tick:
        return train(recordings, config, out, tick, resume=resume, command=command)
