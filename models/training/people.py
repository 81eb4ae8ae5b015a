"""The population as training uses it: windows by person, the scale of the signal, and where windows are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data.recordings import Recordings
from models.data.windows import WindowSpec, windows
from models.training.config import TrainConfig, TrainingError

__all__ = ["People", "Person", "Signal", "fold_members", "gather"]


@dataclass(frozen=True)
class Signal:
    """What the recordings are: `fs` in Hz, window `length` and `stride` in samples."""

    channels: int
    length: int
    stride: int
    fs: float
    modality: str
    channel_layout: str
    unit: str


@dataclass(frozen=True, eq=False)
class Person:
    """One person's windows `x (n, C, T)`; of each its label, session, repetition (unique over sessions), recording."""

    name: str
    x: Tensor
    y: NDArray[np.int64]
    session: NDArray[np.int64]
    repetition: NDArray[np.int64]
    recording: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class People:
    """The people of a population, the classes they show, and how much their windows were thinned."""

    signal: Signal
    labels: tuple[str, ...]
    members: tuple[Person, ...]
    thinning: int
    scale: Tensor
    offset: Tensor

    def __len__(self) -> int:
        """Number of people U."""
        return len(self.members)


def gather(recordings: Sequence[Recordings], config: TrainConfig) -> People:
    """Cut everyone's windows.

    Raises:
        TrainingError: fewer than three people, fewer than two classes, or people without windows.
    """
    names = list(dict.fromkeys(r.subject for r in recordings))
    if len(names) < 3:
        raise TrainingError(f"Training needs recordings of at least 3 people; here there are {len(names)}.")
    first = recordings[0]
    spec = WindowSpec.for_signal(first.fs, first.modality)
    most = max(sum(sum(_count(r, spec)) for r in recordings if r.subject == name) for name in names)
    thinning = max(1, -(-most // config.windows_per_user))
    spec = WindowSpec(spec.length, spec.stride * thinning)
    members = tuple(_person(name, [r for r in recordings if r.subject == name], spec) for name in names)
    shown = sorted({int(c) for m in members for c in np.unique(m.y)})
    if len(shown) < 2:
        raise TrainingError("Training needs windows of at least two classes; longer recordings or other subjects.")
    index = np.full(len(first.label_names), -1)
    index[shown] = np.arange(len(shown))
    members = tuple(Person(m.name, m.x, index[m.y], m.session, m.repetition, m.recording) for m in members)
    layout = config.channel_layout
    if layout == "auto":
        layout = "ring" if first.modality == "emg" and first.channels > 2 else "none"
    signal = Signal(first.channels, spec.length, spec.stride // thinning, first.fs, first.modality, layout, config.unit)
    scale, offset = _scale(members, layout == "ring")
    return People(signal, tuple(first.label_names[i] for i in shown), members, thinning, scale, offset)


def fold_members(count: int, config: TrainConfig) -> list[tuple[list[int], list[int]]]:
    """Split `count` people into folds: those kept and those left out of each, by the run's seed."""
    folds = min(config.folds, count)
    order = np.random.default_rng(config.seed).permutation(count)
    left_out = [sorted(int(u) for u in order[fold::folds]) for fold in range(folds)]
    return [([u for u in range(count) if u not in out], out) for out in left_out]


def _count(r: Recordings, spec: WindowSpec) -> list[int]:
    room = r.stop - r.start - spec.length
    return [int(n) // spec.stride + 1 if n >= 0 else 0 for n in room]


def _person(name: str, files: list[Recordings], spec: WindowSpec) -> Person:
    xs, ys, sessions, repetitions, recordings = [], [], [], [], []
    for number, rec in enumerate(files):
        w = windows(rec, spec)
        xs.append(w.x)
        ys.append(w.y)
        # A repetition is a (file, session, repetition): the same number in another session is another one.
        sessions.append(number * 1000 + w.session)
        repetitions.append(sessions[-1] * 1000 + w.repetition)
        recordings.append(number * 100_000 + w.recording)
    y = np.concatenate(ys)
    if not len(y):
        raise TrainingError(f"{name} has no recording as long as one window of {spec.length} samples.")
    repetition = np.unique(np.concatenate(repetitions), return_inverse=True)[1]
    x, session = torch.from_numpy(np.concatenate(xs)), np.concatenate(sessions)
    return Person(name, x, y, session, repetition, np.concatenate(recordings))


def _scale(members: Sequence[Person], shared: bool) -> tuple[Tensor, Tensor]:
    """Return the typical deviation within a window and the usual level of each channel, both `(C, 1)`.

    On a ring all channels share the scale, so that turning the ring changes nothing else.
    """
    deviation = np.stack([np.median(m.x[::7].std(-1).numpy(), 0) for m in members])
    level = np.stack([np.median(m.x[::7].mean(-1).numpy(), 0) for m in members])
    scale = np.median(deviation, 0)
    if shared:
        scale = np.full_like(scale, np.median(scale))
        level = np.zeros_like(level)
    else:
        # A posture is told by levels: their spread sets the scale where it is larger than what happens in a window.
        scale = np.maximum(scale, 0.1 * np.concatenate([m.x[::7].mean(-1).numpy() for m in members]).std(0))
    scale = np.maximum(scale, max(1e-3 * float(scale.max()), 1e-12))
    return torch.from_numpy(scale[:, None].astype(np.float32)), torch.from_numpy(np.median(level, 0)[:, None])
