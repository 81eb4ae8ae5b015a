"""The smartwatch recordings inside PyPI's `seglearn` (BSD), as a folder of recordings.

Ten people did seven shoulder exercises wearing a watch on one arm, then on the other: 140 continuous recordings of
19 to 52 s, one a person, exercise and arm; accelerometer (g) and gyroscope (rad/s), 6 channels at 50 Hz.
Source: D. Burns, N. Leung, M. Hardisty, C. Whyne, P. Henry, S. McLachlin, "Shoulder physiotherapy exercise
recognition: machine learning the inertial signals from a smartwatch", Physiological Measurement 39(7), 2018
(arXiv:1802.01489).
"""

import io
import os
import pickle
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.folders import Progress, fresh_folder
from models.data.recordings import Recordings, RecordingsError, save

__all__ = ["SENSORS", "WATCH_NOTICE", "WatchError", "convert_watch", "watch_recordings", "with_channels"]

SENSORS = {"accelerometer": slice(0, 3), "gyroscope": slice(3, 6)}

WATCH_NOTICE = (
    "Smartwatch recordings of the Python package seglearn (BSD 3-Clause, D. Burns); "
    "please cite Burns et al., Physiological Measurement 39(7), 2018, arXiv:1802.01489."
)
_EXERCISES = {
    "PEN": "pendulum",
    "ABD": "abduction",
    "FEL": "forward_elevation",
    "IR": "internal_rotation",
    "ER": "external_rotation",
    "TRAP": "trapezius_extension",
    "ROW": "upright_row",
}
_SIDES = ("left", "right")  # the data's 0 and 1
_RATE_HZ = 50.0


class WatchError(RecordingsError):
    """The smartwatch recordings are not there, or are not what they were."""


def convert_watch(
    out: str | os.PathLike[str], *, blocks: int = 4, apart: bool = False, progress: Progress | None = None
) -> list[Path]:
    """Write one recordings file a person, `watch_1.npz` to `watch_10.npz`, into the new folder `out`.

    `apart`: into a folder each of `SENSORS` there, as recordings of several sensors that are fused lie. See
    `watch_recordings` for what is in them. Raises `WatchError` when `seglearn` is not installed.
    """
    people, files = watch_recordings(blocks=blocks), []
    with fresh_folder(out) as folder:
        for done, rec in enumerate(people, start=1):
            for name, channels in SENSORS.items() if apart else (("", slice(None)),):
                save(folder / name / f"{rec.subject}.npz", with_channels(rec, channels))
                files.append(Path(out) / name / f"{rec.subject}.npz")
            if progress is not None:
                progress(rec.subject, done, len(people))
        (folder / "LICENCE.txt").write_text(WATCH_NOTICE + "\n", encoding="utf-8")
    return files


def with_channels(person: Recordings, channels: slice) -> Recordings:
    """The same recordings with some of their channels."""
    return Recordings.build(
        person.signal[:, channels],
        person.start,
        person.stop,
        person.label,
        person.repetition,
        session=person.session,
        session_names=person.session_names,
        label_names=person.label_names,
        fs=person.fs,
        subject=person.subject,
        modality=person.modality,
    )


def watch_recordings(*, blocks: int = 4) -> list[Recordings]:
    """The ten people; sessions `left` and `right` are the arms.

    There is one recording a person, exercise and arm, so a *repetition* here is one of `blocks` equal, contiguous
    parts of it: windows of two blocks share no sample, but a later block is the same set of movements going on, an
    easier test than another occasion. The other arm is the honest second session. Arms or exercises that a person
    lacks are simply absent. Raises `WatchError` when `seglearn` is not installed.
    """
    if blocks < 1:
        raise WatchError(f"A recording is cut into at least 1 block, not {blocks}.")
    data = _read(_path())
    subjects = np.asarray(data["subject"], dtype=np.int64)
    return [_person(data, int(number), np.flatnonzero(subjects == number), blocks) for number in np.unique(subjects)]


def _person(data: Mapping[str, Any], number: int, indices: NDArray[np.intp], blocks: int) -> Recordings:
    labels = np.asarray(data["y"], dtype=np.int64)
    sides = np.asarray(data["side"], dtype=np.int64)
    ordered = indices[np.lexsort((labels[indices], sides[indices]))]
    # Cut points of every recording in its own samples, then shifted to where it starts in the joint signal.
    parts = [np.asarray(data["X"][i], dtype=np.float32) for i in ordered]
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    cuts = [
        offset + np.linspace(0, len(part), blocks + 1).astype(np.int64)
        for offset, part in zip(offsets, parts, strict=False)
    ]
    return Recordings.build(
        np.concatenate(parts),
        np.concatenate([cut[:-1] for cut in cuts]),
        np.concatenate([cut[1:] for cut in cuts]),
        np.repeat(labels[ordered], blocks),
        np.tile(np.arange(blocks), len(ordered)),
        session=np.repeat(sides[ordered], blocks),
        session_names=_SIDES,
        label_names=[_EXERCISES.get(str(name), str(name)) for name in data["y_labels"]],
        fs=_RATE_HZ,
        subject=f"watch_{number}",
        modality="imu",
    )


def _path() -> Path:
    # Found without importing the package, which would load scikit-learn and pandas for one file.
    spec = find_spec("seglearn")
    if spec is None or spec.origin is None:
        raise WatchError("The smartwatch recordings come with the package seglearn: pip install seglearn.")
    path = Path(spec.origin).parent / "data" / "watch_dataset.npy"
    if not path.is_file():
        raise WatchError(f"The installed seglearn has no {path.name} in {path.parent}; version 1.2.5 has it.")
    return path


class _Arrays(pickle.Unpickler):
    """Reads a pickle that holds numpy arrays, and nothing that could run anything else."""

    _ALLOWED = frozenset({"_reconstruct", "scalar", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0] == "numpy" and name in self._ALLOWED) or (module, name) == ("_codecs", "encode"):
            # numpy 2 moved numpy.core; the old name only warns.
            return super().find_class(module.replace("numpy.core.", "numpy._core."), name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with io.BytesIO(path.read_bytes()) as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            data = _Arrays(file).load().item()
        if not isinstance(data, dict) or not {"X", "y", "side", "subject", "y_labels"} <= data.keys():
            raise WatchError(f"{path} does not hold the smartwatch recordings that seglearn 1.2.5 ships.")
    except (OSError, ValueError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        if isinstance(error, WatchError):
            raise
        raise WatchError(f"{path} cannot be read as the smartwatch recordings of seglearn 1.2.5: {error}.") from error
    return data
