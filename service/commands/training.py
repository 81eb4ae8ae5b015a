"""`headway train`: recordings to a finished run, with a bar for each stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from models.data.asked import asks
from models.data.collections import CollectionError
from models.data.further import Further, further
from models.data.recordings import Recordings, load_folder
from models.training import Run, TrainConfig, TrainingError, train
from models.training.devices import Devices
from models.training.further_tasks import learn_further, load_further
from models.training.runners import OnRay, OverNodes, Runner, Serial, Where
from service.commands.configured import configured
from service.commands.progress import stages
from service.commands.tables import counted
from service.commands.worth import worth

console = Console()
LABELS = "gesture"
"""The array of recordings with their labels, which the network is trained on."""


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
    tasks: Sequence[str],
    where: Where,
    command: str,
) -> None:
    """Train on a folder of recordings, fit further tasks on what was trained, and say what left-out people would get.

    Raises:
        CollectionError: a task is not in the recordings; before anything is trained.
    """
    recordings = load_folder(data, subjects)
    console.print(f"{len(recordings)} people in {data}", highlight=False)
    called, more = asked_of_recordings(data, recordings, tasks)
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
        further=[task.name for task in more],
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
    if more:
        learn_further(run, recordings, more, called)
        for learned in load_further(out)[2]:
            for line in worth(learned):
                console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"written to {out}; next: headway export {out} --models bundles", highlight=False)


def asked_of_recordings(
    data: Path, recordings: Sequence[Recordings], tasks: Sequence[str]
) -> tuple[str, tuple[Further, ...]]:
    """What the output of the recordings' own labels is called, and the further tasks, read and checked.

    Raises:
        CollectionError: a task is not in the recordings.
    """
    asked = asks(tasks)
    own = next((ask for ask in asked if ask.columns == (LABELS,)), None)
    more = tuple(further(data, recordings, ask) for ask in asked if ask is not own)
    called = own.name if own is not None else LABELS
    if called in [task.name for task in more]:
        raise CollectionError(
            f"'{called}' is what the recordings' own labels are called; give the other task another name."
        )
    return called, more


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
    further: Sequence[str] = (),
) -> Run:
    """Train with a progress bar a stage."""
    given = {"recipe": recipe, "seed": seed, "unit": unit, **({} if steps is None else {"steps": steps})}
    few = TrainConfig.QUICK if quick else {}
    config = configured(TrainConfig, {**few, **given}, settings)
    with stages(console) as tick:
        return train(recordings, config, out, tick, resume=resume, command=command, where=where, further=further)


def where_of(
    devices: int,
    accelerator: str,
    precision: str,
    *,
    nodes: int,
    ray: bool,
    ray_address: str | None,
    loggers: Sequence[str],
) -> Where:
    """How a run is made, of flags.

    Raises:
        TrainingError: there is no such accelerator, device, precision, logger or cluster.
    """
    given = {"count": devices, "nodes": nodes, "accelerator": accelerator, "precision": precision}
    found = configured(Devices, given, ())
    on_ray = ray or ray_address is not None
    if nodes > 1 and not on_ray:
        raise TrainingError("Several nodes are those of a Ray cluster: give --ray, or --ray-address HOST:PORT.")
    if on_ray and accelerator == "auto":
        raise TrainingError("On Ray say which devices are meant: --accelerator cpu or --accelerator cuda.")
    runner: Runner = Serial()
    if on_ray and nodes > 1:
        runner = OverNodes(ray_address)
    elif on_ray:
        runner = OnRay(ray_address, cpus=devices, gpus=devices if accelerator == "cuda" else 0)
    where = Where(found, runner, tuple(loggers))
    where.check()
    return where
