"""Fine-tuning recipes on images, texts and sounds: a network for each fold, one for everyone, and what comes behind."""

import hashlib
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.backbones.module import EncoderModule, create_encoder
from models.backbones.probe import recorded
from models.data.collections import Collection
from models.files import write_atomically
from models.training.claim import ASKED, CHECKPOINTS, check, claim
from models.training.config import TrainingError
from models.training.features import backbone_digest, features_of
from models.training.inputs import check_kind
from models.training.loop import Tick
from models.training.media_run import MediaRun, is_media_run, load_media_run, save_media_run
from models.training.probe_fit import fit_probe, folds_of
from models.training.probing import WHAT, Head, Judge, assembled, by_user, fit_top, parity_items, unit, usable
from models.training.provenance import provenance
from models.training.run import RECORD
from models.training.runners import Where
from models.training.seen import items_of, note_items, told_items
from models.training.tuned import Job, Outcome, TuneConfig, fit_job, timetable_of

__all__ = ["fine_tune", "restored_judges"]

HISTORY = "history.json"
PULL = 1e-3
"""Weight of the squared norm in the head that lp-ft begins with."""
Weights = tuple[NDArray[np.float64], NDArray[np.float64]]


def fine_tune(
    collection: Collection,
    config: TuneConfig,
    out: Path,
    *,
    cache: Path | None = None,
    progress: Tick | None = None,
    resume: bool = False,
    command: str = "",
    where: Where | None = None,
) -> MediaRun:
    """Fine-tune an encoder by a recipe, fit the population prior in its features, and write the run to `out`.

    A network for each fold is judged on what it left out (people, where there are three or more): this gives the number
    of steps, the temperature, and the record that the guard goes by. The final network learns from everything.

    Raises:
        TrainingError: the folder is in use or cannot be resumed, an item cannot be read, or the data do not fit.
        BackboneError: there is no such encoder, or a package is missing.
    """
    tick = progress or (lambda stage, done, total: None)
    digests = sorted(collection.digest_of(i) for i in range(len(collection)))
    where = where or Where()
    if config.batch % where.devices.count:
        raise TrainingError(f"A batch of {config.batch} cannot be shared equally by {where.devices.count} processes.")
    _strangers_to(config.start, digests)
    asked = {"config": config.model_dump(mode="json"), "data": digests, "start": _start_digest(config.start)}
    check(out, asked, resume=resume)
    begin, started = time.monotonic(), datetime.now(UTC)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        work = _Work(collection, config, out, where, cache, tick)
        claim(out, asked)
        work.run(started, begin, command)
    finally:
        torch.set_num_threads(threads)
    return load_media_run(out)


def restored_judges(run: MediaRun, collection: Collection, tick: Tick | None = None) -> tuple[Judge, ...]:
    """Networks of a finished run, each of which had left a part of its data out, as their checkpoints have them.

    `collection` is what the run was trained on, in the same order.

    Raises:
        TrainingError: a checkpoint is gone.
    """
    config = TuneConfig.model_validate(run.provenance["config"])
    tick = tick or (lambda stage, done, total: None)
    work = _Work(collection, config, run.folder, Where(), None, tick)
    jobs = [
        work._job(f"fold {i + 1} of {len(work.masks)}", i + 1, np.flatnonzero(~m), np.flatnonzero(m), None)
        for i, m in enumerate(work.masks)
    ]
    gone = [job.checkpoint for job in jobs if not job.checkpoint.is_file()]
    if gone:
        raise TrainingError(f"{gone[0]} is gone: without it no network left these examples out; train anew.")
    # Finished checkpoints: nothing is left to train, the best weights are put in.
    outcomes = [fit_job(job, tick) for job in jobs]
    return tuple(Judge(m, o.features, o.logits) for m, o in zip(work.masks, outcomes, strict=True))


def starting_encoder(config: TuneConfig) -> EncoderModule:
    """The encoder that training starts from: pre-trained, of another run, or (scratch) with random weights by the seed.

    Raises:
        BackboneError, RunError: it cannot be built.
    """
    if config.start is not None:
        return _of_run(Path(config.start), config)
    encoder = create_encoder(config.backbone, config.settings)
    if config.recipe != "scratch":
        return encoder
    told = recorded(config.backbone, encoder)
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(config.seed)
        blank = create_encoder(told["encoder"], told["settings"])
    blank.files.update(encoder.files)
    return blank


def _of_run(start: Path, config: TuneConfig) -> EncoderModule:
    """The encoder of another run, which must be of the same backbone."""
    if config.recipe == "scratch" or config.settings:
        other = "the recipe scratch" if config.recipe == "scratch" else "settings of the encoder"
        raise TrainingError(f"Weights and settings are those of the run in start={start}; leave {other} out.")
    if (start / RECORD).is_file() and not is_media_run(start):
        raise TrainingError(f"start={start} is a run on recordings; one on images, texts or sounds was expected.")
    run = load_media_run(start)
    if run.architecture.encoder != config.backbone:
        raise TrainingError(
            f"start={start} is a run of {run.architecture.encoder}, and the backbone is {config.backbone}; name that."
        )
    return run.backbone().encoder


def _start_digest(start: str | None) -> str | None:
    """What a run that is started from is, so that resuming notices another in its place."""
    if start is None or not (Path(start) / RECORD).is_file():
        return None
    return hashlib.sha256((Path(start) / RECORD).read_bytes()).hexdigest()


def _strangers_to(start: str | None, digests: Sequence[str]) -> None:
    """Raise `TrainingError` where weights to start from were trained on some of these data.

    Nothing could then be left out of them, and every figure and the record that the guard goes by would be too good.
    """
    if start is None:
        return
    file = Path(start) / ASKED
    seen = set(json.loads(file.read_text())["data"]) & set(digests) if file.is_file() else set()
    if seen:
        raise TrainingError(
            f"start={start} was trained on {len(seen)} of these {len(digests)} examples, so nothing could be left out "
            "of its weights; give other data, or begin at the pre-trained ones."
        )


class _Work:
    """One run's work; every part is a method."""

    def __init__(
        self, collection: Collection, config: TuneConfig, out: Path, where: Where, cache: Path | None, tick: Tick
    ) -> None:
        self.collection, self.config, self.out, self.where, self.tick = collection, config, out, where, tick
        self.encoder = starting_encoder(config)
        check_kind(self.encoder.input, collection)
        timetable_of(self.encoder, config, config.steps)  # refused before anything is computed
        self.digest = backbone_digest(self.encoder)
        self.cache = cache
        self.people = by_user(collection)
        self.masks = self._folds()
        usable(collection)
        self.start = {name: value.clone() for name, value in self.encoder.state_dict().items()}

    def run(self, started: datetime, begin: float, command: str) -> None:
        """Train all networks, fit what comes behind, and write the run."""
        heads = self._heads()
        jobs = [
            self._job(f"fold {i + 1} of {len(self.masks)}", i + 1, np.flatnonzero(~m), np.flatnonzero(m), heads[i])
            for i, m in enumerate(self.masks)
        ]
        folds = self.where.runner.map(fit_job, jobs, self.tick)
        steps = max(1, int(np.median([o.fitted.best_step for o in folds])))
        everyone = np.arange(len(self.collection))
        last = self._job("network", 0, everyone, everyone[:0], heads[-1], steps)
        (final,) = self.where.runner.map(fit_job, [last], self.tick)
        self.encoder.load_state_dict(final.state)
        judges = tuple(Judge(m, o.features, o.logits) for m, o in zip(self.masks, folds, strict=True))
        head = Head(final.weight, final.bias, judges)
        known = items_of(self.collection)
        fitted = fit_top(final.features, self.collection, self.config.personal, self.config.seed, self.tick, head)
        probed = assembled(self.config.backbone, self.encoder, fitted)
        self._note([*zip(jobs, folds, strict=True), (last, final)])
        record = {
            "preprocessing": WHAT[self.collection.kind].replace("a linear probe", "a linear head"),
            "evaluation": fitted.evaluation,
            "provenance": {
                "recipe": self.config.recipe,
                "backbone": {"name": self.config.backbone, "digest": self.digest},
                "data": {
                    "items": len(self.collection),
                    "kind": self.collection.kind,
                    "users": len(self.collection.users),
                    **told_items(known),
                },
                "population": "pooled" if fitted.prior.hyper.pooled else "users",
                "stages": self._stages(jobs, folds, final),
                "timings": {j.name: o.seconds for j, o in [*zip(jobs, folds, strict=True), (last, final)]},
                **provenance(command, self.config, started, begin),
            },
        }
        note_items(self.out, known)
        save_media_run(self.out, probed, fitted.prior, parity_items(probed, self.collection), record)

    def _folds(self) -> list[NDArray[np.bool_]]:
        """Masks of what networks leave out; a single one is the first part of five."""
        c, count = self.collection, self.config.folds
        parts = folds_of(c.y, c.user, self.people, self.config.seed, count if count > 1 else 5)[:count]
        seen = [np.unique(c.y[~part]) for part in parts]
        lost = next((np.setdiff1d(np.arange(len(c.labels)), s) for s in seen if len(s) < len(c.labels)), None)
        if lost is not None:
            raise TrainingError(
                f"'{c.labels[int(lost[0])]}' has examples in one of {len(parts)} folds only, so nothing is left to "
                "learn it from when that is left out; give more examples or people of it, other folds, or the recipe "
                "linear-probe."
            )
        return parts

    def _heads(self) -> list[Weights | None]:
        """Heads that the networks start from, the final one's last: for lp-ft each at its plateau, else none.

        The plateau is found by a convex solver on the encoder's features of what the network may see.
        """
        c, classes = self.collection, len(self.collection.labels)
        if self.config.recipe != "lp-ft":
            return [None] * (len(self.masks) + 1)
        found, _ = features_of(self.encoder, c, self.cache, lambda done, total: self.tick("features", done, total))
        z = unit(found.astype(np.float64))
        return [fit_probe(z[~m], c.y[~m], classes, PULL) for m in (*self.masks, np.zeros(len(c), bool))]

    def _job(
        self,
        name: str,
        number: int,
        keep: NDArray[np.int64],
        out: NDArray[np.int64],
        head: Weights | None,
        steps: int | None = None,
    ) -> Job:
        return Job(
            name=name,
            recorded=dict(recorded(self.config.backbone, self.encoder)),
            state=self.start,
            files=self.encoder.files,
            head=head,
            collection=self.collection,
            keep=keep,
            out=out,
            config=self.config,
            steps=steps or self.config.steps,
            seed=self.config.seed + number,
            checkpoint=self.out / CHECKPOINTS / f"{name.replace(' ', '-')}.safetensors",
            devices=self.where.devices,
            logs=(self.out / "logs", self.where.loggers),
        )

    def _stages(self, jobs: Sequence[Job], folds: Sequence[Outcome], final: Outcome) -> list[dict[str, Any]]:
        names = self.collection.users
        found: list[dict[str, Any]] = []
        for job, o in zip(jobs, folds, strict=True):
            left = {"held_out": [names[u] for u in np.unique(self.collection.user[job.out])]} if self.people else {}
            fitted = o.fitted
            figures = {"best_step": fitted.best_step, "log_loss": fitted.best_loss, "steps": fitted.steps}
            found.append({"stage": job.name, "items_held_out": len(job.out), **left, **figures})
        return [*found, {"stage": "final", "steps": final.fitted.steps}]

    def _note(self, done: Sequence[tuple[Job, Outcome]]) -> None:
        """Keep the curves of every network."""
        names = self.collection.users
        networks = []
        for job, outcome in done:
            out = [names[u] for u in np.unique(self.collection.user[job.out])] if self.people else []
            networks.append({"network": job.name, "held_out": out, **outcome.fitted.curves})
        text = json.dumps({"networks": networks}, allow_nan=False)
        write_atomically(self.out / HISTORY, text.encode() + b"\n")
