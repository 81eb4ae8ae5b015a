"""`headway train`: recordings to a finished run, with a bar for each stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from models.data.recordings import Recordings, load_folder
from models.training import Run, TrainConfig, TrainingError, train
from models.training.devices import Devices
from models.training.loggers import LOGGERS
from models.training.runners import OnRay, Serial, Where
from service.commands.configured import configured
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
    settings: Sequence[str],
    where: Where,
    command: str,
) -> None:
    """Train on a folder of recordings and say what left-out people would get."""
    recordings = load_folder(data, subjects)
    console.print(f"{len(recordings)} people in {data}", highlight=False)
    run = train_on(
        recordings,
        out,
        recipe=recipe,
        steps=steps,
        unit=unit,
        quick=quick,
        resume=resume,
        seed=seed,
        settings=settings,
        where=where,
        command=command,
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
    settings: Sequence[str] = (),
    where: Where | None = None,
    command: str = "",
) -> Run:
    """Train with a progress bar a stage."""
    given = {"recipe": recipe, "seed": seed, "unit": unit, **({} if steps is None else {"steps": steps})}
    few = TrainConfig.QUICK if quick else {}
    config = configured(TrainConfig, {**few, **given}, settings)
    with stages(console) as tick:
        return train(recordings, config, out, tick, resume=resume, command=command, where=where)


def where_of(
    devices: int,
    accelerator: str,
    precision: str,
    *,
    ray: bool,
    ray_address: str | None,
    loggers: Sequence[str],
) -> Where:
    """How a run is made, of flags.

    Raises:
        TrainingError: there is no such accelerator, precision, logger or cluster.
    """
    given = {"count": devices, "accelerator": accelerator, "precision": precision}
    found = configured(Devices, given, ())
    unknown = [name for name in loggers if name not in LOGGERS]
    if unknown:
        raise TrainingError(f"There is no logger '{unknown[0]}'; there are: {', '.join(LOGGERS)}.")
    runner = OnRay(ray_address, cpus=devices) if ray or ray_address else Serial()
    return Where(found, runner, tuple(loggers))
