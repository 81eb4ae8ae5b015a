"""One user's part of an evaluation: on what the head is calibrated, and on what it is scored.

Windows are never split at random: a user's calibration and test windows come from other sessions or other repetitions.
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

__all__ = ["Condition", "ProtocolError", "Rules", "Subject", "check_signal", "make_subject"]

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


def check_signal(rec: Recordings, spec: InputSpec, labels: Sequence[str]) -> NDArray[np.int64]:
    """Check that a model takes these recordings; returns the model's index of each of their label names (-1: unused).

    Raises:
        ProtocolError: other channels, rate or modality, an unknown label, or a model of several inputs.
    """
    check_recorded(rec, spec)
    used = {rec.label_names[i] for i in np.unique(rec.label)}
    unknown = sorted(used - set(labels))
    if unknown:
        raise ProtocolError(
            f"{rec.stem} has recordings of {', '.join(unknown)}, which the model does not know; "
            f"its labels are {', '.join(labels)}."
        )
    return np.array([labels.index(name) if name in labels else -1 for name in rec.label_names], np.int64)


def check_recorded(rec: Recordings, spec: InputSpec) -> None:
    """Raise `ProtocolError` where recordings have other channels, rate or modality than a model of one input."""
    if spec.parts:
        named = ", ".join(part.name for part in spec.parts)
        raise ProtocolError(f"The model takes {named} together; this is for models of one kind of recordings.")
    channels = spec.window_shape[0]
    for what, has, takes in (
        ("channels", f"{rec.channels}", f"{channels}"),
        ("sampling rate", f"{rec.fs:g} Hz", f"{spec.sample_rate:g} Hz"),
        ("modality", rec.modality, spec.modality),
    ):
        if has != takes:
            raise ProtocolError(f"{rec.stem} and the model differ in {what}: {has}, and the model takes {takes}.")


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
