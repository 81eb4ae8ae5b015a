"""Protocols: on what a user's head is calibrated, and on what it is scored.

Both are of the inductive track: nothing of the scored sessions is used before they are scored. Windows are never split
at random; a user's calibration and test windows come from other sessions or other repetitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporters.bundle import InputSpec, Manifest
from models.data.recordings import Recordings, RecordingsError, load, load_folder, recording_files
from models.data.splits import LeakageError, SplitError, assert_disjoint, split_repetitions
from models.data.windows import WindowError, Windows, WindowSpec, first_windows, windows

__all__ = ["PROTOCOLS", "Condition", "Protocol", "ProtocolError", "Rules", "Subject", "check_signal", "plan"]

SHOTS = (1, 5)
MOST_CYCLES = 4


class ProtocolError(ValueError):
    """What was asked for cannot be scored, or may not be; the message says why."""


@dataclass(frozen=True, slots=True)
class Rules:
    """One protocol.

    `calibration` and `tests` name sessions; None takes a user's first session, and all others or, where there are no
    others, the remaining repetitions. `subjects` and `population` are globs over file stems; None leaves the choice to
    what the bundle was trained on. `paper_only` leaves out files that the publication did not use.
    """

    name: str
    description: str
    calibration: str | None = None
    tests: tuple[str, ...] | None = None
    subjects: str | None = None
    population: str | None = None
    paper_only: bool = False


PROTOCOLS = {
    rules.name: rules
    for rules in (
        Rules(
            name="myo",
            description=(
                "Côté-Allard et al. 2019, inductive: calibrate on the first windows or cycles of training0, score all "
                "windows of Test0 and Test1, mean over the two, then over users"
            ),
            calibration="training0",
            tests=("Test0", "Test1"),
            subjects="eval_*",
            population="pretrain_*",
            paper_only=True,
        ),
        Rules(
            name="cycles",
            description=(
                "inductive: calibrate on the first windows or repetitions of a user's first session, score all windows "
                "of the other sessions (one session: of the repetitions that no condition calibrates on)"
            ),
        ),
    )
}


@dataclass(frozen=True, eq=False)
class Condition:
    """What is known of a user: labelled windows in time order, with the model's label indices."""

    name: str
    calibration: Windows


@dataclass(frozen=True, eq=False)
class Subject:
    """One user's part of an evaluation.

    `tests` are the windows scored, by name; `recordings` counts the recordings they come from, and `too_short` those
    that hold no window; `notes` say which conditions could not be had.
    """

    name: str
    conditions: tuple[Condition, ...]
    tests: dict[str, Windows]
    recordings: dict[str, int]
    too_short: dict[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Protocol:
    """A protocol with its people: `test` are scored, `population` is for baselines that need one.

    `trained_on` names people who are scored although the model was trained on them (only when that was allowed).
    """

    rules: Rules
    labels: tuple[str, ...]
    input: InputSpec
    test: tuple[Recordings, ...]
    population: tuple[Recordings, ...]
    trained_on: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the protocol."""
        return self.rules.name

    @property
    def description(self) -> str:
        """What is calibrated on and what is scored; says so when people of the training are among the scored."""
        if not self.trained_on:
            return self.rules.description
        return f"{self.rules.description}. NOT HELD OUT: the model was trained on {', '.join(self.trained_on)}"

    @property
    def spec(self) -> WindowSpec:
        """The model's windows, in samples."""
        return WindowSpec(self.input.window_shape[1], self.input.stride)

    def subjects(self) -> Iterator[Subject]:
        """Cut one user after another, so that one user's windows are in memory at a time.

        Raises:
            ProtocolError: a user's recordings do not fit the protocol.
        """
        for rec in self.test:
            yield make_subject(rec, self.rules, self.input, self.labels)


def plan(
    protocol: str,
    manifest: Manifest,
    data: Path,
    *,
    subjects: str | None = None,
    population: str | None = None,
    allow_training_subjects: bool = False,
) -> Protocol:
    """Choose the people of an evaluation and check that they suit the model and that none is on both sides.

    Args:
        protocol: a name in `PROTOCOLS`.
        manifest: of the bundle to be scored; its provenance names the people it was trained on.
        data: folder of recordings.
        subjects: globs of the people to score; None takes the protocol's, or all that the model was not trained on.
        population: globs of the population; None takes the protocol's, or the people that the model was trained on.
        allow_training_subjects: score people of the training, and say so, where it is refused otherwise.

    Raises:
        ProtocolError: nobody to score, a person of the training, or recordings that the model does not take.
        RecordingsError: the folder or a file cannot be read.
        LeakageError: population and test share people or samples.
    """
    if protocol not in PROTOCOLS:
        raise ProtocolError(f"There is no protocol '{protocol}'; there are: {', '.join(PROTOCOLS)}.")
    rules = PROTOCOLS[protocol]
    digests = {s["digest"] for s in manifest.provenance.get("subjects", []) if "digest" in s}
    test = _chosen(rules, data, subjects, digests)
    overlap = tuple(r.stem for r in test if r.digest in digests)
    if overlap and not allow_training_subjects:
        raise ProtocolError(
            f"The model was trained on {', '.join(overlap)}: their scores would say nothing of new users. "
            "Choose others with --subjects, or pass --allow-training-subjects and have the table say so."
        )
    for rec in test:
        check_signal(rec, manifest.input, manifest.labels)
    people = _population(rules, data, population, digests, {r.digest for r in test})
    for rec in people:
        check_signal(rec, manifest.input, manifest.labels)
    assert_disjoint(people, test)
    return Protocol(rules, manifest.labels, manifest.input, tuple(test), tuple(people), overlap)


def _chosen(rules: Rules, data: Path, subjects: str | None, digests: set[str]) -> list[Recordings]:
    found = load_folder(data, subjects or rules.subjects or "*")
    if rules.paper_only:
        found = [r for r in found if r.in_paper]
    elif subjects is None:
        found = [r for r in found if r.digest not in digests]
    if not found:
        why = "the publication used none of them" if rules.paper_only else "the model was trained on all of them"
        raise ProtocolError(f"{data} holds nobody to score: {why}. Choose people with --subjects.")
    return found


def _population(
    rules: Rules, data: Path, population: str | None, digests: set[str], scored: set[str]
) -> list[Recordings]:
    if population is not None:
        return [r for r in load_folder(data, population) if r.in_paper or not rules.paper_only]
    if rules.population is not None:
        try:
            found = load_folder(data, rules.population)
        except RecordingsError:
            return []  # only baselines need one, and a folder of test people alone is no mistake
        return [r for r in found if r.in_paper or not rules.paper_only]
    people = []
    for path in recording_files(data) if digests else []:
        try:
            rec = load(path)
        except RecordingsError:
            continue  # not of the training, whose digests are of files that could be read
        if rec.digest in digests - scored:
            people.append(rec)
    return people


def check_signal(rec: Recordings, spec: InputSpec, labels: Sequence[str]) -> NDArray[np.int64]:
    """Check that a model takes these recordings; returns the model's index of each of their label names (-1: unused).

    Raises:
        ProtocolError: other channels, rate, modality, or a label that the model does not know.
    """
    channels = spec.window_shape[0]
    for what, has, takes in (
        ("channels", f"{rec.channels}", f"{channels}"),
        ("sampling rate", f"{rec.fs:g} Hz", f"{spec.sample_rate:g} Hz"),
        ("modality", rec.modality, spec.modality),
    ):
        if has != takes:
            raise ProtocolError(f"{rec.stem} and the model differ in {what}: {has}, and the model takes {takes}.")
    used = {rec.label_names[i] for i in np.unique(rec.label)}
    unknown = sorted(used - set(labels))
    if unknown:
        raise ProtocolError(
            f"{rec.stem} has recordings of {', '.join(unknown)}, which the model does not know; "
            f"its labels are {', '.join(labels)}."
        )
    return np.array([labels.index(name) if name in labels else -1 for name in rec.label_names], np.int64)


def make_subject(rec: Recordings, rules: Rules, spec: InputSpec, labels: Sequence[str]) -> Subject:
    """Cut one user's recordings by a protocol, for a model that takes `spec` and knows `labels`.

    Raises:
        ProtocolError: the recordings do not fit the model or the protocol.
        LeakageError: recordings of calibration and test share samples.
    """
    index = check_signal(rec, spec, labels)
    cut = WindowSpec(spec.window_shape[1], spec.stride)
    calibration, sessions = _sessions(rec, rules)
    every = windows(rec, cut, sessions=[calibration, *sessions])
    every = replace(every, y=index[every.y])
    most = _most_cycles(rec, every, calibration, bool(sessions))
    try:
        known, rest = split_repetitions(every, most)
    except LeakageError:
        raise
    except SplitError as e:
        raise ProtocolError(f"{rec.stem} cannot be scored: {e}") from e
    tests = _tests(rec, rest, sessions)
    recordings, too_short = _counted(rec, tests, cut, known, calibration)
    conditions, notes = _conditions(rec, known, cut, most, calibration)
    return Subject(rec.stem, conditions, tests, recordings, too_short, notes)


def _sessions(rec: Recordings, rules: Rules) -> tuple[str, list[str]]:
    present = [rec.session_names[i] for i in np.unique(rec.session)]
    calibration = rules.calibration or present[0]
    wanted = list(rules.tests) if rules.tests is not None else [name for name in present if name != calibration]
    missing = [name for name in (calibration, *wanted) if name not in present]
    if missing:
        raise ProtocolError(
            f"{rec.stem} has no session {', '.join(missing)}, which the protocol '{rules.name}' needs; "
            f"it has {', '.join(present)}. The protocol 'cycles' takes any recordings."
        )
    if wanted and present.index(calibration) > min(present.index(name) for name in wanted):
        raise ProtocolError(
            f"{rec.stem} names the session {calibration} after {wanted[0]}; calibration must come first."
        )
    return calibration, wanted


def _most_cycles(rec: Recordings, w: Windows, calibration: str, others: bool) -> int:
    own = w.session == rec.session_names.index(calibration)
    repetitions = len(np.unique(w.repetition[own]))
    if not repetitions:
        raise ProtocolError(f"{rec.stem} has no recording in {calibration} as long as one window.")
    if not others and repetitions < 2:
        raise ProtocolError(
            f"{rec.stem} has one session with one repetition: nothing is left to score after calibration. "
            "Record a second repetition or session."
        )
    return min(MOST_CYCLES, repetitions if others else repetitions - 1)


def _tests(rec: Recordings, rest: Windows, sessions: list[str]) -> dict[str, Windows]:
    if not sessions:
        return {"rest": rest}
    tests = {name: rest.select(rest.session == rec.session_names.index(name)) for name in sessions}
    empty = [name for name, found in tests.items() if not len(found)]
    if empty:
        raise ProtocolError(f"{rec.stem} has no recording in {', '.join(empty)} as long as one window.")
    return tests


def _counted(
    rec: Recordings, tests: dict[str, Windows], cut: WindowSpec, known: Windows, calibration: str
) -> tuple[dict[str, int], dict[str, int]]:
    """Count the recordings scored, and insist that they are all there are (a public loader scored 17 of 28)."""
    scored: dict[str, int] = {}
    short: dict[str, int] = {}
    lengths = rec.stop - rec.start
    for name, found in tests.items():
        if name in rec.session_names:
            expected = rec.session == rec.session_names.index(name)
        else:
            own = rec.session == rec.session_names.index(calibration)
            expected = own & ~np.isin(rec.repetition, np.unique(known.repetition))
        scored[name] = len(np.unique(found.recording))
        short[name] = int((expected & (lengths < cut.length)).sum())
        if scored[name] + short[name] != int(expected.sum()):
            raise ProtocolError(
                f"{rec.stem}, {name}: {scored[name]} of {int(expected.sum())} recordings would be scored."
            )
    return scored, short


def _conditions(
    rec: Recordings, known: Windows, cut: WindowSpec, most: int, calibration: str
) -> tuple[tuple[Condition, ...], tuple[str, ...]]:
    found: list[Condition] = []
    notes: list[str] = []
    for shots in SHOTS:
        try:
            few = first_windows(rec, cut, shots, session=calibration)
        except WindowError as e:
            notes.append(f"{rec.stem}: no condition of {shots} windows a class ({e})")
            continue
        # A class absent from the calibration's repetitions has its first recording among the scored ones: left out.
        _add(found, notes, rec, f"{shots}w", known.select(np.isin(known.start, few.start)))
    repetitions = np.unique(known.repetition)
    for k in range(1, most + 1):
        name = "1 cycle" if k == 1 else f"{k} cycles"
        _add(found, notes, rec, name, known.select(np.isin(known.repetition, repetitions[:k])))
    return tuple(found), tuple(notes)


def _add(found: list[Condition], notes: list[str], rec: Recordings, name: str, chosen: Windows) -> None:
    if len(np.unique(chosen.y)) < 2:
        notes.append(f"{rec.stem}: no condition '{name}', for its windows are of fewer than two classes")
    else:
        found.append(Condition(name, chosen))
