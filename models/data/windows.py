"""Windows: fixed-length pieces of recordings, the examples of training, calibration and evaluation."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.data.recordings import Recordings

__all__ = ["WindowError", "WindowSpec", "Windows", "first_windows", "shared_samples", "stride_of", "windows"]

# Window and stride in seconds by modality. emg: Côté-Allard et al. 2019 (52 and 5 samples at 200 Hz);
# imu: a wrist's exercise cycle lasts one to three seconds.
_SECONDS = {"emg": (0.260, 0.025), "imu": (2.0, 0.5)}


class WindowError(ValueError):
    """Windows were asked for that the recordings do not hold, or of an impossible length."""


@dataclass(frozen=True)
class WindowSpec:
    """Length and stride of windows, both in samples and at least 1."""

    length: int
    stride: int

    def __post_init__(self) -> None:
        if self.length < 1 or self.stride < 1:
            raise WindowError(
                f"A window's length and stride are at least 1 sample, not {self.length} and {self.stride}."
            )

    @classmethod
    def for_signal(cls, fs: float, modality: str = "emg") -> Self:
        """The usual windows of a modality at `fs` Hz: 260 ms every 25 ms for emg, 2 s every 0.5 s for imu."""
        if modality not in _SECONDS:
            raise WindowError(f"Windows are known for {', '.join(_SECONDS)}, not for '{modality}'.")
        length, stride = _SECONDS[modality]
        return cls(length=max(1, round(length * fs)), stride=max(1, round(stride * fs)))


@dataclass(frozen=True, eq=False)
class Windows:
    """Labelled windows with where each came from.

    `x` `(n, C, T)` float32 in the signal's own unit; `y` `(n,)` class index; `repetition`, `session` `(n,)`;
    `recording` `(n,)` index of the recording within its own file; `start` `(n,)` sample offset in that file's signal.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    repetition: NDArray[np.int64]
    session: NDArray[np.int64]
    recording: NDArray[np.int64]
    start: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of windows n."""
        return len(self.y)

    def select(self, which: NDArray[Any] | slice) -> "Windows":
        """The windows of a boolean mask `(n,)`, a slice or an array of indices, in that order."""
        return Windows(
            x=self.x[which],
            y=self.y[which],
            repetition=self.repetition[which],
            session=self.session[which],
            recording=self.recording[which],
            start=self.start[which],
        )

    @staticmethod
    def concat(parts: Sequence["Windows"]) -> "Windows":
        """All windows of several parts one after another.

        `recording` and `start` stay relative to each part's own file. Raises `WindowError` for no parts at all, or
        for parts of different channel counts or lengths.
        """
        if not parts:
            raise WindowError("There are no windows to put together: the list is empty.")
        shapes = sorted({part.x.shape[1:] for part in parts})
        if len(shapes) > 1:
            raise WindowError(f"Windows put together must have one shape (C, T), but there are {shapes}.")
        return Windows(
            x=np.concatenate([part.x for part in parts]),
            y=np.concatenate([part.y for part in parts]),
            repetition=np.concatenate([part.repetition for part in parts]),
            session=np.concatenate([part.session for part in parts]),
            recording=np.concatenate([part.recording for part in parts]),
            start=np.concatenate([part.start for part in parts]),
        )


def windows(
    rec: Recordings,
    spec: WindowSpec,
    *,
    sessions: Collection[str] | None = None,
    repetitions: Collection[int] | None = None,
) -> Windows:
    """Every window of the chosen recordings, in time order, none across a recording's border.

    `sessions`: names, `repetitions`: numbers; None takes all. A recording shorter than a window gives none.
    Raises `WindowError` for a session that the subject does not have.
    """
    keep = np.ones(len(rec), dtype=bool)
    if sessions is not None:
        keep &= np.isin(rec.session, [_session_index(rec, name) for name in sessions])
    if repetitions is not None:
        keep &= np.isin(rec.repetition, np.fromiter(repetitions, dtype=np.int64))
    return _cut(rec, spec, np.flatnonzero(keep))


def first_windows(rec: Recordings, spec: WindowSpec, per_class: int, *, session: str | None = None) -> Windows:
    """The first `per_class` windows after the middle of the first recording of each class, class by class.

    `session`: a name; None takes the first session. Where fewer windows follow the middle, the last `per_class` of
    the recording are taken. A class absent from the session gives none. Raises `WindowError` when a recording holds
    fewer than `per_class` windows.
    """
    if per_class < 1:
        raise WindowError(f"At least 1 window a class is needed, not {per_class}.")
    inside = rec.session == (int(rec.session.min()) if session is None else _session_index(rec, session))
    parts = []
    for label in np.unique(rec.label[inside]):
        candidates = np.flatnonzero(inside & (rec.label == label))
        chosen = candidates[np.lexsort((rec.start[candidates], rec.repetition[candidates]))[:1]]
        cut = _cut(rec, spec, chosen)
        if len(cut) < per_class:
            raise WindowError(
                f"{rec.stem}: the first recording of '{rec.label_names[label]}' holds {len(cut)} windows of "
                f"{spec.length} samples; {per_class} were asked for."
            )
        middle = int(rec.start[chosen[0]] + rec.stop[chosen[0]]) / 2
        begin = min(int(np.searchsorted(cut.start, middle)), len(cut) - per_class)
        parts.append(cut.select(slice(begin, begin + per_class)))
    return Windows.concat(parts)


def _session_index(rec: Recordings, name: str) -> int:
    if name not in rec.session_names:
        raise WindowError(f"{rec.stem} has no session '{name}'; it has {', '.join(rec.session_names)}.")
    return rec.session_names.index(name)


def _cut(rec: Recordings, spec: WindowSpec, chosen: NDArray[np.int64]) -> Windows:
    chosen = chosen[np.argsort(rec.start[chosen], kind="stable")]
    room = rec.stop[chosen] - rec.start[chosen] - spec.length
    counts = np.where(room >= 0, room // spec.stride + 1, 0)
    recording = np.repeat(chosen, counts)
    # The position of a window within its recording: a running index less the recording's first one.
    within = np.arange(len(recording)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = rec.start[recording] + within * spec.stride
    if len(start):
        # Channels first, so that each window's row is contiguous in the view and the gather copies whole rows.
        rows = np.ascontiguousarray(rec.signal.T)
        view = np.lib.stride_tricks.sliding_window_view(rows, spec.length, axis=1).transpose(1, 0, 2)
        x = view[start].astype(np.float32, order="C", copy=False)
    else:
        x = np.empty((0, rec.channels, spec.length), dtype=np.float32)
    return Windows(
        x=x,
        y=rec.label[recording],
        repetition=rec.repetition[recording],
        session=rec.session[recording],
        recording=recording,
        start=start,
    )


def stride_of(x: NDArray[np.float32]) -> int | None:
    """Stride in samples of windows `(n, C, T)` in time order, told from their samples; None if they do not overlap.

    None for anything but windows of channels: images and texts are not cut from one another.
    """
    if x.ndim != 3:
        return None
    length = x.shape[2]
    for first in range(min(len(x) - 1, 8)):
        a, b = x[first], x[first + 1]
        if bool((a == a[:, :1]).all()):
            continue  # a flat window overlaps with anything
        for stride in range(1, length):
            if np.array_equal(a[:, stride:], b[:, : length - stride]):
                return stride
    return None


def shared_samples(x: NDArray[np.float32]) -> int:
    """How many following windows share samples with a window, told from windows `(n, C, T)` in time order.

    A calibration request says nothing of its stride; equal samples do. Looks at the first few pairs; 0 if none overlap.
    """
    stride = stride_of(x)
    return 0 if stride is None else int(-(-x.shape[2] // stride) - 1)
