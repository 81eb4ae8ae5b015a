"""Synthetic people: multichannel sEMG with a knob for how alike they are.

A ring of electrodes looks at a ring of muscles through a kernel that falls off with distance. A gesture is a vector
of muscle activations; the person's own mixes the population's with one drawn for the person alone, with the
correlation as weight, after the correlated source and target tasks of F. Gerace, L. Saglietti, S. Sarao Mannelli,
A. Saxe, L. Zdeborová, "Probing transfer learning with a model of synthetic correlated datasets" (arXiv:2106.05418).
At 1 everybody solves the same task; at 0 the gestures of two people have nothing in common, and transfer harms.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.folders import Progress, fresh_folder
from models.data.recordings import Recordings, save

__all__ = ["Design", "SyntheticError", "synthesise", "write_folder"]

_MUSCLES = 12
_SPREAD_RAD = 0.45  # half-width of what one muscle reaches around the forearm
_ACTIVE_COUNTS = 22.0  # standard deviation of a typical active channel, in the counts of an 8-bit armband
_RAMP_S = 0.25  # a gesture's rise after its cue
_BAND_HZ = (20.0, 450.0)  # surface EMG's usual band; the upper end is at most 0.45 of the rate

Floats = NDArray[np.float64]


class SyntheticError(ValueError):
    """Synthetic people were asked for that cannot be made."""


@dataclass(frozen=True)
class Design:
    """What synthetic people are made of; all but `seed` describe the world, not a draw from it.

    channels: electrodes on the ring. fs: rate in Hz. labels: gestures, the first of them rest. repetitions: of each
    gesture in a session. sessions: wearings of the armband. seconds: length of a recording. correlation: 0 to 1, how
    much of a person's gestures is everybody's. rotation: how far the armband sits from its place, up to this many
    electrode distances either way; a new wearing adds a tenth of it. noise: sd of additive white noise in counts.
    mains: amplitude of a 50 Hz hum in counts.
    """

    channels: int = 8
    fs: float = 200.0
    labels: int = 7
    repetitions: int = 4
    sessions: int = 2
    seconds: float = 5.0
    correlation: float = 0.8
    rotation: float = 1.0
    noise: float = 2.0
    mains: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("channels", 1), ("labels", 2), ("repetitions", 1), ("sessions", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise SyntheticError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if not 0 <= self.correlation <= 1:
            raise SyntheticError(f"correlation lies between 0 (unrelated) and 1 (alike), not {self.correlation}.")
        if self.fs < 100:
            raise SyntheticError(f"fs must be at least 100 Hz to hold sEMG, not {self.fs:g}.")
        if not self.seconds >= 2 * _RAMP_S:
            raise SyntheticError(f"seconds must be at least {2 * _RAMP_S:g}, not {self.seconds:g}.")
        if min(self.rotation, self.noise, self.mains) < 0:
            raise SyntheticError("rotation, noise and mains must not be negative.")


def synthesise(
    users: int,
    *,
    channels: int = 8,
    fs: float = 200.0,
    labels: int = 7,
    repetitions: int = 4,
    sessions: int = 2,
    seconds: float = 5.0,
    correlation: float = 0.8,
    rotation: float = 1.0,
    noise: float = 2.0,
    mains: float = 0.0,
    seed: int = 0,
) -> list[Recordings]:
    """Make people `synth_0`, `synth_1`, …; `Design` says what each argument means.

    A person depends on the seed and their number alone, so more people, or another correlation, leave every other
    draw as it was. Signals are int16 within −128 … 127. Raises `SyntheticError` for impossible arguments.
    """
    design = Design(
        channels=channels,
        fs=fs,
        labels=labels,
        repetitions=repetitions,
        sessions=sessions,
        seconds=seconds,
        correlation=correlation,
        rotation=rotation,
        noise=noise,
        mains=mains,
        seed=seed,
    )
    return list(_people(users, design))


def write_folder(
    out: str | os.PathLike[str], users: int, design: Design | None = None, *, progress: Progress | None = None
) -> list[Path]:
    """Write synthetic people into the new folder `out`, one recordings file each, and return the paths.

    Raises `SyntheticError` for impossible arguments, `RecordingsError` when `out` is there already.
    """
    stems = []
    with fresh_folder(out) as folder:
        for rec in _people(users, design or Design()):
            save(folder / f"{rec.subject}.npz", rec)
            stems.append(rec.subject)
            if progress is not None:
                progress(rec.subject, len(stems), users)
    return [Path(out) / f"{stem}.npz" for stem in stems]


def _people(users: int, design: Design) -> Iterator[Recordings]:
    if users < 1:
        raise SyntheticError(f"At least 1 user is needed, not {users}.")
    shared = np.random.default_rng([design.seed, 0]).standard_normal((design.labels, _MUSCLES))
    for number in range(users):
        yield _person(number, shared, design)


def _person(number: int, shared: Floats, design: Design) -> Recordings:
    rng = np.random.default_rng([design.seed, 1, number])
    own = rng.standard_normal(shared.shape)
    latent = design.correlation * shared + np.sqrt(1 - design.correlation**2) * own
    activation = np.exp(1.1 * latent)  # log-normal: few muscles do most of the work
    activation /= np.sqrt((activation**2).mean(axis=1, keepdims=True))
    activation[0] = 0.06  # rest is rest in everybody
    gain = np.exp(0.25 * rng.standard_normal() + 0.1 * rng.standard_normal(design.channels))
    offset = rng.uniform(-design.rotation, design.rotation)
    samples = round(design.seconds * design.fs)
    signals, columns = [], []
    for session in range(design.sessions):
        slip = 0.0 if session == 0 else 0.1 * design.rotation * rng.standard_normal()
        mixing = gain[:, None] * _mixing(design.channels, offset + slip)
        for repetition in range(design.repetitions):
            for label in range(design.labels):
                signals.append(_recording(rng, mixing, activation[label], samples, design))
                columns.append((label, repetition, session))
    start = np.arange(len(signals)) * samples
    label_column, repetition_column, session_column = np.array(columns).T
    return Recordings.build(
        np.concatenate(signals),
        start,
        start + samples,
        label_column,
        repetition_column,
        session=session_column,
        session_names=[f"session{i}" for i in range(design.sessions)],
        label_names=["rest", *(f"gesture_{i}" for i in range(1, design.labels))],
        fs=design.fs,
        subject=f"synth_{number}",
    )


def _mixing(channels: int, offset: float) -> Floats:
    """Gains `(channels, muscles)` by the distance between an electrode and a muscle around the forearm."""
    electrodes = 2 * np.pi * (np.arange(channels) + offset) / channels
    muscles = 2 * np.pi * np.arange(_MUSCLES) / _MUSCLES
    distance = np.abs((electrodes[:, None] - muscles[None, :] + np.pi) % (2 * np.pi) - np.pi)
    kernel: Floats = np.exp(-0.5 * (distance / _SPREAD_RAD) ** 2)
    return kernel


def _recording(
    rng: np.random.Generator, mixing: Floats, activation: Floats, samples: int, design: Design
) -> NDArray[np.int16]:
    effort = np.exp(0.15 * rng.standard_normal())
    jitter = np.exp(0.15 * rng.standard_normal(_MUSCLES))
    sources = _band_noise(rng, _MUSCLES, samples, design.fs) * _envelopes(rng, samples, design.fs)
    signal = _ACTIVE_COUNTS * effort * mixing @ ((activation * jitter)[:, None] * sources)
    signal += design.noise * rng.standard_normal(signal.shape)
    time = np.arange(samples) / design.fs
    signal += design.mains * np.sin(2 * np.pi * (50.0 * time + rng.uniform()))
    counts: NDArray[np.int16] = np.clip(np.round(signal.T), -128, 127).astype(np.int16)
    return counts


def _band_noise(rng: np.random.Generator, rows: int, samples: int, fs: float) -> Floats:
    """Gaussian noise `(rows, samples)` of unit variance within the band of surface EMG."""
    low, high = _BAND_HZ[0], min(_BAND_HZ[1], 0.45 * fs)
    frequency = np.fft.rfftfreq(samples, 1 / fs)
    # Smooth edges (second order below, fourth above) and the fall towards high frequencies of muscle under skin.
    shape = 1 / np.sqrt((1 + (low / np.maximum(frequency, 1e-9)) ** 4) * (1 + (frequency / high) ** 8))
    shape *= (frequency <= high) / np.sqrt(1 + (frequency / 120.0) ** 2)
    spectrum = np.fft.rfft(rng.standard_normal((rows, samples)), axis=1) * shape
    noise: Floats = np.fft.irfft(spectrum, n=samples, axis=1)
    noise /= noise.std(axis=1, keepdims=True)
    return noise


def _envelopes(rng: np.random.Generator, samples: int, fs: float) -> Floats:
    """Slowly varying strength `(muscles, samples)` around 1, rising over the first quarter of a second."""
    time = np.arange(samples) / fs
    rate = rng.uniform(0.1, 0.8, size=(_MUSCLES, 3, 1))  # Hz
    phase = rng.uniform(0, 2 * np.pi, size=(_MUSCLES, 3, 1))
    waver = np.exp(0.12 * np.sin(2 * np.pi * rate * time + phase).sum(axis=1))
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.clip(time / _RAMP_S, 0, 1))
    envelopes: Floats = waver * (0.3 + 0.7 * ramp)
    return envelopes
