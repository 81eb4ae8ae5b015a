"""What a folder of recordings holds and what is wrong with it, file by file (`headway data check`)."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np

from models.data.recordings import Recordings, RecordingsError, load, recording_files
from models.data.splits import recording_prints
from models.data.windows import WindowSpec

__all__ = ["Description", "describe"]


class Description(TypedDict):
    """One file of a folder: what it holds, and `problems` as sentences (empty when all is well).

    `repetitions` counts the different numbers over all sessions; `seconds` adds up the recordings. A file that cannot
    be read has zeros and one problem.
    """

    file: str
    subject: str
    modality: str
    channels: int
    fs: float
    labels: list[str]
    sessions: list[str]
    repetitions: int
    recordings: int
    seconds: float
    digest: str
    problems: list[str]


def describe(folder: str | os.PathLike[str], subjects: str = "*") -> list[Description]:
    """Describe every matching file, in natural order, compared with the first readable one and with each other.

    Unlike `load_folder` this goes on at a bad file. Raises `RecordingsError` only for a missing folder or no match.
    """
    described: list[Description] = []
    first: Recordings | None = None
    owner: dict[str, str] = {}
    for path in recording_files(folder, subjects):
        try:
            rec = load(path)
        except RecordingsError as error:
            described.append(_unreadable(path, str(error)))
            continue
        first = first or rec
        problems = [*_differences(rec, first), *_own_problems(rec), *_copies(rec, owner)]
        described.append(_described(path, rec, problems))
    return described


def _described(path: Path, rec: Recordings, problems: list[str]) -> Description:
    return {
        "file": path.name,
        "subject": rec.subject,
        "modality": rec.modality,
        "channels": rec.channels,
        "fs": rec.fs,
        "labels": list(rec.label_names),
        "sessions": list(rec.session_names),
        "repetitions": len(np.unique(rec.repetition)),
        "recordings": len(rec),
        "seconds": round(float((rec.stop - rec.start).sum()) / rec.fs, 3),
        "digest": rec.digest,
        "problems": problems,
    }


def _unreadable(path: Path, problem: str) -> Description:
    return {
        "file": path.name,
        "subject": path.stem,
        "modality": "",
        "channels": 0,
        "fs": 0.0,
        "labels": [],
        "sessions": [],
        "repetitions": 0,
        "recordings": 0,
        "seconds": 0.0,
        "digest": "",
        "problems": [problem],
    }


def _differences(rec: Recordings, first: Recordings) -> Iterator[str]:
    for what, mine, its in (
        ("channels", rec.channels, first.channels),
        ("fs", rec.fs, first.fs),
        ("modality", rec.modality, first.modality),
    ):
        if mine != its:
            yield f"{what} is {mine}, but {its} in {first.stem}; both cannot be used together."
    unknown = [name for name in rec.label_names if name not in first.label_names]
    if unknown:
        yield f"labels that {first.stem} does not name: {', '.join(unknown)}; both cannot be used together."


def _own_problems(rec: Recordings) -> Iterator[str]:
    dead = np.flatnonzero((rec.signal == rec.signal[0]).all(axis=0))
    if len(dead):
        yield f"channels that never change: {', '.join(map(str, dead))}."
    order = np.argsort(rec.start, kind="stable")
    overlap = np.flatnonzero(np.maximum.accumulate(rec.stop[order])[:-1] > rec.start[order][1:])
    if len(overlap):
        i = int(order[overlap[0] + 1])
        yield f"recording {i} shares samples with an earlier one; repetitions cannot be split apart."
    length = WindowSpec.for_signal(rec.fs, rec.modality).length
    short = int((rec.stop - rec.start < length).sum())
    if short:
        yield f"{short} recordings are shorter than one window of {length} samples and give none."
    for index, name in enumerate(rec.session_names):
        missing = set(range(len(rec.label_names))) - set(rec.label[rec.session == index].tolist())
        if missing:
            told = ", ".join(rec.label_names[label] for label in sorted(missing))
            yield f"session {name} has no recording of: {told}."


def _copies(rec: Recordings, owner: dict[str, str]) -> Iterator[str]:
    sources = [owner.setdefault(key, rec.stem) for key in recording_prints(rec) if key is not None]
    for source in dict.fromkeys(sources):
        if source != rec.stem:
            yield f"{sources.count(source)} recordings are copies of {source}'s; use only one of the two files."
