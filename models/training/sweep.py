"""Sweeps: a recipe trained with many settings, each a run of its own, and a table of what left-out people would get.

Own code: without early stopping of whole trials, which figures by folds do not allow, Ray Tune would only start tasks,
and bring pandas and pyarrow.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.data.collections import Collection, load_collection
from models.data.recordings import Recordings, load_folder
from models.files import write_atomically
from models.training.claim import ASKED, check, claim
from models.training.config import TrainConfig, TrainingError
from models.training.fine_tuning import fine_tune
from models.training.held_out import Asked, alike, by_users, of_items, of_recordings, without
from models.training.linear_probe import LinearProbeConfig, train_probe
from models.training.loop import Tick
from models.training.media_run import load_media_run
from models.training.probing import by_user
from models.training.run import RECORD, load_run
from models.training.runners import OnRay, Serial, Where
from models.training.train import train
from models.training.tuned import TuneConfig

__all__ = ["FIGURES", "RESULTS", "Config", "Study", "Swept", "Trial", "sweep"]

RESULTS = "results.json"
FIGURES = ("shared", "worst", "personal")
"""What trials are sorted by: accuracy of the shared head on people left out (mean, and the worst of them), or that of
their personal heads, as a mean over the calibrations in the run's record."""
NOTE = (
    "Figures are of people (or items) that each trial's own networks left out. The best of many trials was chosen by "
    "them, so its own figure is too good; ask people who were in no trial."
)
Config = TrainConfig | TuneConfig | LinearProbeConfig


@dataclass(frozen=True)
class Study:
    """What all trials have in common.

    Attributes:
        data: folder of recordings; or folder or table of images, sounds or texts.
        subjects: globs over recordings.
        cache: folder in which features are kept.
        held_out: globs over people (files of recordings, users of the rest) who are in no trial.
        config: settings of the recipe, of which a trial changes some.
        where: on what a trial is trained; its runner does the trials.
    """

    data: Path
    config: Config
    subjects: str = "*"
    cache: Path | None = None
    where: Where = field(default_factory=Where)
    command: str = ""
    held_out: str | None = None

    def recordings(self) -> list[Recordings]:
        """Of those who are in the trials."""
        if self.held_out is None:
            return load_folder(self.data, self.subjects)
        return load_folder(self.data, without(self.subjects, self.held_out))

    def collection(self) -> Collection:
        """Of those who are in the trials."""
        found = load_collection(self.data, self.config.seed)
        return found if self.held_out is None else by_users(found, self.held_out)[0]

    def apart(self) -> list[Recordings] | Collection | None:
        """Of those who are held out.

        Raises:
            ValueError: there is nobody of such a name, or they cannot be asked.
        """
        if self.held_out is None:
            return None
        if isinstance(self.config, TrainConfig):
            apart = load_folder(self.data, self.held_out)
            alike(self.recordings(), apart)
            return apart
        return by_users(load_collection(self.data, self.config.seed), self.held_out)[1]

    def digests(self) -> list[str]:
        """Of all data of the trials, which are read for it.

        Raises:
            ValueError: they cannot be read.
        """
        if isinstance(self.config, TrainConfig):
            return sorted(r.digest for r in self.recordings())
        found = self.collection()
        return sorted(found.digest_of(i) for i in range(len(found)))


@dataclass(frozen=True)
class Trial:
    """One row of the table: settings that differ, figures on people left out, and the error where there was one."""

    number: int
    folder: str
    settings: Mapping[str, Any]
    figures: Mapping[str, float | None]
    error: str | None = None

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        named = {"trial": self.number, "folder": self.folder, "settings": dict(self.settings)}
        return {**named, **self.figures, "error": self.error}


@dataclass(frozen=True)
class Swept:
    """What a sweep came to: the trials, the best first, and what those say of the best who were in no trial."""

    trials: tuple[Trial, ...]
    held_out: Asked | None

    def table(self, study: Study, by: str) -> dict[str, Any]:
        """As JSON has it."""
        best = self.trials[0] if self.trials[0].figures[by] is not None else None
        return {
            "by": by,
            "trials": len(self.trials),
            "failed": sum(trial.error is not None for trial in self.trials),
            "best": None if best is None else best.folder,
            "held_out": self.held_out,
            "note": NOTE,
            "command": study.command,
            "seed": study.config.seed,
            "rows": [trial.row() for trial in self.trials],
        }


@dataclass(frozen=True)
class _Job:
    study: Study
    number: int
    settings: Mapping[str, Any]
    config: Config
    out: Path


def sweep(
    study: Study,
    tried: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    by: str = "shared",
    resume: bool = False,
    progress: Tick | None = None,
) -> Swept:
    """Train with each of the settings, and return what came of it; the table is in `out/results.json` too.

    What trials that have ended came to is read from their runs when a sweep is resumed; what was begun goes on, and
    what failed is tried again. More settings than before may be given, behind the same ones.

    Raises:
        TrainingError: settings that the recipe does not take, or a folder that is in use or of another sweep.
        ValueError: the data cannot be read.
    """
    if by not in FIGURES:
        raise TrainingError(f"Trials cannot be sorted by '{by}'; there are: {', '.join(FIGURES)}.")
    if by == "personal" and not isinstance(study.config, TrainConfig) and not by_user(study.collection()):
        raise TrainingError("Trials cannot be sorted by 'personal': too few users in the data for personal heads.")
    study.where.check()
    kind, base = type(study.config), study.config.model_dump(mode="json")
    jobs = []
    for number, settings in enumerate(tried):
        try:
            config = kind.model_validate({**base, **settings})
        except ValidationError as e:
            first = e.errors()[0]
            name = ".".join(map(str, first["loc"])) or "settings"
            told = f"{name} cannot be {first['input']!r}: {first['msg']}"
            raise TrainingError(f"Trial {number} with {dict(settings)} is not possible: {told}.") from e
        jobs.append(_Job(study, number, settings, config, out / f"trial-{number:03d}"))
    asked, apart = {"config": base, "data": study.digests()}, study.apart()
    check(out, asked, resume=resume)
    for job in jobs:
        _check_same(job)
    claim(out, asked)
    tick = progress or (lambda stage, done, total: None)
    found = sorted(_done(study, jobs, tick), key=lambda trial: _rank(trial, by))
    best = None if found[0].figures[by] is None else out / found[0].folder
    swept = Swept(tuple(found), _asked(best, apart))
    write_atomically(out / RESULTS, json.dumps(swept.table(study, by), indent=2, allow_nan=False).encode() + b"\n")
    return swept


def _asked(best: Path | None, apart: list[Recordings] | Collection | None) -> Asked | None:
    """What those who are in no trial say of the best."""
    if best is None or apart is None:
        return None
    if isinstance(apart, Collection):
        return of_items(load_media_run(best), apart)
    return of_recordings(load_run(best), apart)


def _done(study: Study, jobs: Sequence[_Job], tick: Tick) -> list[Trial]:
    """Do the trials, one after the other or side by side."""
    runner = study.where.runner
    if not isinstance(runner, OnRay):
        found = []
        for job in jobs:
            tick("trials", job.number, len(jobs))
            found.append(_trial(job))
        tick("trials", len(jobs), len(jobs))
        return found
    # A trial's own networks are trained one after the other, in its task.
    plain = replace(study, where=replace(study.where, runner=Serial()))
    outcomes = runner.outcomes(_trial, [replace(job, study=plain) for job in jobs], tick)
    return [
        _failed(job, outcome) if isinstance(outcome, Exception) else outcome
        for job, outcome in zip(jobs, outcomes, strict=True)
    ]


def _trial(job: _Job, tick: Tick | None = None) -> Trial:
    """Train with a trial's settings, unless that was done; what goes wrong is what the trial came to."""
    try:
        if not (job.out / RECORD).is_file():
            _train(job)
        record = json.loads((job.out / RECORD).read_text())
        return Trial(job.number, job.out.name, job.settings, _figures(record["evaluation"]))
    except Exception as error:  # whatever it is, the other trials go on
        return _failed(job, error)


def _train(job: _Job) -> None:
    study, config = job.study, job.config
    resume = (job.out / ASKED).is_file()
    if isinstance(config, TrainConfig):
        train(study.recordings(), config, job.out, resume=resume, command=study.command, where=study.where)
        return
    collection = study.collection()
    told: Any = {"cache": study.cache, "command": study.command, "where": study.where}
    if isinstance(config, TuneConfig):
        fine_tune(collection, config, job.out, resume=resume, **told)
        return
    shutil.rmtree(job.out, ignore_errors=True)  # a killed probe leaves nothing to go on from
    train_probe(collection, config, job.out, **told)


def _check_same(job: _Job) -> None:
    """Raise `TrainingError` where a trial that has ended was one of another sweep, or its record is damaged."""
    file = job.out / RECORD
    if not file.is_file():
        return
    try:
        before = json.loads(file.read_text())["provenance"]["config"]
    except (KeyError, TypeError, ValueError) as e:
        raise TrainingError(f"{file} is damaged; without the folder {job.out} that trial is done again.") from e
    if before != job.config.model_dump(mode="json"):
        raise TrainingError(f"{job.out} was trained with other settings; resume the sweep with the same --vary.")


def _failed(job: _Job, error: Exception) -> Trial:
    told = str(error) or type(error).__name__
    return Trial(job.number, job.out.name, job.settings, dict.fromkeys(FIGURES), told)


def _figures(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    zero, personal = evaluation["zero_shot"], [row["personal"] for row in evaluation["personal"]]
    mean = sum(personal) / len(personal) if personal else None
    return {"shared": zero["mean"], "worst": zero["worst"], "personal": mean}


def _rank(trial: Trial, by: str) -> tuple[float, int]:
    """The best first; who has no such figure comes last, and equals in the order of their numbers."""
    figure = trial.figures[by]
    return float("inf") if figure is None else -figure, trial.number
