"""Fine-tuning of one encoder for several tasks: a head each, one loss, answers that are not known left out of it.

Every task's loss is measured in what it costs to know nothing: cross-entropy in units of log K, squared error in units
of the targets' variance. So tasks of other sizes and units weigh alike without a choice, and `task_weights` are ratios.
Weights that are learned (homoscedastic uncertainty, Kendall et al. 2018) are none of the settings: at the rates of
fine-tuning, 10⁻⁴ for some hundred steps, they hardly leave where they begin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from models.backbones.module import EncoderModule
from models.data.collections import Collection
from models.data.tasks import Measured, Task, Tasks
from models.training.inputs import Inputs
from models.training.tuned import Job, TuneConfig, Tuned, Tuning, encoded

__all__ = ["Answers", "TasksConfig", "TasksJob", "TasksTuning", "TunedTasks", "columns_of"]

Array = NDArray[np.float64]


class TasksConfig(TuneConfig):
    """Settings of fine-tuning for several tasks.

    `balance`: no way to draw items balances the labels of all tasks, so labels are balanced by the weights of items in
    each task's loss; users are balanced by drawing, as for one task.
    """

    task_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="of tasks in the loss, by name; 1 where none is said"
    )


class Part(NamedTuple):
    """A task in the head and in the loss: columns of the head, K of a classification (0: targets), weight."""

    said: slice
    classes: int
    weight: float


def columns_of(tasks: Sequence[Task]) -> list[slice]:
    """Rows of the one head that each task has, in order."""
    ends = np.cumsum([0, *(task.width for task in tasks)]).tolist()
    return [slice(begin, end) for begin, end in pairwise(ends)]


@dataclass(frozen=True, eq=False)
class Answers:
    """What is known of all items, as a network learns it.

    Attributes:
        said: `(n, C)`, one column a classification with class indices and one a target, standardised; zeros where
            nothing is known.
        share: `(n, tasks)` weight of each item in each task's loss, 0 where it is not known: its mean over what is
            drawn is 1, so that a task with few answers counts as much as one with many, and a batch without any adds
            nothing.
        scales: `(2, T)` mean and deviation of each task's targets over the items that are learned from; None of a
            classification.
    """

    said: NDArray[np.float32]
    share: NDArray[np.float32]
    scales: tuple[Array | None, ...]

    @classmethod
    def of(
        cls, collection: Tasks, keep: NDArray[np.int64], drawn: Array | None = None, *, balanced: bool = False
    ) -> "Answers":
        """Gather them; `drawn (m,)` is how often each kept item is drawn, `balanced` has all labels weigh the same."""
        n = len(collection)
        often = np.zeros(n)
        often[keep] = 1 / len(keep) if drawn is None else drawn
        said, share, scales = [], np.zeros((n, len(collection.tasks)), np.float32), list[Array | None]()
        for i, task in enumerate(collection.tasks):
            weight, column = np.ones(len(task.rows)), np.zeros((n, max(1, len(task.targets))), np.float32)
            learned = often[task.rows] > 0
            if isinstance(task.data, Collection):
                column[task.rows, 0] = task.data.y
                if balanced:
                    weight = 1 / np.maximum(np.bincount(task.data.y[learned], minlength=task.width), 1)[task.data.y]
                scales.append(None)
            else:
                t = task.data.t
                scale = np.stack([t[learned].mean(0), np.maximum(t[learned].std(0), 1e-12)])
                column[task.rows] = (t - scale[0]) / scale[1]
                scales.append(scale)
            share[task.rows, i] = weight / (often[task.rows] * weight).sum()
            said.append(column)
        return cls(np.concatenate(said, 1), share, tuple(scales))


class TunedTasks(Tuned):
    """An encoder with one linear head for all tasks on its features of length 1."""

    def __init__(self, encoder: EncoderModule, parts: Sequence[Part], dropout: float, label_smoothing: float) -> None:
        super().__init__(encoder, parts[-1].said.stop, dropout, label_smoothing)
        self.parts, self.total = tuple(parts), sum(part.weight for part in parts)

    def forward(self, x: Tensor, y: Tensor, share: Tensor | None = None) -> Tensor:
        """Mean of the tasks' losses over rows `(n, …)`, by answers `(n, C)` and their shares `(n, tasks)`."""
        assert share is not None
        z, loss, at = self.logits(self.encoder(x)), torch.zeros((), device=y.device), 0
        for i, part in enumerate(self.parts):
            said = z[:, part.said]
            if part.classes:
                each = functional.cross_entropy(
                    said, y[:, at].long(), label_smoothing=self.label_smoothing, reduction="none"
                ) / math.log(part.classes)
            else:
                each = ((said - y[:, at : at + said.shape[1]]) ** 2).mean(1)
            at += 1 if part.classes else said.shape[1]
            loss = loss + part.weight / self.total * (share[:, i] * each).mean()
        return loss


@dataclass(frozen=True, eq=False)
class TasksJob(Job):
    """One network to train for several tasks; `head` and the outcome's are `(Σ widths, d)`, targets standardised."""

    @property
    def several(self) -> Tasks:
        """The collection with its tasks."""
        assert isinstance(self.collection, Tasks)
        return self.collection

    def tuned(self, encoder: EncoderModule) -> Tuned:
        """The network with its head, as the job starts from it."""
        weights = self.config.task_weights if isinstance(self.config, TasksConfig) else {}
        tasks = self.several.tasks
        parts = [
            Part(columns, len(task.labels), weights.get(task.name, 1.0))
            for task, columns in zip(tasks, columns_of(tasks), strict=True)
        ]
        return self.headed(TunedTasks(encoder, parts, self.config.dropout, self.config.label_smoothing))

    def tuning(self, tuned: Tuned, inputs: Inputs) -> Tuning:
        """What the loop trains."""
        return TasksTuning(tuned, inputs, self)

    def learned(self) -> Answers:
        """The answers as the network learns them."""
        balance = self.config.balance
        return Answers.of(self.several, self.keep, self.drawn(), balanced=balance in ("class", "both"))

    def drawn(self) -> Array | None:
        """How often each kept item is drawn; None where they take turns."""
        if self.config.balance not in ("user", "both"):
            return None
        user = self.several.user[self.keep]
        share = 1.0 / np.bincount(user)[user]
        return np.asarray(share / share.sum())


class TasksTuning(Tuning):
    """What the loop trains for several tasks."""

    job: TasksJob

    def __init__(self, tuned: Tuned, inputs: Inputs, job: TasksJob) -> None:
        super().__init__(tuned, inputs, job)
        self._known = job.learned()

    def shares(self) -> Array | None:
        """How often each kept item is drawn; None where they take turns."""
        return self.job.drawn()

    def answers(self, drawn: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Answers `(n, C)` of drawn items and their shares in the tasks' losses `(n, tasks)`."""
        return torch.from_numpy(self._known.said[drawn]), torch.from_numpy(self._known.share[drawn])

    def validation(self) -> tuple[float, float] | None:
        """Mean over tasks of loss and worth on what was left out, each task's as `judged` measures it."""
        job, tuned = self.job, self.objective
        if not len(job.out):
            return None
        assert isinstance(tuned, TunedTasks)
        _, logits = encoded(tuned, self.inputs, job.out)
        if not np.isfinite(logits).all():
            return math.inf, 0.0
        found, weights = [], []
        for task, part, scale in zip(job.several.tasks, tuned.parts, self._known.scales, strict=True):
            asked = np.isin(task.rows, job.out)
            if asked.any():
                rows = np.searchsorted(job.out, task.rows[asked])
                found.append(judged(task.data, asked, logits[rows, part.said], scale))
                weights.append(part.weight)
        loss, worth = np.average(found, axis=0, weights=weights)
        return float(loss), float(worth)


def judged(
    data: Collection | Measured, asked: NDArray[np.bool_], said: Array, scale: Array | None
) -> tuple[float, float]:
    """Loss of a task in units of what it costs to know nothing, and its worth: accuracy, or variance explained (≥ 0).

    `said (n, width)` of the items in `asked`; of labels the log-loss is class-balanced.
    """
    if isinstance(data, Measured):
        assert scale is not None
        loss = float(((said - (data.t[asked] - scale[0]) / scale[1]) ** 2).mean())
        return loss, max(0.0, 1 - loss)
    y = data.y[asked]
    share = 1.0 / np.bincount(y)[y]
    losses = np.logaddexp.reduce(said, 1) - said[np.arange(len(y)), y]
    loss = float((losses * share).sum() / share.sum()) / math.log(len(data.labels))
    return loss, float((said.argmax(1) == y).mean())
