"""Training: recordings of a population to a finished run."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.backbones.signal import SignalConfig, SignalEncoder
from models.data.recordings import Recordings
from models.data.splits import assert_disjoint
from models.heads.confidence import population_floors
from models.heads.head import softmax
from models.heads.prior import HyperParameters, Prior
from models.heads.tuning import LeftOut, Trial, evidence, trials_of, tune
from models.training import generic
from models.training.checkpoint import write_atomically
from models.training.claim import CHECKPOINTS, check, claim
from models.training.config import TrainConfig, TrainingError
from models.training.further_tasks import await_further
from models.training.network import BranchJob, BranchOutcome, Tick, fit_branch
from models.training.partial import partial_rule
from models.training.people import People, fold_members, gather
from models.training.population import (
    Moments,
    Placement,
    gain_directions,
    handmade_moments,
    population_prior,
    ring_placements,
    set_placements,
)
from models.training.provenance import provenance
from models.training.recipe import recipe
from models.training.run import Run, load_run, save_run
from models.training.runners import Where

__all__ = ["Training", "train"]

PARITY_WINDOWS = 96
HISTORY = "history.json"
PREPROCESSING = (
    "All in the graph: scaling by the population, hand-made features (log variance, log mean absolute value, "
    "log waveform length, zero crossings, slope-sign changes, log band powers, matrix logarithm of the channels' "
    "correlation), their whitened projection, and log posteriors of the population's classes. Send raw samples."
)


def train(
    recordings: Sequence[Recordings],
    config: TrainConfig,
    out: Path,
    progress: Tick | None = None,
    *,
    resume: bool = False,
    command: str = "",
    where: Where | None = None,
    further: Sequence[str] = (),
) -> Run:
    """Train a backbone and its population prior, and write the run to `out`.

    People are split into folds; a network for each fold is judged on its left-out people, which gives the number of
    steps and the generic head. The final network is trained on everyone. Personal heads' settings come from
    leave-one-user-out. `progress(stage, done, total)` is called as it goes; `where` says on what networks are trained;
    `further` names tasks that `learn_further` fits on the run, which is not whole without them.

    Raises:
        TrainingError: too few people or classes, an unknown recipe, a folder in use, or a run that cannot be resumed.
    """
    begin = time.monotonic()
    tick = progress or (lambda stage, done, total: None)
    where = where or Where()
    where.check()
    asked = {"config": config.model_dump(mode="json"), "data": sorted(r.digest for r in recordings)}
    check(out, asked, resume=resume)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        work = Training(recordings, config, out, tick, where)
        # Only now: recordings that cannot be trained on leave no folder behind.
        claim(out, asked)
        if further:
            await_further(out, further)
        work.run(begin, command)
    finally:
        torch.set_num_threads(threads)
    return load_run(out)


class Training:
    """One run's work in order; every part is a method."""

    def __init__(
        self,
        recordings: Sequence[Recordings],
        config: TrainConfig,
        out: Path,
        tick: Tick,
        where: Where | None = None,
    ) -> None:
        self.where = where or Where()
        self.recipe = recipe(config.recipe)
        self.recordings, self.config, self.out, self.tick = recordings, config, out, tick
        self.seconds: dict[str, float] = {}
        self.curves: list[dict[str, Any]] = []
        tick("windows", 0, 1)
        with self._timed("windows"):
            self.people: People = gather(recordings, config)
            for i, rec in enumerate(recordings):
                assert_disjoint([rec], [r for r in recordings[i + 1 :] if r.subject != rec.subject])
        tick("windows", 1, 1)
        channels = self.people.signal.channels
        ring = self.people.signal.channel_layout == "ring"
        self.placements = ring_placements(channels) if ring else (Placement(0.0, False, 0.0),)
        self.learned = self.recipe.learned and config.steps > 0
        if self.learned:
            self._check_processes()
        with self._timed("hand-made features"):
            self.features, self.moments = self._all_moments()
            self.gains = gain_directions(self._blank(), self.people)

    def run(self, begin: float, command: str) -> None:
        """Do everything and write the run."""
        started = datetime.now(UTC)
        held, steps, stages = self._folds()
        classes = len(self.people.labels)
        weights, logits = generic.weigh(held, classes)
        with self._timed("leave one out"):
            hyper, figures = self._personal(logits)
        strangers = [(softmax(v), self.people.members[u].y) for u, v in logits.items()]
        floors = tuple(round(float(f), 6) for f in population_floors(strangers))
        hyper = hyper.model_copy(update={"set_floors": floors})
        encoder, prior = self.encoder(range(len(self.people)), hyper)
        if self.learned:
            everyone = tuple(range(len(self.people)))
            job = self._job("network", encoder, everyone, (), steps, self.config.seed, "final")
            (outcome,) = self.where.runner.map(fit_branch, [job], self.tick)
            encoder.load_state_dict(outcome.state)
            stages.append({"stage": "final", "steps": outcome.fitted.steps})
            self._note("network", (), outcome)
        weight, bias = generic.generic_head(prior, weights, self.learned)
        prior = replace(prior, generic_weight=weight, generic_bias=bias)
        zero = np.array([(v.argmax(1) == self.people.members[u].y).mean() for u, v in logits.items()])
        evaluation = {
            "protocol": "people of the population, each left out; windows of repetitions that did not calibrate",
            "zero_shot": {
                "mean": float(zero.mean()),
                "sd": float(zero.std()),
                "worst": float(zero.min()),
                "at_other_placements": generic.turned_accuracy(held, classes, weights),
                "learned_share": weights.learned,
                "temperature": weights.temperature,
            },
            "personal": figures,
            "users": len(self.people),
        }
        record = {
            "preprocessing": PREPROCESSING,
            "evaluation": evaluation,
            "provenance": self._provenance(started, begin, command, stages),
        }
        architecture = {"name": "signal", "settings": encoder.default_cfg.model_dump(mode="json")}
        history = json.dumps({"networks": self.curves}, allow_nan=False)
        write_atomically(self.out / HISTORY, history.encode() + b"\n")
        save_run(self.out, encoder, prior, self.people.signal, self._parity_windows(), record, architecture)

    def _check_processes(self) -> None:
        """Raise `TrainingError` where a process would have nobody to learn from in a step."""
        fewest = min(len(kept) for kept, _ in fold_members(len(self.people), self.config))
        episodes, processes = min(self.config.users_per_step, fewest), self.where.devices.processes
        if processes > episodes:
            raise TrainingError(
                f"A step learns from {episodes} people, which {processes} processes cannot share; take fewer processes."
            )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Note the seconds that a stage takes in this process."""
        begin = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - begin, 2)

    def _note(self, network: str, held_out: Sequence[int], outcome: BranchOutcome) -> None:
        """Note the curves of a network, whom it left out, and its seconds."""
        names = [self.people.members[u].name for u in held_out]
        self.curves.append({"network": network, "held_out": names, **outcome.fitted.curves})
        self.seconds[network] = outcome.seconds

    def _job(
        self,
        name: str,
        encoder: SignalEncoder,
        train: Sequence[int],
        valid: Sequence[int],
        steps: int,
        seed: int,
        file: str,
    ) -> BranchJob:
        return BranchJob(
            name=name,
            cfg=encoder.default_cfg,
            state=encoder.state_dict(),
            people=self.people,
            train=tuple(train),
            valid=tuple(valid),
            config=self.config,
            steps=steps,
            seed=seed,
            checkpoint=self.out / CHECKPOINTS / f"{file}.safetensors",
            devices=self.where.devices,
            logs=(self.out / "logs", self.where.loggers),
        )

    def _all_moments(self) -> tuple[list[NDArray[np.float32]], list[list[Moments]]]:
        encoder = self._blank()
        features, first = handmade_moments(encoder, self.people)
        found = [first]
        for i, placement in enumerate(self.placements[1:]):
            self.tick("placements", i, len(self.placements) - 1)
            found.append(handmade_moments(encoder, self.people, placement)[1])
        self.tick("placements", 1, 1)
        return features, found

    def _blank(self) -> SignalEncoder:
        """An encoder with the population's scale, random weights (by the seed) and nothing else."""
        s, c = self.people.signal, self.config
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(c.seed)
            cfg = SignalConfig(
                channels=s.channels,
                length=s.length,
                fs=s.fs,
                classes=len(self.people.labels),
                modality="imu" if s.modality == "imu" else "emg",
                personal=c.personal,
                components=len(self.placements),
                learned=self.learned,
            )
            encoder = SignalEncoder(cfg).eval()
        encoder.scale.copy_(self.people.scale)
        encoder.offset.copy_(self.people.offset)
        return encoder

    def encoder(self, who: Sequence[int], hyper: HyperParameters | None = None) -> tuple[SignalEncoder, Prior]:
        """The encoder of some people but for its learned branch, and their prior."""
        encoder = self._blank()
        cfg = encoder.default_cfg
        prior, centre, projection = population_prior(
            self.moments, who, self.people.labels, cfg.personal, encoder.num_features - cfg.personal, hyper
        )
        deviation = np.mean([self.features[u].std(0) for u in who], 0)
        encoder.mean.copy_(torch.from_numpy(centre.astype(np.float32)))
        encoder.deviation.copy_(torch.from_numpy(np.maximum(deviation, 1e-3).astype(np.float32)))
        encoder.projection.copy_(torch.from_numpy(projection.astype(np.float32)))
        set_placements(encoder, prior, self.placements)
        if self.people.signal.modality == "emg":  # whose features are logarithms, so that a gain is a direction
            prior = replace(prior, gain=np.mean([self.gains[u] for u in who], 0) @ projection)
        return encoder, prior

    def _folds(self) -> tuple[list[generic.HeldOutEvidence], int, list[dict[str, Any]]]:
        """Evidence about everyone from encoders made without them, and the number of steps that served them best."""
        folds = fold_members(len(self.people), self.config)
        encoders = [self.encoder(kept)[0] for kept, _ in folds]
        stages: list[dict[str, Any]] = []
        best: list[int] = []
        if self.learned:
            steps, seed = self.config.steps, self.config.seed + 1
            jobs = [
                self._job(f"fold {i + 1} of {len(folds)}", encoders[i], *folds[i], steps, seed + i, f"fold{i}")
                for i in range(len(folds))
            ]
            for i, outcome in enumerate(self.where.runner.map(fit_branch, jobs, self.tick)):
                encoders[i].load_state_dict(outcome.state)
                fitted, out = outcome.fitted, folds[i][1]
                best.append(fitted.best_step)
                self._note(jobs[i].name, out, outcome)
                stages.append(
                    {
                        "stage": f"fold {i}",
                        "held_out": [self.people.members[u].name for u in out],
                        "best_step": fitted.best_step,
                        "log_loss": fitted.best_loss,
                        "steps": fitted.steps,
                    }
                )
        judged = [(encoders[i], u) for i, (_, out) in enumerate(folds) for u in out]
        held = [e for encoder, u in judged for e in generic.held_out_evidence(encoder, self.people, u)]
        return held, int(np.median(best)) if best else 0, stages

    def _personal(self, logits: dict[int, NDArray[np.float64]]) -> tuple[HyperParameters, list[dict[str, float]]]:
        """Settings and record of personal heads, each person's under the prior of all the others."""
        left: list[LeftOut] = []
        trials: list[Trial] = []
        personal = self._blank().default_cfg.personal
        for u, member in enumerate(self.people.members):
            self.tick("leave one out", u, len(self.people))
            others = [v for v in range(len(self.people)) if v != u]
            prior, centre, a = population_prior(self.moments, others, self.people.labels, personal)
            z = (self.features[u] - centre) @ a
            left.append(LeftOut(prior, z, member.y, member.session, member.repetition, logits[u]))
            trials += trials_of(u, left[-1])
        thinning = self.people.thinning
        start = HyperParameters(growth=1.0, window=30.0 / thinning, shrinkage=100.0)
        hyper = tune(left, trials, start)
        place = len(self.placements) > 1
        records, figures = evidence(left, trials, hyper, thinning, place=place)
        self.tick("leave one out", len(self.people), len(self.people))
        rule = partial_rule(left, hyper, self.config.seed)
        record = {"window": hyper.window * thinning, "evidence": records, "partial": rule}
        return hyper.model_copy(update=record), figures

    def _parity_windows(self) -> NDArray[np.float32]:
        """Real windows of everyone, spread evenly, for the exporter's parity gate."""
        each = -(-PARITY_WINDOWS // len(self.people))
        picked = [m.x[np.linspace(0, len(m.y) - 1, min(each, len(m.y))).astype(int)] for m in self.people.members]
        return np.asarray(torch.cat(picked).numpy(), np.float32)

    def _provenance(
        self, started: datetime, begin: float, command: str, stages: list[dict[str, Any]]
    ) -> dict[str, Any]:
        return {
            **provenance(command, self.config, started, begin),
            "subjects": [{"stem": r.stem, "subject": r.subject, "digest": r.digest} for r in self.recordings],
            "stages": stages,
            "timings": self.seconds,
            "thinning": self.people.thinning,
        }
