"""The networks of a fine-tuned run, whatever it learns: one for each fold, one for everyone, and their record."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.backbones.probe import recorded
from models.data.collections import Items
from models.files import write_atomically
from models.training.claim import CHECKPOINTS, check, claim
from models.training.config import TrainingError
from models.training.features import backbone_digest, features_of
from models.training.inputs import check_kind
from models.training.loop import Tick
from models.training.probing import Judge, by_user, unit
from models.training.provenance import provenance
from models.training.runners import Where
from models.training.starting import start_digest, starting_encoder, strangers_to
from models.training.tuned import Job, Outcome, TuneConfig, fit_job, timetable_of

__all__ = ["PULL", "Networks", "Trained", "Weights", "tuned_run"]

HISTORY = "history.json"
PULL = 1e-3
"""Weight of the squared norm in the head that lp-ft begins with."""
Weights = tuple[NDArray[np.float64], NDArray[np.float64]]


def tuned_run(
    kind: type["Networks"],
    collection: Items,
    config: TuneConfig,
    out: Path,
    *,
    cache: Path | None,
    progress: Tick | None,
    resume: bool,
    command: str,
    where: Where | None,
) -> None:
    """Train networks of a kind and have it write the run to `out`; arguments and errors as `fine_tune`."""
    tick = progress or (lambda stage, done, total: None)
    digests = sorted(collection.digest_of(i) for i in range(len(collection)))
    where = where or Where()
    where.check()
    processes = where.devices.processes
    if config.batch % processes:
        raise TrainingError(f"A batch of {config.batch} cannot be shared equally by {processes} processes.")
    strangers_to(config.start, digests)
    told = kind.asked(collection)
    asked = {"config": config.model_dump(mode="json"), "data": digests, "start": start_digest(config.start), **told}
    check(out, asked, resume=resume)
    begin, started = time.monotonic(), datetime.now(UTC)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        work = kind(collection, config, out, where, cache, tick)
        claim(out, asked)
        work.run(started, begin, command)
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class Trained:
    """All networks of a run: the folds' jobs with what came of them, and the final one's."""

    folds: tuple[tuple[Job, Outcome], ...]
    final: tuple[Job, Outcome]

    @property
    def judges(self) -> tuple[Judge, ...]:
        """The folds' networks, as judges of what each had left out."""
        return tuple(Judge(_mask(job), o.features, o.logits) for job, o in self.folds)


def _mask(job: Job) -> NDArray[np.bool_]:
    mask = np.zeros(len(job.collection), bool)
    mask[job.out] = True
    return mask


class Networks:
    """One run's work; subclasses say what is learned, and what comes behind the networks."""

    job: type[Job] = Job

    def __init__(
        self, collection: Items, config: TuneConfig, out: Path, where: Where, cache: Path | None, tick: Tick
    ) -> None:
        self.items, self.config, self.out, self.where, self.tick = collection, config, out, where, tick
        self.encoder = starting_encoder(config)
        check_kind(self.encoder.input, collection)
        timetable_of(self.encoder, config, config.steps)  # refused before anything is computed
        self.digest = backbone_digest(self.encoder)
        self.cache = cache
        self.people = by_user(collection)
        self.masks = self.folds()
        self.check()
        self.start = {name: value.clone() for name, value in self.encoder.state_dict().items()}

    @staticmethod
    def asked(collection: Items) -> dict[str, Any]:
        """What of the data a resumed run must have the same, beside their content."""
        return {}

    def folds(self) -> list[NDArray[np.bool_]]:
        """Masks of what networks leave out; a single one is the first part of five."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise `TrainingError` where nothing could be learned or scored."""
        raise NotImplementedError

    def first_head(self, z: NDArray[np.float64], kept: NDArray[np.bool_]) -> Weights:
        """The head on features of length 1 `(n, d)` at its plateau for what is kept, as the networks have it."""
        raise NotImplementedError

    def write(self, trained: Trained, provenance: Callable[[str], dict[str, Any]]) -> None:
        """Fit what comes behind the networks and write the run; `provenance` wants to know of what population it is."""
        raise NotImplementedError

    def run(self, started: datetime, begin: float, command: str) -> None:
        """Train all networks, fit what comes behind, and write the run."""
        heads = self._heads()
        jobs = [
            self._job(f"fold {i + 1} of {len(self.masks)}", i + 1, np.flatnonzero(~m), np.flatnonzero(m), heads[i])
            for i, m in enumerate(self.masks)
        ]
        folds = self.where.runner.map(fit_job, jobs, self.tick)
        steps = max(1, int(np.median([o.fitted.best_step for o in folds])))
        everyone = np.arange(len(self.items))
        last = self._job("network", 0, everyone, everyone[:0], heads[-1], steps)
        (final,) = self.where.runner.map(fit_job, [last], self.tick)
        self.encoder.load_state_dict(final.state)
        trained = Trained(tuple(zip(jobs, folds, strict=True)), (last, final))
        self._note(trained)
        self.write(trained, lambda population: self._provenance(trained, population, command, started, begin))

    def restored(self) -> tuple[Judge, ...]:
        """The folds' networks of a finished run, as judges of what each had left out.

        Raises:
            TrainingError: a checkpoint is gone.
        """
        jobs = [
            self._job(f"fold {i + 1} of {len(self.masks)}", i + 1, np.flatnonzero(~m), np.flatnonzero(m), None)
            for i, m in enumerate(self.masks)
        ]
        gone = [job.checkpoint for job in jobs if not job.checkpoint.is_file()]
        if gone:
            raise TrainingError(f"{gone[0]} is gone: without it no network left these examples out; train anew.")
        # Finished checkpoints: nothing is left to train, the best weights are put in.
        outcomes = [fit_job(job, self.tick) for job in jobs]
        return tuple(Judge(m, o.features, o.logits) for m, o in zip(self.masks, outcomes, strict=True))

    def _provenance(
        self, trained: Trained, population: str, command: str, started: datetime, begin: float
    ) -> dict[str, Any]:
        return {
            "recipe": self.config.recipe,
            "backbone": {"name": self.config.backbone, "digest": self.digest},
            "data": {"items": len(self.items), "kind": self.items.kind, "users": len(self.items.users)},
            "population": population,
            "stages": self._stages(trained),
            "timings": {j.name: o.seconds for j, o in [*trained.folds, trained.final]},
            **provenance(command, self.config, started, begin),
        }

    def _heads(self) -> list[Weights | None]:
        """Heads that the networks start from, the final one's last: for lp-ft each at its plateau, else none.

        The plateau is found by a convex solver on the encoder's features of what the network may see.
        """
        if self.config.recipe != "lp-ft":
            return [None] * (len(self.masks) + 1)
        found, _ = features_of(self.encoder, self.items, self.cache, lambda done, n: self.tick("features", done, n))
        z = unit(found.astype(np.float64))
        return [self.first_head(z, ~m) for m in (*self.masks, np.zeros(len(self.items), bool))]

    def _job(
        self,
        name: str,
        number: int,
        keep: NDArray[np.int64],
        out: NDArray[np.int64],
        head: Weights | None,
        steps: int | None = None,
    ) -> Job:
        return self.job(
            name=name,
            recorded=dict(recorded(self.config.backbone, self.encoder)),
            state=self.start,
            files=self.encoder.files,
            head=head,
            collection=self.items,
            keep=keep,
            out=out,
            config=self.config,
            steps=steps or self.config.steps,
            seed=self.config.seed + number,
            checkpoint=self.out / CHECKPOINTS / f"{name.replace(' ', '-')}.safetensors",
            devices=self.where.devices,
            logs=(self.out / "logs", self.where.loggers),
        )

    def _left_out(self, job: Job) -> list[str]:
        """Names of the people whom a network had left out; none where the data have no people."""
        return [self.items.users[u] for u in np.unique(self.items.user[job.out])] if self.people else []

    def _stages(self, trained: Trained) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for job, o in trained.folds:
            left = {"held_out": self._left_out(job)} if self.people else {}
            fitted = o.fitted
            figures = {"best_step": fitted.best_step, "log_loss": fitted.best_loss, "steps": fitted.steps}
            found.append({"stage": job.name, "items_held_out": len(job.out), **left, **figures})
        return [*found, {"stage": "final", "steps": trained.final[1].fitted.steps}]

    def _note(self, trained: Trained) -> None:
        """Keep the curves of every network."""
        networks = [
            {"network": job.name, "held_out": self._left_out(job), **outcome.fitted.curves}
            for job, outcome in [*trained.folds, trained.final]
        ]
        text = json.dumps({"networks": networks}, allow_nan=False)
        write_atomically(self.out / HISTORY, text.encode() + b"\n")
