"""Protocols: on what a user's head is calibrated, and on what it is scored.

Both are of the inductive track: nothing of the scored sessions is used before they are scored. Windows are never split
at random; a user's calibration and test windows come from other sessions or other repetitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from exporters.bundle import InputSpec
from models.data.recordings import Recordings
from models.data.splits import LeakageError, SplitError, split_repetitions
from models.data.windows import WindowError, Windows, WindowSpec, first_windows, windows

__all__ = ["PROTOCOLS", "ZERO_SHOT", "Condition", "EvaluationError", "Rules", "Task", "check_signal", "make_task"]

ZERO_SHOT = "0-shot"
SHOTS = (1, 5)
MOST_CYCLES = 4


class EvaluationError(ValueError):
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


@dataclass(frozen=True, slots=True)
class Condition:
    """What is known of a user: indices `(n,)` of the labelled windows in `Task.windows`; none at 0-shot."""

    name: str
    index: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Task:
    """One user's part of an evaluation.

    `windows` are all that any condition or test uses, with the bundle's label indices; `tests` are indices into them by
    name; `recordings` counts the recordings scored a test, and `too_short` those that hold no window.
    """

    stem: str
    windows: Windows
    conditions: tuple[Condition, ...]
    tests: dict[str, NDArray[np.int64]]
    recordings: dict[str, int]
    too_short: dict[str, int]
    notes: tuple[str, ...] = ()


def check_signal(rec: Recordings, spec: InputSpec, labels: Sequence[str]) -> NDArray[np.int64]:
    """Check that a model takes these recordings; returns the model's index of each of their label names (-1: unused).

    Raises:
        EvaluationError: other channels, rate, modality, or a label that the model does not know.
    """
    channels = spec.window_shape[0]
    for what, has, takes in (
        ("channels", f"{rec.channels}", f"{channels}"),
        ("sampling rate", f"{rec.fs:g} Hz", f"{spec.sample_rate:g} Hz"),
        ("modality", rec.modality, spec.modality),
    ):
        if has != takes:
            raise EvaluationError(f"{rec.stem} and the model differ in {what}: {has}, and the model takes {takes}.")
    used = {rec.label_names[i] for i in np.unique(rec.label)}
    unknown = sorted(used - set(labels))
    if unknown:
        raise EvaluationError(
            f"{rec.stem} has recordings of {', '.join(unknown)}, which the model does not know; "
            f"its labels are {', '.join(labels)}."
        )
    return np.array([labels.index(name) if name in labels else -1 for name in rec.label_names], np.int64)


def make_task(rec: Recordings, rules: Rules, spec: InputSpec, labels: Sequence[str]) -> Task:
    """Cut one user's recordings by a protocol, for a model that takes `spec` and knows `labels`.

    Raises:
        EvaluationError: the recordings do not fit the model or the protocol.
        LeakageError: recordings of calibration and test share samples.
    """
    index = check_signal(rec, spec, labels)
    cut = WindowSpec(spec.window_shape[1], spec.stride)
    calibration, sessions = _sessions(rec, rules)
    all_windows = windows(rec, cut, sessions=[calibration, *sessions])
    most = _most_cycles(rec, all_windows, calibration, bool(sessions))
    try:
        known, rest = split_repetitions(all_windows, most)
    except LeakageError:
        raise
    except SplitError as e:
        raise EvaluationError(f"{rec.stem} cannot be scored: {e}") from e
    both = Windows.concat([known, rest])
    tests = _tests(rec, rest, sessions, len(known))
    recordings, too_short = _counted(rec, both, tests, sessions, cut, most, calibration)
    conditions, notes = _conditions(rec, known, cut, most, calibration)
    return Task(rec.stem, replace(both, y=index[both.y]), conditions, tests, recordings, too_short, notes)


def _sessions(rec: Recordings, rules: Rules) -> tuple[str, list[str]]:
    present = [rec.session_names[i] for i in np.unique(rec.session)]
    calibration = rules.calibration or present[0]
    wanted = list(rules.tests) if rules.tests is not None else [name for name in present if name != calibration]
    missing = [name for name in (calibration, *wanted) if name not in present]
    if missing:
        raise EvaluationError(
            f"{rec.stem} has no session {', '.join(missing)}, which the protocol '{rules.name}' needs; "
            f"it has {', '.join(present)}. The protocol 'cycles' takes any recordings."
        )
    if wanted and present.index(calibration) > min(present.index(name) for name in wanted):
        raise EvaluationError(
            f"{rec.stem} names the session {calibration} after {wanted[0]}; calibration must come first."
        )
    return calibration, wanted


def _most_cycles(rec: Recordings, w: Windows, calibration: str, others: bool) -> int:
    own = w.session == rec.session_names.index(calibration)
    repetitions = len(np.unique(w.repetition[own]))
    if not repetitions:
        raise EvaluationError(f"{rec.stem} has no recording in {calibration} as long as one window.")
    if not others and repetitions < 2:
        raise EvaluationError(
            f"{rec.stem} has one session with one repetition: nothing is left to score after calibration. "
            "Record a second repetition or session."
        )
    return min(MOST_CYCLES, repetitions if others else repetitions - 1)


def _tests(rec: Recordings, rest: Windows, sessions: list[str], offset: int) -> dict[str, NDArray[np.int64]]:
    if not sessions:
        return {"rest": offset + np.arange(len(rest))}
    tests = {name: offset + np.flatnonzero(rest.session == rec.session_names.index(name)) for name in sessions}
    empty = [name for name, index in tests.items() if not len(index)]
    if empty:
        raise EvaluationError(f"{rec.stem} has no recording in {', '.join(empty)} as long as one window.")
    return tests


def _counted(
    rec: Recordings,
    both: Windows,
    tests: dict[str, NDArray[np.int64]],
    sessions: list[str],
    cut: WindowSpec,
    most: int,
    calibration: str,
) -> tuple[dict[str, int], dict[str, int]]:
    """Count the recordings scored, and insist that they are all there are (a loader once scored 17 of 28)."""
    scored: dict[str, int] = {}
    short: dict[str, int] = {}
    long_enough = rec.stop - rec.start >= cut.length
    for name, index in tests.items():
        if sessions:
            expected = rec.session == rec.session_names.index(name)
        else:
            own = rec.session == rec.session_names.index(calibration)
            repetitions = np.unique(rec.repetition[own & long_enough])
            expected = own & np.isin(rec.repetition, repetitions[most:])
        scored[name] = len(np.unique(both.recording[index]))
        short[name] = int((expected & ~long_enough).sum())
        if scored[name] + short[name] != int(expected.sum()):
            raise EvaluationError(
                f"{rec.stem}, {name}: {scored[name]} of {int(expected.sum())} recordings would be scored."
            )
    return scored, short


def _conditions(
    rec: Recordings, known: Windows, cut: WindowSpec, most: int, calibration: str
) -> tuple[tuple[Condition, ...], tuple[str, ...]]:
    found = [Condition(ZERO_SHOT, np.empty(0, np.int64))]
    notes: list[str] = []
    for shots in SHOTS:
        try:
            few = first_windows(rec, cut, shots, session=calibration)
        except WindowError as e:
            notes.append(f"{rec.stem}: no condition of {shots} windows a class ({e})")
            continue
        # A class absent from the calibration's repetitions has its first recording among the scored ones: left out.
        _add(found, notes, rec, known, f"{shots}w", np.flatnonzero(np.isin(known.start, few.start)))
    repetitions = np.unique(known.repetition)
    for k in range(1, most + 1):
        name = "1 cycle" if k == 1 else f"{k} cycles"
        _add(found, notes, rec, known, name, np.flatnonzero(np.isin(known.repetition, repetitions[:k])))
    return tuple(found), tuple(notes)


def _add(
    found: list[Condition],
    notes: list[str],
    rec: Recordings,
    known: Windows,
    name: str,
    index: NDArray[np.int64],
) -> None:
    if len(np.unique(known.y[index])) < 2:
        notes.append(f"{rec.stem}: no condition '{name}', for its windows are of fewer than two classes")
    else:
        found.append(Condition(name, index))
