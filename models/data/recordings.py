"""The recordings format: one subject's labelled signals in one `.npz` file.

| key | required | meaning |
|---|---|---|
| `emg` | yes | signal `(N, C)`, all recordings one after another; integers or floats |
| `start`, `stop` | yes | `(R,)` sample offsets of each recording: samples `start[i]:stop[i]` |
| `gesture` | yes | `(R,)` index into `gesture_names` |
| `cycle` | yes | `(R,)` repetition number |
| `gesture_names` | yes | `(K,)` names of the labels |
| `fs` | yes | sampling rate in Hz |
| `session`, `session_names` | no | `(R,)` index and `(S,)` names; one session `session0` when absent |
| `subject` | no | the person's name; the file's stem when absent |
| `modality` | no | `emg` (default) or `imu` |
| `in_paper` | no | whether the publication used the subject; default true |

Other keys are ignored here (`models.data.further` reads them as further tasks). Object arrays (pickle) are refused.
"""

import fnmatch
import os
import re
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.data.format import FORMAT, MODALITIES, OPTIONAL, REQUIRED, RecordingsError, checked_fields, read_only

__all__ = ["MODALITIES", "Recordings", "RecordingsError", "load", "load_folder", "recording_files", "save"]

# What zipfile, zlib and numpy raise for files that are not, or no longer, archives of arrays.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    RuntimeError,
    SyntaxError,
    MemoryError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, slots=True, eq=False)
class Recordings:
    """One subject's labelled recordings, read-only.

    `signal` is `(N, C)` as stored (int8, int16 or float32); recording `i` is `signal[start[i]:stop[i]]`, of class
    `label_names[label[i]]`, repetition `repetition[i]`, session `session_names[session[i]]`; `fs` is in Hz.
    `digest` is the sha256 over the arrays' content, so it survives another compression or another file name.
    """

    signal: NDArray[Any]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    label: NDArray[np.int64]
    repetition: NDArray[np.int64]
    session: NDArray[np.int64]
    session_names: tuple[str, ...]
    label_names: tuple[str, ...]
    fs: float
    subject: str
    modality: str
    stem: str
    in_paper: bool
    digest: str

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return int(self.signal.shape[1])

    def __len__(self) -> int:
        """Number of recordings R."""
        return len(self.start)

    @staticmethod
    def build(
        signal: ArrayLike,
        start: ArrayLike,
        stop: ArrayLike,
        label: ArrayLike,
        repetition: ArrayLike,
        *,
        label_names: Sequence[str],
        fs: float,
        subject: str,
        session: ArrayLike | None = None,
        session_names: Sequence[str] | None = None,
        modality: str = "emg",
        in_paper: bool = True,
    ) -> "Recordings":
        """Make checked recordings from arrays; the stem is the subject's name.

        `signal` `(N, C)`, the others `(R,)`; `fs` in Hz. Raises `RecordingsError` as `load` does.
        """
        arrays: dict[str, Any] = {
            "emg": signal,
            "start": start,
            "stop": stop,
            "gesture": label,
            "cycle": repetition,
            "gesture_names": np.array(list(label_names), dtype=np.str_),
            "fs": fs,
            "subject": subject,
            "modality": modality,
            "in_paper": in_paper,
        }
        if session is not None:
            arrays["session"] = session
        if session_names is not None:
            arrays["session_names"] = np.array(list(session_names), dtype=np.str_)
        return Recordings(
            **checked_fields({key: np.asarray(value) for key, value in arrays.items()}, subject, f"subject {subject}")
        )


def load(path: str | os.PathLike[str]) -> Recordings:
    """Read and check one recordings file.

    Raises `RecordingsError` with a sentence naming the file and what is wrong: unreadable, a key missing, offsets
    out of bounds, unequal lengths, an index without a name, a sample that is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise RecordingsError(f"There is no file {path}.")
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise RecordingsError(f"{path} holds one bare array. {FORMAT}")
            arrays = {key: archive[key] for key in (*REQUIRED, *OPTIONAL) if key in archive.files}
    except RecordingsError:
        raise
    except _UNREADABLE as error:
        raise RecordingsError(f"{path} cannot be read as arrays ({error}). {FORMAT}") from error
    return Recordings(**checked_fields(arrays, path.stem, str(path)))


def save(path: str | os.PathLike[str], rec: Recordings) -> None:
    """Write one recordings file atomically: a temporary file beside it, fsync, rename. The folder is made if absent.

    Raises `RecordingsError` when `path` does not end in `.npz`.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise RecordingsError(f"A recordings file ends in .npz; {path} does not.")
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        "emg": rec.signal,
        "start": rec.start,
        "stop": rec.stop,
        "gesture": rec.label,
        "cycle": rec.repetition,
        "session": rec.session,
        "session_names": np.array(rec.session_names, dtype=np.str_),
        "gesture_names": np.array(rec.label_names, dtype=np.str_),
        "fs": np.float64(rec.fs),
        "subject": np.str_(rec.subject),
        "modality": np.str_(rec.modality),
        "in_paper": np.bool_(rec.in_paper),
    }
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes files that only their owner can read
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def recording_files(folder: str | os.PathLike[str], subjects: str = "*") -> list[Path]:
    """The `.npz` files of a folder whose stem matches, in natural order (`M2` before `M10`).

    `subjects`: comma-separated globs over stems; a leading `!` excludes (`eval_*,!eval_M15`).
    Raises `RecordingsError` when the folder is missing, or a glob matches nothing (says what is there).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RecordingsError(f"There is no folder {folder}.")
    files = {path.stem: path for path in folder.glob("*.npz") if not path.name.startswith(".")}
    if not files:
        raise RecordingsError(f"The folder {folder} holds no .npz file. {FORMAT}")
    globs = [glob.strip() for glob in subjects.split(",") if glob.strip()]
    wanted = [glob for glob in globs if not glob.startswith("!")] or ["*"]
    excluded = [glob[1:] for glob in globs if glob.startswith("!")]
    there = ", ".join(sorted(files, key=_natural))
    for glob in wanted:
        if not fnmatch.filter(files, glob):
            raise RecordingsError(f"No subject in {folder} matches '{glob}'; there are: {there}.")
    stems = [
        stem
        for stem in sorted(files, key=_natural)
        if any(fnmatch.fnmatchcase(stem, glob) for glob in wanted)
        and not any(fnmatch.fnmatchcase(stem, glob) for glob in excluded)
    ]
    if not stems:
        raise RecordingsError(f"'{subjects}' excludes every subject in {folder}; there are: {there}.")
    return [files[stem] for stem in stems]


def load_folder(folder: str | os.PathLike[str], subjects: str = "*") -> list[Recordings]:
    """Read the subjects of a folder (globs as in `recording_files`), all in the first file's order of labels.

    Raises `RecordingsError` when files disagree in channels, rate or modality, or name a label that the first lacks.
    """
    loaded = [load(path) for path in recording_files(folder, subjects)]
    first = loaded[0]
    for rec in loaded[1:]:
        for what, mine, its in (
            ("channels", first.channels, rec.channels),
            ("Hz", f"{first.fs:g}", f"{rec.fs:g}"),
            ("modality", first.modality, rec.modality),
        ):
            if mine != its:
                raise RecordingsError(
                    f"The files of one selection must agree: {first.stem} has {what} {mine}, {rec.stem} has {its}. "
                    f"Select one kind, for example with the subjects '*,!{rec.stem}'."
                )
    return [_relabelled(rec, first) for rec in loaded]


def _relabelled(rec: Recordings, first: Recordings) -> Recordings:
    if rec.label_names == first.label_names:
        return rec
    unknown = [name for name in rec.label_names if name not in first.label_names]
    if unknown:
        raise RecordingsError(
            f"{rec.stem} has labels that {first.stem} does not name: {', '.join(unknown)} "
            f"({first.stem} has {', '.join(first.label_names)}). Name them alike, or leave one out, "
            f"for example with the subjects '*,!{rec.stem}'."
        )
    order = np.array([first.label_names.index(name) for name in rec.label_names], dtype=np.int64)
    return replace(rec, label=read_only(order[rec.label]), label_names=first.label_names)


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"([0-9]+)", name) if part]
