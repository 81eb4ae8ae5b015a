"""What a report is made from: the record and history of a training run, and the figures of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.evaluation.run import GENERIC, PERSONAL, ZERO_SHOT, configuration_of, training_of
from models.heads.prior import HyperParameters

__all__ = ["EvaluationFile", "Network", "ReportError", "RunFile", "check_belongs", "read_evaluation", "read_run"]

RECORD, HISTORY = "run.json", "history.json"


class ReportError(ValueError):
    """A report cannot be made of what was given; the message says what was wrong and what would be right."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class ZeroShot(_Part):
    """The generic head on what was left out, accuracies in [0, 1]; `of`: what mean and worst are over."""

    mean: float
    sd: float
    worst: float
    at_other_placements: float | None = None
    of: str = "users"


class Personal(_Part):
    """Personal heads of left-out people; `windows` a label, 0 for whole repetitions."""

    windows: int
    repetitions: int
    other_sessions: bool
    users: int
    personal: float
    personal_sd: float
    personal_worst: float
    generic: float
    below_generic: int


class Figures(_Part):
    """What training found on people, or parts of the data, that it left out."""

    protocol: str
    zero_shot: ZeroShot
    personal: tuple[Personal, ...]
    users: int


class Network(_Part):
    """Curves of one network: `loss` as (step, mean loss), `validation` as (step, log-loss, accuracy)."""

    network: str
    held_out: tuple[str, ...]
    loss: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float, float], ...]


class Stage(_Part):
    """One network of a run, as the run's record has it."""

    stage: str
    steps: int
    held_out: tuple[str, ...] = ()
    best_step: int | None = None
    log_loss: float | None = None


class Provenance(_Part):
    """Where a run comes from."""

    command: str = ""
    recipe: str = ""
    config: dict[str, Any]
    subjects: tuple[dict[str, str], ...] = ()
    commit: str = ""
    versions: dict[str, str] = {}
    started: str
    finished: str
    seconds: float
    stages: tuple[Stage, ...] = ()
    timings: dict[str, float] = {}
    data: dict[str, Any] = {}
    backbone: dict[str, str] = {}


class RunFile(_Part):
    """A finished run's record. `networks` is None where the run kept no history; `training` is its digest.

    Of a run of several tasks it is the record of `task`, one of `tasks`; the networks are those of all.
    """

    folder: Path
    format: Literal[1] = 1
    kind: Literal["signal", "media-1", "media-tasks-1"] = "signal"
    labels: tuple[str, ...] = Field(min_length=2)
    signal: dict[str, Any] | None = None
    hyper: HyperParameters
    evaluation: Figures
    provenance: Provenance
    networks: tuple[Network, ...] | None = None
    training: str = ""
    task: str = ""
    tasks: tuple[str, ...] = ()

    @property
    def media(self) -> bool:
        """Whether the run is on images, texts or sounds."""
        return self.kind != "signal"

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name


class UserScores(_Part):
    """A user's scores; only the accuracy is drawn."""

    accuracy: float = Field(ge=0, le=1)


class MeanScores(UserScores):
    """Means over users of the scores that the page lists."""

    balanced: float
    macro_f1: float
    calibration_error: float


class Summary(_Part):
    """One method in one condition over users."""

    mean: MeanScores
    sd: float
    worst: float
    worst_user: str
    harmed: tuple[str, ...]
    harmed_by_a_point: tuple[str, ...]
    users: int


class MadeOf(_Part):
    """What an evaluation was made of."""

    model: str = "unknown"
    subjects: tuple[dict[str, str], ...] = ()
    command: str = ""
    feature_space: str = ""
    configuration: str = ""
    training: str = ""
    seconds: float | None = None
    versions: dict[str, str] = {}


class EvaluationFile(_Part):
    """What `headway evaluate --json` wrote: `table[method][condition]`, `users[method][condition][user]`."""

    protocol: str
    description: str
    conditions: tuple[str, ...]
    recordings_scored: int
    windows_scored: int
    labelled: dict[str, float] = {}
    outcomes: dict[str, dict[str, int]]
    table: dict[str, dict[str, Summary]]
    users: dict[str, dict[str, dict[str, UserScores]]]
    notes: tuple[str, ...] = ()
    made_of: MadeOf = MadeOf()


Model = TypeVar("Model", bound=BaseModel)


def read_run(folder: Path, task: str | None = None) -> RunFile:
    """Read the record of a finished run, or of one task of several, and its history where there is one.

    Raises:
        ReportError: the folder holds no finished run, one that is damaged, or no such task; or it is a regression.
    """
    file = folder / RECORD
    if not file.is_file():
        raise ReportError(
            f"{folder} holds no finished training run: there is no {RECORD} in it. RUN is the folder that "
            "`headway train --out` wrote."
        )
    record = _of_task(_json(file), folder, task)
    history = folder / HISTORY
    networks = _json(history).get("networks", ()) if history.is_file() else None
    told = record.get("provenance")
    training = training_of(told) if isinstance(told, dict) else ""
    more = {"folder": folder, "networks": networks, "training": training}
    return _checked(RunFile, {**record, **more}, file, "headway train")


def _of_task(record: dict[str, Any], folder: Path, task: str | None) -> dict[str, Any]:
    """The record as if the run were of one of its tasks; of a run of one, as it is."""
    several = record.get("kind") == "media-tasks-1"
    told = {each["name"]: each for each in record["tasks"]} if several else {}
    names = ", ".join(told)
    if not several and task is not None:
        raise ReportError(f"{folder} is a run of one task; leave --task away.")
    if several and task not in told:
        why = f"has the tasks {names}: say by --task" if task is None else f"has no task '{task}'; there are {names}"
        raise ReportError(f"{folder} {why}{' which one the page is of' if task is None else ''}.")
    if not several or task is None:
        return record
    own = told[task]
    if own["targets"]:
        raise ReportError(f"{folder}: {task} is a regression, and a page is of labels; its figures are in {RECORD}.")
    more = {"labels": own["labels"], "hyper": own["heads"], "evaluation": own["evaluation"]}
    return {**record, **more, "task": task, "tasks": list(told)}


def read_evaluation(file: Path) -> EvaluationFile:
    """Read the figures of an evaluation.

    Raises:
        ReportError: the file is not there, or is not what `headway evaluate --json` writes on the inductive track.
    """
    if not file.is_file():
        raise ReportError(f"There is no file {file}. --evaluation takes what `headway evaluate --json FILE` wrote.")
    document = _json(file)
    if "track" in document:
        raise ReportError(
            f"{file} is of the {document['track']} track; a report takes what `headway evaluate --json FILE` wrote "
            "without --track."
        )
    found = _checked(EvaluationFile, document, file, "headway evaluate --json")
    generic = found.users.get(GENERIC, {}).get(ZERO_SHOT, {})
    whole = ZERO_SHOT in found.table.get(GENERIC, {}) and PERSONAL in found.table and PERSONAL in found.users
    strangers = [u for by_user in found.users.get(PERSONAL, {}).values() for u in by_user if u not in generic]
    if not whole or strangers:
        what = f"no generic scores of {strangers[0]}" if whole else "not both the generic and the personal head"
        raise ReportError(f"{file} has {what}; write it anew with `headway evaluate --json FILE`.")
    return found


def check_belongs(run: RunFile, evaluation: EvaluationFile, file: Path) -> str:
    """Say how it is known that an evaluation is of a bundle exported from a run.

    By the digest of the training; evaluations of earlier releases do not have it, but a digest of the feature space and
    of the settings of heads, which are the run's.

    Raises:
        ReportError: it is of another run, or nothing in it tells.
    """
    told = evaluation.made_of
    if told.training:
        if told.training == run.training:
            return "The bundle was exported from this run: both name the same training."
        why = f"that bundle was exported from another training ({told.training}, this run is {run.training})"
    elif told.configuration and told.configuration == configuration_of(told.feature_space, run.hyper):
        return "The bundle's heads have this run's settings, to the last digit: it was exported from this run."
    elif told.configuration:
        why = "its heads have other settings than this run's, and it does not say from which training it is"
    else:
        why = "it does not say what it is made of"
    raise ReportError(
        f"{file} is an evaluation of {told.model}, and not of the run in {run.folder}: {why}. Give the evaluation of a "
        "bundle that `headway export` made of this run, or the run that the bundle is of."
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError) as e:
        raise ReportError(f"{file} cannot be read as JSON: {e}.") from e
    if not isinstance(document, dict):
        raise ReportError(f"{file} is not an object of JSON.")
    return document


def _checked(model: type[Model], document: dict[str, Any], file: Path, command: str) -> Model:
    try:
        return model.model_validate(document)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ReportError(f"{file} is not what `{command}` writes: {where}: {first['msg']}.") from e
