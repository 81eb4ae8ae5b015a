"""Further tasks of a run on recordings: heads on the features that it trained, which stay as they are.

The network of recordings learns from labels that people share, in episodes; a second task's loss has no place in them.
So further tasks are fitted as a linear probe is: on the personal features alone, for the evidence behind them is of a
network that has seen everybody, and nobody could be left out of it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exporters.bundle_outputs import prior_file
from exporters.classification import fit_classification
from models.data.further import Further
from models.data.recordings import Recordings
from models.data.windows import WindowSpec, windows
from models.files import write_atomically
from models.heads.prior import Prior
from models.heads.regression_population import fit_population, left_out_figures
from models.heads.regression_prior import MOST_FEATURES, RegressionPrior
from models.training.config import TrainingError
from models.training.run import Run, RunError
from models.training.tasks_run import LearnedTask, read_task

__all__ = ["await_further", "learn_further", "load_further"]

TASKS = "tasks.json"
MOST_WINDOWS = 1000
"""Of a person; more are thinned out evenly."""
BLOCK = 512


def await_further(folder: Path, names: Sequence[str]) -> None:
    """Note in a run's folder that it is not whole before it has these tasks: it may be killed between both."""
    write_atomically(folder / TASKS, json.dumps({"awaited": list(names)}).encode() + b"\n")


def learn_further(run: Run, recordings: Sequence[Recordings], tasks: Sequence[Further], called: str) -> None:
    """Fit each task on the run's personal features, and write it beside the run; its own output is `called` so.

    Raises:
        TrainingError: a task is known of fewer than three people, or they do not allow a fit.
    """
    z, people, repetition, answers = _examples(run, recordings, tasks)
    learned = []
    for task, (known, values) in zip(tasks, answers, strict=True):
        own = z[known], values, people[known], repetition[known]
        prior: Prior | RegressionPrior
        try:
            if task.targets:
                names = [target.name for target in task.targets]
                prior = fit_population(*own, targets=names)
                found: dict[str, Any] = {"left_out_people": left_out_figures(prior, values)}
            else:
                prior, found = fit_classification(*own, labels=task.labels)
        except ValueError as e:
            raise TrainingError(f"Task {task.name}: {e}") from e
        learned.append(LearnedTask(task.name, task.labels, task.targets, prior, found))
    for each in learned:
        write_atomically(run.folder / prior_file(each.name), each.file)
    record = {"called": called, "personal": z.shape[1], "tasks": [each.record() for each in learned]}
    write_atomically(run.folder / TASKS, json.dumps(record, indent=2, allow_nan=False).encode() + b"\n")


def load_further(folder: Path) -> tuple[str, int, tuple[LearnedTask, ...]]:
    """What the run's own output is called, the features that further ones read, and these; none where there are none.

    Raises:
        RunError: they are damaged, or not fitted yet.
    """
    file = folder / TASKS
    if not file.is_file():
        return "", 0, ()
    try:
        record = json.loads(file.read_text())
        awaited = record.get("awaited")
    except (OSError, AttributeError, ValueError) as error:
        raise RunError(f"The tasks of the run in {folder} are damaged: {error}") from error
    if awaited:
        raise RunError(
            f"The run in {folder} has no fit of its tasks {', '.join(awaited)}: it was ended before, or they could not "
            "be fitted. The same command with --resume fits them; what was trained is kept."
        )
    try:
        return record["called"], int(record["personal"]), tuple(read_task(folder, told) for told in record["tasks"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"The tasks of the run in {folder} are damaged: {error}") from error


Answered = tuple[NDArray[np.bool_], NDArray[Any]]


def _examples(
    run: Run, recordings: Sequence[Recordings], tasks: Sequence[Further]
) -> tuple[NDArray[np.float32], NDArray[np.str_], NDArray[np.int64], list[Answered]]:
    """Personal features of everybody's windows, whose they are, their repetitions, and what each task knows of them."""
    backbone, signal = run.backbone(), run.signal
    width = min(run.prior.personal, MOST_FEATURES)
    z, people, repetition = list[NDArray[np.float32]](), list[str](), list[NDArray[np.int64]]()
    found: list[list[Answered]] = [[] for _ in tasks]
    for number, rec in enumerate(recordings):
        room = np.maximum((rec.stop - rec.start - signal.length) // signal.stride + 1, 0).sum()
        w = windows(rec, WindowSpec(signal.length, signal.stride * max(1, -(-int(room) // MOST_WINDOWS))))
        with torch.no_grad():
            blocks = [backbone(torch.from_numpy(w.x[at : at + BLOCK])).numpy() for at in range(0, len(w), BLOCK)]
        z += [block[:, :width] for block in blocks]
        people += [rec.subject] * len(w)
        repetition.append((number * 1000 + w.session) * 1000 + w.repetition)
        for task, answers in zip(tasks, found, strict=True):
            answers.append(task.of(number, w))
    joined = [(np.concatenate([k for k, _ in own]), np.concatenate([v for _, v in own if len(v)])) for own in found]
    return np.concatenate(z), np.array(people), np.concatenate(repetition), joined
