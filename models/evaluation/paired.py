"""Protocols over paired recordings, of fused bundles: whom they score, cut at the moments that all parts have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from exporters.input_spec import InputSpec
from models.data.paired import PairedPerson, load_parts, pair
from models.data.recordings import Recordings
from models.data.windows import Windows
from models.evaluation.subjects import MOST_CYCLES, SHOTS, Condition, ProtocolError, Subject

__all__ = ["People", "load_people", "paired_subject"]

People = dict[str, dict[str, list[Recordings]]]
"""Recordings by person and part."""


def load_people(data: Path, spec: InputSpec, subjects: str | None) -> People:
    """Read `FOLDER/<part>/*.npz` by person.

    Raises:
        RecordingsError: a part has no folder, or a file cannot be read.
    """
    found: People = {}
    for part, own in load_parts(data, spec, subjects).items():
        for rec in own:
            found.setdefault(rec.subject, {p.name: [] for p in spec.parts})[part].append(rec)
    return found


def paired_subject(recordings: Mapping[str, Sequence[Recordings]], spec: InputSpec, labels: Sequence[str]) -> Subject:
    """Cut one person's recordings by the protocol `cycles`, for a fused model.

    Raises:
        RecordingsError: the recordings of the parts do not go together.
        ProtocolError: nothing is left to score.
    """
    (person,), _ = pair(recordings, {part.name: part for part in spec.parts}, labels, most=10**9)
    every = Windows(
        x=person.packed(spec),
        y=person.y,
        repetition=person.repetition,
        session=person.session,
        recording=person.recording,
        start=np.arange(len(person)),
    )
    sessions = np.unique(person.session)
    first = person.session == sessions[0]
    repetitions = np.unique(person.repetition[first])
    most = min(MOST_CYCLES, len(repetitions) if len(sessions) > 1 else len(repetitions) - 1)
    if not most:
        raise ProtocolError(
            f"{person.name} has one session with one repetition: nothing is left to score after calibration. "
            "Record a second repetition or session."
        )
    known = every.select(first & np.isin(person.repetition, repetitions[:most]))
    tests = {f"session {k + 1}": every.select(person.session == s) for k, s in enumerate(sessions) if k}
    tests = tests or {"rest": every.select(~np.isin(person.repetition, repetitions[:most]))}
    scored = {name: len(np.unique(w.recording)) for name, w in tests.items()}
    conditions, notes = _conditions(person, known)
    return Subject(person.name, conditions, tests, scored, dict.fromkeys(tests, 0), notes)


def _conditions(person: PairedPerson, known: Windows) -> tuple[tuple[Condition, ...], tuple[str, ...]]:
    """The first windows a class, then whole repetitions."""
    repetitions = np.unique(known.repetition)
    chosen = {f"{shots}w": _first(known, shots) for shots in SHOTS}
    for k in range(1, len(repetitions) + 1):
        mask = np.isin(known.repetition, repetitions[:k])
        chosen["1 cycle" if k == 1 else f"{k} cycles"] = known.select(mask)
    found, notes = [], []
    for name, windows in chosen.items():
        if windows is None or len(np.unique(windows.y)) < 2:
            why = "a class has fewer" if windows is None else "its windows are of fewer than two classes"
            notes.append(f"{person.name}: no condition '{name}', for {why}")
        else:
            found.append(Condition(name, windows))
    if person.unpaired or person.short:
        notes.append(
            f"{person.name}: {person.unpaired} recordings that not all parts have, {person.short} shorter than a window"
        )
    return tuple(found), tuple(notes)


def _first(known: Windows, shots: int) -> Windows | None:
    """The first windows of each class after the middle of its first recording; None where one has fewer."""
    rows = []
    for c in np.unique(known.y):
        own = np.flatnonzero(known.y == c)
        own = own[known.recording[own] == known.recording[own[0]]]
        own = own[len(own) // 2 :][:shots]
        if len(own) < shots:
            return None
        rows.append(own)
    return known.select(np.sort(np.concatenate(rows)))
