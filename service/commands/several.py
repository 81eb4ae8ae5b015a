"""`headway train --backbone … --task …`: one backbone for several tasks."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from models.data.collections import Collection
from models.data.tasks import Tasks
from models.training.linear_probe import LinearProbeConfig
from models.training.several import fine_tune_tasks, probe_tasks
from models.training.tasks_run import TasksRun
from models.training.tuned import TUNED
from models.training.tuned_tasks import TasksConfig
from service.commands.configured import configured
from service.commands.probing import Plan, run_labels, trainer
from service.commands.progress import stages
from service.commands.worth import worth


def run_tasks(plan: Plan, collection: Tasks, console: Console) -> None:
    """Train for all tasks and say of each what was left out would get; one of labels is trained as ever.

    Raises:
        TrainingError: as `fine_tune_tasks`.
    """
    first, *others = collection.tasks
    if not others and isinstance(first.data, Collection):
        run_labels(plan, trainer(plan), first.data)
        return
    people = f"{len(collection.users)} users" if collection.users else "no users"
    console.print(f"{len(collection)} {collection.kind}s, {people}", highlight=False)
    for task in collection.tasks:
        console.print(f"  {task}", highlight=False, markup=False)  # a unit is in brackets
    run = _trained(plan, collection, console)
    for learned in run.tasks:
        for line in worth(learned):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"written to {plan.out}; next: headway export {plan.out} --models bundles", highlight=False)


def _trained(plan: Plan, collection: Tasks, console: Console) -> TasksRun:
    given = {**plan.given, "recipe": plan.recipe}
    told: dict[str, Any] = {"cache": plan.cache, "command": plan.command, "where": plan.where}
    if plan.recipe in TUNED:
        tuned = configured(TasksConfig, given, plan.settings)
        with stages(console) as tick:
            return fine_tune_tasks(collection, tuned, plan.out, progress=tick, resume=plan.resume, **told)
    plan.check_frozen()
    probe = configured(LinearProbeConfig, given, plan.settings)
    with stages(console) as tick:
        return probe_tasks(collection, probe, plan.out, progress=tick, **told)
