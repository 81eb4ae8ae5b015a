"""The recordings format's keys and the checks that every file passes: each failure is a sentence naming the file."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FORMAT", "MODALITIES", "OPTIONAL", "REQUIRED", "RecordingsError", "checked_fields"]

MODALITIES = ("emg", "imu")
REQUIRED = ("emg", "start", "stop", "gesture", "cycle", "gesture_names", "fs")
OPTIONAL = ("session", "session_names", "subject", "modality", "in_paper")
FORMAT = f"A recordings file is an .npz with the arrays {', '.join(REQUIRED)} (docs/recordings.md)."


class RecordingsError(ValueError):
    """A file or folder is not in the recordings format, or does not hold what was asked for."""


def checked_fields(arrays: Mapping[str, NDArray[Any]], stem: str, where: str) -> dict[str, Any]:
    """The fields of `Recordings` from a file's arrays, in one width of integers, read-only, with their digest.

    `where` opens every message of a `RecordingsError`.
    """
    missing = [key for key in REQUIRED if key not in arrays]
    if missing:
        raise RecordingsError(f"{where} lacks {', '.join(missing)}. {FORMAT}")
    signal = _signal(arrays["emg"], where)
    columns = {key: _integers(arrays[key], key, where) for key in ("start", "stop", "gesture", "cycle")}
    columns["session"] = (
        _integers(arrays["session"], "session", where) if "session" in arrays else np.zeros_like(columns["start"])
    )
    label_names = _names(arrays["gesture_names"], "gesture_names", where)
    session_names = (
        _names(arrays["session_names"], "session_names", where)
        if "session_names" in arrays
        else tuple(f"session{i}" for i in range(int(columns["session"].max(initial=0)) + 1))
    )
    _check_columns(columns, len(signal), label_names, session_names, where)
    fs = _rate(arrays["fs"], where)
    modality = _text(arrays["modality"], "modality", where) if "modality" in arrays else "emg"
    if modality not in MODALITIES:
        raise RecordingsError(f"{where}: modality must be one of {', '.join(MODALITIES)}, not '{modality}'.")
    subject = _text(arrays["subject"], "subject", where) if "subject" in arrays else stem
    in_paper = bool(_one(arrays["in_paper"], "in_paper", where)) if "in_paper" in arrays else True
    words = (*session_names, "", *label_names, "", repr(fs), subject, modality, str(in_paper))
    return {
        "signal": read_only(signal),
        "start": read_only(columns["start"]),
        "stop": read_only(columns["stop"]),
        "label": read_only(columns["gesture"]),
        "repetition": read_only(columns["cycle"]),
        "session": read_only(columns["session"]),
        "session_names": session_names,
        "label_names": label_names,
        "fs": fs,
        "subject": subject,
        "modality": modality,
        "stem": stem,
        "in_paper": in_paper,
        "digest": _digest((signal, *columns.values()), words),
    }


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A view of an array that cannot be written through; the caller's own array stays as it is."""
    view = array.view()
    view.flags.writeable = False
    return view


def _signal(raw: NDArray[Any], where: str) -> NDArray[Any]:
    if raw.ndim != 2 or 0 in raw.shape:
        raise RecordingsError(f"{where}: emg must be (samples, channels) and not empty, but its shape is {raw.shape}.")
    if raw.dtype.kind not in "iuf":
        raise RecordingsError(f"{where}: emg must hold integers or floats, not {raw.dtype}.")
    # int8 and int16 stay as stored; what fits neither becomes float32, which holds 24-bit counts exactly.
    kept: type[np.generic] = np.float32
    if raw.dtype.kind in "iu" and np.can_cast(raw.dtype, np.int16):
        kept = np.int8 if raw.dtype == np.int8 else np.int16
    with np.errstate(over="ignore", invalid="ignore"):
        signal = np.ascontiguousarray(raw, dtype=kept)
    if kept is np.float32 and not np.isfinite(signal).all():
        bad = int(np.argmin(np.isfinite(signal).all(axis=1)))
        raise RecordingsError(f"{where}: emg must be finite in float32, but sample {bad} holds NaN or infinity.")
    return signal


def _integers(raw: NDArray[Any], key: str, where: str) -> NDArray[np.int64]:
    if raw.ndim != 1 or raw.dtype.kind not in "iu":
        raise RecordingsError(f"{where}: {key} must be a row of integers, but is {raw.dtype} of shape {raw.shape}.")
    return raw.astype(np.int64)


def _names(raw: NDArray[Any], key: str, where: str) -> tuple[str, ...]:
    if raw.ndim != 1 or raw.dtype.kind != "U" or raw.size == 0:
        raise RecordingsError(f"{where}: {key} must be a row of names, but is {raw.dtype} of shape {raw.shape}.")
    names = tuple(str(name) for name in raw)
    if len(set(names)) < len(names) or "" in names:
        raise RecordingsError(f"{where}: {key} must differ and not be empty, but are {', '.join(map(repr, names))}.")
    return names


def _one(raw: NDArray[Any], key: str, where: str) -> object:
    if raw.size != 1:
        raise RecordingsError(f"{where}: {key} must be one value, but has the shape {raw.shape}.")
    value: object = raw.reshape(()).item()
    return value


def _text(raw: NDArray[Any], key: str, where: str) -> str:
    return str(_one(raw, key, where))


def _rate(raw: NDArray[Any], where: str) -> float:
    fs = _one(raw, "fs", where)
    if isinstance(fs, bool) or not isinstance(fs, int | float) or not 0 < fs < float("inf"):
        raise RecordingsError(f"{where}: fs must be a sampling rate above 0 Hz, not {fs!r}.")
    return float(fs)


def _check_columns(
    columns: Mapping[str, NDArray[np.int64]],
    samples: int,
    label_names: tuple[str, ...],
    session_names: tuple[str, ...],
    where: str,
) -> None:
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1 or lengths == {0}:
        told = ", ".join(f"{key} {len(column)}" for key, column in columns.items())
        raise RecordingsError(f"{where}: each recording needs one entry in each of these, but they have {told}.")
    start, stop = columns["start"], columns["stop"]
    wrong = (start < 0) | (stop <= start) | (stop > samples)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise RecordingsError(
            f"{where}: recording {i} runs from {start[i]} to {stop[i]}; it must lie within 0 to {samples}, start first."
        )
    for key, names in (("gesture", label_names), ("session", session_names)):
        wrong = (columns[key] < 0) | (columns[key] >= len(names))
        if wrong.any():
            i = int(np.argmax(wrong))
            raise RecordingsError(
                f"{where}: recording {i} has {key} {columns[key][i]}, "
                f"but the names of {key}_names go from 0 to {len(names) - 1}."
            )
    if int(columns["cycle"].min()) < 0:
        raise RecordingsError(f"{where}: cycle counts repetitions from 0, but holds {int(columns['cycle'].min())}.")


def _digest(arrays: Sequence[NDArray[Any]], words: Sequence[str]) -> str:
    # Shapes and types go in too, so that no two contents run together to the same bytes.
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    digest.update("\0".join(words).encode())
    return digest.hexdigest()
