"""What recordings tell beside their labels: further arrays of their files, as labels or targets of further tasks.

| array in the `.npz` | means |
|---|---|
| `NAME`, words `(R,)` | a label of each recording; the empty text is one that is not known |
| `NAME`, numbers `(R,)` | a target of each recording; NaN is not known |
| `NAME`, numbers `(N,)` | a target at each sample of the signal: a window's is the mean over it |
| `NAME`, whole numbers `(R,)`, and `NAME_names` | a label as `gesture` is: an index, -1 where not known |

A file without the array is a person of whom nothing is known in this task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.bundle_outputs import Target
from models.data.asked import Ask
from models.data.collections import CollectionError
from models.data.recordings import Recordings
from models.data.tasks import FEWEST_PEOPLE, LARGEST, check_shown_by_two, target_of
from models.data.windows import Windows

__all__ = ["Further", "further"]


@dataclass(frozen=True, eq=False)
class Further:
    """One more task of recordings: `labels` or `targets`, and each file's answers, None where it has none.

    A file's answers are `(R,)` class indices, -1 where not known, or for each target `(R,)` or `(N,)` numbers.
    """

    name: str
    labels: tuple[str, ...]
    targets: tuple[Target, ...]
    files: tuple[tuple[NDArray[Any], ...] | None, ...]

    def of(self, file: int, w: Windows) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Which windows `(n,)` of a file it is known of, and the answers: `(m,)` class indices, or `(m, T)` targets."""
        found = self.files[file]
        if found is None:
            return np.zeros(len(w), bool), np.zeros((0,) if self.labels else (0, len(self.targets)))
        if self.labels:
            y = found[0][w.recording]
            return y >= 0, y[y >= 0]
        t = np.stack([_in_windows(column, w) for column in found], 1)
        known = np.asarray(np.isfinite(t).all(1))
        return known, t[known]


def _in_windows(column: NDArray[Any], w: Windows) -> NDArray[np.float64]:
    """A target of each window: its recording's, or the mean of its samples'."""
    length = w.x.shape[2]
    if not len(w) or len(column) <= int(w.recording.max()) or len(column) < int(w.start.max()) + length:
        return np.asarray(column[w.recording], np.float64)
    total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(column))])
    holes = np.concatenate([[0], np.cumsum(~np.isfinite(column))])
    mean = (total[w.start + length] - total[w.start]) / length
    return np.where(holes[w.start + length] > holes[w.start], np.nan, mean)


def further(folder: Path, recordings: Sequence[Recordings], ask: Ask) -> Further:
    """Read what the files of recordings say of a task.

    Raises:
        CollectionError: no file has the array, it is of another length or kind, or there is nothing to learn.
    """
    where = f"{folder}, task {ask.name}"
    read = [_arrays(folder / f"{rec.stem}.npz", rec, ask) for rec in recordings]
    if all(found is None for found in read):
        there = ", ".join(sorted(_keys(folder / f"{recordings[0].stem}.npz")))
        raise CollectionError(f"{where}: no file has an array '{ask.columns[0]}'; {recordings[0].stem} has {there}.")
    words = any(found is not None and found[0].dtype.kind == "U" for found in read)
    if words and ask.kind == "regression":
        raise CollectionError(f"{where}: '{ask.columns[0]}' holds words, and a regression needs numbers.")
    if not words and ask.kind != "classification":
        numbers = tuple(None if f is None else tuple(c.astype(np.float64) for c in f) for f in read)
        _check_varies(where, ask.columns, numbers)
        _check_people(where, recordings, [f is not None and _jointly(f) for f in numbers])
        return Further(ask.name, (), tuple(target_of(where, name) for name in ask.columns), numbers)
    said = [None if f is None else _words(where, f[0], rec) for f, rec in zip(read, recordings, strict=True)]
    labels = sorted({word for own in said if own is not None for word in own.tolist() if word})
    if len(labels) < 2:
        raise CollectionError(f"{where} has {'one label' if labels else 'no label'} only; a task needs two.")
    index = {label: c for c, label in enumerate(labels)}
    files = tuple(None if o is None else (np.array([index.get(w, -1) for w in o.tolist()], np.int64),) for o in said)
    people = list(dict.fromkeys(rec.subject for rec in recordings))
    _check_people(where, recordings, [f is not None and bool((f[0] >= 0).any()) for f in files])
    y = np.concatenate([f[0] for f in files if f is not None])
    who = [people.index(rec.subject) for rec, f in zip(recordings, files, strict=True) if f is not None for _ in f[0]]
    check_shown_by_two(where, labels, y, np.array(who), people)
    return Further(ask.name, tuple(labels), (), files)


def _keys(file: Path) -> list[str]:
    with np.load(file, allow_pickle=False) as archive:
        return list(archive.files)


def _arrays(file: Path, rec: Recordings, ask: Ask) -> tuple[NDArray[Any], ...] | None:
    """The file's arrays of a task, indices as their names; None where it lacks one."""
    found = []
    with np.load(file, allow_pickle=False) as archive:
        for key in ask.columns:
            if key not in archive.files:
                return None
            try:
                array, names = archive[key], archive[f"{key}_names"] if f"{key}_names" in archive.files else None
            except ValueError as e:
                raise CollectionError(f"{file}: the array '{key}' cannot be read: {e}") from e
            if array.dtype.kind not in "Uiuf" or array.shape not in ((len(rec),), (len(rec.signal),)):
                raise CollectionError(
                    f"{file}: the array '{key}' is {array.dtype} {array.shape}; words or numbers for each of "
                    f"{len(rec)} recordings, or a number for each of {len(rec.signal)} samples, were expected."
                )
            if names is not None and array.dtype.kind in "iu":
                if array.size and (array.max() >= len(names) or array.min() < -1):
                    raise CollectionError(f"{file}: '{key}' has an index that '{key}_names' does not name.")
                array = np.append(names.astype(np.str_), "")[array]
            found.append(array)
    return tuple(found)


def _words(where: str, column: NDArray[Any], rec: Recordings) -> NDArray[np.str_]:
    """Labels as words, numbers as they are written; the empty text is not known."""
    if len(column) != len(rec):
        raise CollectionError(f"{where}: labels are one a recording, and {rec.stem} has one a sample.")
    if column.dtype.kind == "f":
        return np.array(["" if np.isnan(v) else np.format_float_positional(v, trim="-") for v in column], np.str_)
    return np.char.strip(column.astype(np.str_))


def _check_varies(where: str, names: Sequence[str], files: Sequence[tuple[NDArray[np.float64], ...] | None]) -> None:
    for name, column in zip(names, zip(*(f for f in files if f is not None), strict=True), strict=True):
        known = np.concatenate(column)
        known = known[~np.isnan(known)]
        if len(known) and not np.abs(known).max() <= LARGEST:
            raise CollectionError(
                f"{where}: '{name}' holds {known[np.abs(known).argmax()]:g}, beyond ±{LARGEST:g}; answers are FP32. "
                "A value that is not known is NaN."
            )
        if not len(known) or not known.std() > 0:
            told = "is the same in every recording" if len(known) else "is known of no recording"
            raise CollectionError(f"{where} {told}: there is nothing to learn of it.")


def _jointly(columns: tuple[NDArray[np.float64], ...]) -> bool:
    """Whether a file knows all targets at once somewhere; of targets of both lengths windows tell."""
    if len({len(column) for column in columns}) > 1:
        return all(bool(np.isfinite(column).any()) for column in columns)
    return bool(np.isfinite(np.stack(columns)).all(0).any())


def _check_people(where: str, recordings: Sequence[Recordings], known: Sequence[bool]) -> None:
    """Refuse what too few people tell, before anything is trained."""
    people = {rec.subject for rec, has in zip(recordings, known, strict=True) if has}
    if len(people) < FEWEST_PEOPLE:
        raise CollectionError(
            f"{where} is known of {len(people)} people; it is learned from {FEWEST_PEOPLE} or more, each left out "
            "in turn."
        )
