"""One encoder for several tasks, by any recipe for images, texts and sounds: what comes behind it, task by task."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.backbones.module import EncoderModule, create_encoder
from models.backbones.probe import recorded
from models.backbones.probes import ProbedTask, ProbesConfig, TasksEncoder
from models.data.collections import Collection, Items
from models.data.tasks import Task, Tasks
from models.training.claim import free
from models.training.config import TrainingError
from models.training.features import backbone_digest
from models.training.linear_probe import LinearProbeConfig, check_frozen, frozen_features
from models.training.loggers import log_figures
from models.training.loop import Tick
from models.training.networks import PULL, Networks, Trained, Weights, tuned_run
from models.training.pooling import Space, space_of
from models.training.probe_fit import fit_probe, folds_of
from models.training.probing import WHAT, Fitted, Head, Judge, by_user, fit_top, parity_items, unit, usable
from models.training.probing_numbers import FittedNumbers, fit_numbers, fit_ridge
from models.training.provenance import provenance
from models.training.runners import Where
from models.training.tasks_run import LearnedTask, TasksRun, load_tasks_run, save_tasks_run
from models.training.tuned_tasks import Answers, TasksConfig, TasksJob, columns_of

__all__ = ["fine_tune_tasks", "probe_tasks"]

Array = NDArray[np.float64]


def fine_tune_tasks(
    collection: Tasks,
    config: TasksConfig,
    out: Path,
    *,
    cache: Path | None = None,
    progress: Tick | None = None,
    resume: bool = False,
    command: str = "",
    where: Where | None = None,
) -> TasksRun:
    """Fine-tune one encoder for several tasks by a recipe, fit each one's prior, and write the run to `out`.

    As `models.training.fine_tuning.fine_tune`, with one head and one term of the loss a task
    (`models.training.tuned_tasks`); the same networks judge all of them.

    Raises:
        TrainingError: as there, or a weight of a task that is not there.
        BackboneError: there is no such encoder, or a package is missing.
    """
    names = [task.name for task in collection.tasks]
    unknown = [name for name in config.task_weights if name not in names]
    if unknown:
        raise TrainingError(f"task_weights names '{unknown[0]}'; the tasks are {', '.join(names)}.")
    tuned_run(
        TaskNetworks,
        collection,
        config,
        out,
        cache=cache,
        progress=progress,
        resume=resume,
        command=command,
        where=where,
    )
    return load_tasks_run(out)


def probe_tasks(
    collection: Tasks,
    config: LinearProbeConfig,
    out: Path,
    *,
    cache: Path | None = None,
    progress: Tick | None = None,
    command: str = "",
    where: Where | None = None,
) -> TasksRun:
    """Fit a head and a prior for each task on the features of an encoder that stays as it is; errors as `train_probe`.

    `models.training.linear_probe.train_probe` for several tasks: the features are computed once for all of them.
    """
    where = where or Where()
    check_frozen(config, cache, where)
    free(out)
    begin, started = time.monotonic(), datetime.now(UTC)
    tick = progress or (lambda stage, done, total: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        _check(collection)
        encoder = create_encoder(config.backbone, config.settings)
        z, computed = frozen_features(config, encoder, collection, cache, where, tick)
        heads = [None] * len(collection.tasks)
        found = _behind(z.astype(np.float64), collection, config.personal, config.seed, tick, heads)
        probed = found.assembled(config.backbone, encoder, collection)
    finally:
        torch.set_num_threads(threads)
    record = {
        "preprocessing": WHAT[collection.kind].replace("a linear probe", "linear probes"),
        "provenance": {
            "recipe": config.recipe,
            "backbone": {"name": config.backbone, "digest": backbone_digest(encoder)},
            "data": {"items": len(collection), "kind": collection.kind, "users": len(collection.users)},
            "population": _population(collection),
            "features_computed": computed,
            "features_precision": where.devices.precision,
            **provenance(command, config, started, begin),
        },
    }
    for task, part in zip(collection.tasks, found.parts, strict=True):
        log_figures(where.loggers, out / "logs", task.name, part.evaluation)
    save_tasks_run(out, probed, found.learned(collection), parity_items(probed, collection), record)
    return load_tasks_run(out)


@dataclass(frozen=True, eq=False)
class Behind:
    """What is put on an encoder for all tasks: the space that they share, and a head and a prior of each."""

    space: Space
    parts: tuple[Fitted | FittedNumbers, ...]

    def learned(self, collection: Tasks) -> list[LearnedTask]:
        """The tasks as a run keeps them."""
        pairs = zip(collection.tasks, self.parts, strict=True)
        return [LearnedTask(task.name, task.labels, task.targets, p.prior, p.evaluation) for task, p in pairs]

    def assembled(self, name: str, encoder: EncoderModule, collection: Tasks) -> TasksEncoder:
        """The encoder with all that was fitted behind it, in inference mode."""
        tasks = [ProbedTask(name=t.name, classes=len(t.labels), targets=len(t.targets)) for t in collection.tasks]
        sizes = {"width": len(self.space.centre), "personal": self.space.projection.shape[1], "tasks": tasks}
        probed = TasksEncoder(encoder, ProbesConfig.model_validate({**recorded(name, encoder), **sizes}))
        for buffer, value in (
            (probed.centre, self.space.centre),
            (probed.projection, self.space.projection),
            (probed.weight, np.concatenate([part.weight for part in self.parts], 1)),
            (probed.bias, np.concatenate([part.bias for part in self.parts])),
        ):
            buffer.copy_(torch.from_numpy(value.astype(np.float32)))
        return probed.eval()


def _behind(
    features: Array, collection: Tasks, personal: int, seed: int, tick: Tick, heads: Sequence[Head | None]
) -> Behind:
    """Fit every task on features `(n, d)` or `(n, views, d)` of all items, each on those that it is known of."""
    z = unit(features if features.ndim == 2 else features[:, 0])
    space = space_of(z, _first_labels(collection), personal)
    parts: list[Fitted | FittedNumbers] = []
    for task, head in zip(collection.tasks, heads, strict=True):
        own = features[task.rows]
        said = _named(tick, task.name)
        try:
            if isinstance(task.data, Collection):
                parts.append(fit_top(own, task.data, personal, seed, said, head, space))
            else:
                said("shared head", 0, 1)
                parts.append(fit_numbers(own, task.data, personal, seed, space, head))
                said("shared head", 1, 1)
        except TrainingError as e:
            raise TrainingError(f"Task {task.name}: {e}") from e
    return Behind(space, tuple(parts))


def _named(tick: Tick, name: str) -> Tick:
    return lambda stage, done, total: tick(f"{name}: {stage}", done, total)


def _first_labels(collection: Tasks) -> NDArray[np.int64]:
    """Labels `(n,)` of the first classification, -1 where not known; all 0 where there is none."""
    for task in collection.tasks:
        if isinstance(task.data, Collection):
            y = np.full(len(collection), -1)
            y[task.rows] = task.data.y
            return y
    return np.zeros(len(collection), np.int64)


def _check(collection: Tasks) -> None:
    for task in collection.tasks:
        if isinstance(task.data, Collection):
            try:
                usable(task.data)
            except TrainingError as e:
                raise TrainingError(f"Task {task.name}: {e}") from e


def _population(collection: Tasks) -> dict[str, str]:
    """Of each task, whether its prior knows people."""
    return {task.name: "users" if by_user(task.data) else "pooled" for task in collection.tasks}


class TaskNetworks(Networks):
    """One run's work for several tasks."""

    job = TasksJob

    @property
    def collection(self) -> Tasks:
        """The items with their tasks."""
        assert isinstance(self.items, Tasks)
        return self.items

    @staticmethod
    def asked(collection: Items) -> dict[str, Any]:
        """Names, labels and targets of the tasks, and a digest of all answers."""
        assert isinstance(collection, Tasks)
        told = [[t.name, list(t.labels), [str(target) for target in t.targets]] for t in collection.tasks]
        known = Answers.of(collection, np.arange(len(collection)))
        digest = hashlib.sha256(known.said.tobytes() + known.share.tobytes()).hexdigest()
        return {"tasks": told, "answers": digest}

    def folds(self) -> list[NDArray[np.bool_]]:
        """Masks of what networks leave out: people, or parts of each label of the first classification."""
        count = self.config.folds
        y = _first_labels(self.collection)
        return folds_of(y, self.collection.user, self.people, self.config.seed, count if count > 1 else 5)[:count]

    def check(self) -> None:
        """Raise `TrainingError` where a task could not be learned, or not be scored."""
        _check(self.collection)
        for task in self.collection.tasks:
            for out in self.masks:
                kept = ~out[task.rows]
                self._learnable(task, kept)

    def _learnable(self, task: Task, kept: NDArray[np.bool_]) -> None:
        """Raise `TrainingError` where what is kept of a task does not show it whole."""
        more = "give more of them or of people, other folds, or the recipe linear-probe."
        if not isinstance(task.data, Collection):
            if not kept.any() or not (task.data.t[kept].std(0) > 0).all():
                raise TrainingError(
                    f"Task {task.name} has values in one of {len(self.masks)} folds only, so nothing is left to learn "
                    f"it from when that is left out; {more}"
                )
            return
        lost = np.setdiff1d(np.arange(len(task.labels)), np.unique(task.data.y[kept]))
        if len(lost):
            raise TrainingError(
                f"Task {task.name}: '{task.labels[int(lost[0])]}' has examples in one of {len(self.masks)} folds only, "
                f"so nothing is left to learn it from when that is left out; {more}"
            )

    def first_head(self, z: Array, kept: NDArray[np.bool_]) -> Weights:
        """The tasks' heads at their plateaus for what is kept, one below the other; targets are standardised."""
        weights, biases = [], []
        for task in self.collection.tasks:
            seen = kept[task.rows]
            x = z[task.rows[seen]]
            if isinstance(task.data, Collection):
                w, b = fit_probe(x, task.data.y[seen], len(task.labels), PULL)
            else:
                t = task.data.t[seen]
                w, b = fit_ridge(x, (t - t.mean(0)) / np.maximum(t.std(0), 1e-12), PULL)
            weights.append(w)
            biases.append(b)
        return np.concatenate(weights), np.concatenate(biases)

    def write(self, trained: Trained, provenance: Callable[[str], dict[str, Any]]) -> None:
        """Fit every task's head and prior, and write the run."""
        c, config, final = self.collection, self.config, trained.final[1]
        found = _behind(final.features, c, config.personal, config.seed, self.tick, _heads(c, trained))
        probed = found.assembled(config.backbone, self.encoder, c)
        record = {
            "preprocessing": WHAT[c.kind].replace("a linear probe", "linear heads"),
            "provenance": {**provenance(""), "population": _population(c)},
        }
        save_tasks_run(self.out, probed, found.learned(c), parity_items(probed, c), record)


def _heads(collection: Tasks, trained: Trained) -> list[Head]:
    """Each task's trained head and its judges, on the items that it is known of, targets in their units."""
    scales = [_scales(job) for job, _ in (*trained.folds, trained.final)]
    final, found = trained.final[1], []
    for i, (task, own) in enumerate(zip(collection.tasks, columns_of(collection.tasks), strict=True)):
        mean, deviation = scales[-1][i]
        judges = tuple(
            Judge(j.out[task.rows], j.features[task.rows], mine[i][0] + mine[i][1] * j.logits[task.rows][:, own])
            for j, mine in zip(trained.judges, scales, strict=False)
        )
        weight, bias = final.weight[own] * deviation[:, None], mean + deviation * final.bias[own]
        found.append(Head(weight, bias, judges))
    return found


def _scales(job: Any) -> list[tuple[Array, Array]]:
    """Of each task, what its outputs are to be multiplied with and moved by: nothing where they are of labels."""
    assert isinstance(job, TasksJob)
    pairs = zip(job.learned().scales, job.several.tasks, strict=True)
    return [(s[0], s[1]) if s is not None else (np.zeros(t.width), np.ones(t.width)) for s, t in pairs]
