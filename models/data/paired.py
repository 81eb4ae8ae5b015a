"""Windows of several sensors at the same moments: recordings of the same sittings, each at its own rate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporters.input_spec import InputSpec
from models.data.parts import pack
from models.data.recordings import Recordings, RecordingsError, load_folder

__all__ = ["PairedPerson", "load_parts", "pair"]

Labels = NDArray[np.int64]
Key = tuple[str, str, int, int]
"""Session, label, repetition, and how many recordings of these came before."""


@dataclass(frozen=True, eq=False)
class PairedPerson:
    """One person's windows by part `(n, C, T)`, all ending at the same moments, in time order.

    `y`, `session`, `repetition`, `recording` `(n,)`, repetitions unique over sessions, recordings over files;
    `unpaired` counts recordings that some part lacks, and that were left out, `short` those that hold no window.
    """

    name: str
    parts: dict[str, NDArray[np.float32]]
    y: Labels
    session: Labels
    repetition: Labels
    recording: Labels
    unpaired: int
    short: int

    def __len__(self) -> int:
        """Number of moments n."""
        return len(self.y)

    def packed(self, spec: InputSpec) -> NDArray[np.float32]:
        """The windows as a fused model takes them, `(n, size)`."""
        return pack(spec, self.parts)


def load_parts(folder: Path, spec: InputSpec, subjects: str | None = None) -> dict[str, list[Recordings]]:
    """Read `FOLDER/<part>/*.npz`, recordings of every part of a fused model.

    Raises:
        RecordingsError: a part has no folder, or a file cannot be read.
    """
    names = [part.name for part in spec.parts]
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise RecordingsError(
            f"The model takes {', '.join(names)}; recordings of each are expected in a folder of that name in "
            f"{folder}, and there is no {folder / missing[0]}."
        )
    return {name: load_folder(folder / name, subjects or "*") for name in names}


def pair(
    recordings: Mapping[str, Sequence[Recordings]],
    specs: Mapping[str, InputSpec],
    labels: Sequence[str],
    *,
    most: int = 2000,
) -> tuple[list[PairedPerson], int]:
    """Cut everyone's windows, and return how many of the usual steps lie between two of them.

    Files of the parts belong together by their stem, recordings by session, label and repetition. A moment has one
    window of each part, of the length that its model takes, which ends there; the next one is as far away as the widest
    stride of a part, or a multiple of it where someone would have more than `most` windows.

    Raises:
        RecordingsError: files, rates or channels do not fit, recordings last differently long, or nothing is left.
    """
    stems = {name: {r.stem: r for r in own} for name, own in recordings.items()}
    first = next(iter(stems))
    for name, own in stems.items():
        if set(own) != set(stems[first]):
            odd = sorted(set(own) ^ set(stems[first]))[0]
            raise RecordingsError(
                f"'{first}' and '{name}' must have files of the same names; only one of them has {odd}."
            )
        for r in own.values():
            _check(name, r, specs[name], labels)
    people: dict[str, list[str]] = {}
    for stem, r in stems[first].items():
        people.setdefault(r.subject, []).append(stem)
    stride = max(spec.stride / spec.sample_rate for spec in specs.values())
    cut = {p: [_Sitting({n: stems[n][stem] for n in stems}, specs) for stem in own] for p, own in people.items()}
    longest = max(sum(len(s.moments(stride)) for s in own) for own in cut.values())
    thinning = max(1, -(-longest // most))
    found = [_person(name, own, stride * thinning, labels) for name, own in cut.items()]
    empty = [p.name for p in found if len(np.unique(p.y)) < 2]
    if empty:
        raise RecordingsError(f"{empty[0]} has windows of fewer than two labels that all parts have.")
    return found, thinning


def _check(name: str, r: Recordings, spec: InputSpec, labels: Sequence[str]) -> None:
    if len(spec.shape) != 3 or not spec.sample_rate:
        raise RecordingsError(
            f"'{name}' takes {spec.modality} of shape {list(spec.shape)}, which is not cut from recordings."
        )
    if (r.channels, r.fs) != (spec.shape[1], spec.sample_rate):
        raise RecordingsError(
            f"{r.stem} of '{name}' has {r.channels} channels at {r.fs:g} Hz; its model takes {spec.shape[1]} at "
            f"{spec.sample_rate:g} Hz."
        )
    unknown = sorted({r.label_names[i] for i in np.unique(r.label)} - set(labels))
    if unknown:
        raise RecordingsError(
            f"{r.stem} of '{name}' has recordings of {unknown[0]}; the labels are {', '.join(labels)}."
        )


class _Sitting:
    """One file of each part, recordings put side by side."""

    def __init__(self, files: Mapping[str, Recordings], specs: Mapping[str, InputSpec]) -> None:
        self.files, self.specs = files, specs
        keys = {name: _keys(r) for name, r in files.items()}
        shared = set.intersection(*(set(k) for k in keys.values()))
        self.unpaired = max(len(k) for k in keys.values()) - len(shared)
        first = next(iter(files))
        self.places = [{n: keys[n][key] for n in files} for key in keys[first] if key in shared]
        self.longest = max(spec.shape[2] / spec.sample_rate for spec in specs.values())
        for place in self.places:
            seconds = {n: self._samples(n, i) / files[n].fs for n, i in place.items()}
            if max(seconds.values()) - min(seconds.values()) > self.longest:
                told = ", ".join(f"{s:.2f} s in '{n}'" for n, s in seconds.items())
                raise RecordingsError(
                    f"{files[first].stem}: recording {place[first]} lasts {told}; they must go together."
                )

    def _samples(self, name: str, recording: int) -> int:
        return int(self.files[name].stop[recording] - self.files[name].start[recording])

    def moments(self, stride: float) -> list[tuple[dict[str, int], float]]:
        """Recordings by part, and seconds since their beginning at which windows end, `stride` seconds apart."""
        found = []
        for place in self.places:
            seconds = min(self._samples(n, i) / self.files[n].fs for n, i in place.items())
            count = int((seconds - self.longest) / stride + 1e-9) + 1 if seconds + 1e-9 >= self.longest else 0
            found += [(place, self.longest + k * stride) for k in range(count)]
        return found

    def window(self, name: str, recording: int, end: float) -> NDArray[np.float32]:
        """The window of a part `(C, T)` that ends so many seconds after the recording's beginning."""
        r, length = self.files[name], self.specs[name].shape[2]
        stop = int(r.start[recording]) + min(round(end * r.fs), self._samples(name, recording))
        return np.asarray(r.signal[stop - length : stop].T, np.float32)


def _keys(r: Recordings) -> dict[Key, int]:
    seen: dict[tuple[str, str, int], int] = {}
    found: dict[Key, int] = {}
    for i in range(len(r)):
        what = (r.session_names[r.session[i]], r.label_names[r.label[i]], int(r.repetition[i]))
        found[*what, seen.get(what, 0)] = i
        seen[what] = seen.get(what, 0) + 1
    return found


def _person(name: str, sittings: Sequence[_Sitting], stride: float, labels: Sequence[str]) -> PairedPerson:
    first = next(iter(sittings[0].files))
    parts: dict[str, list[NDArray[np.float32]]] = {n: [] for n in sittings[0].files}
    y, session, repetition, recording, places = [], [], [], [], 0
    for number, sitting in enumerate(sittings):
        r = sitting.files[first]
        for place, end in sitting.moments(stride):
            for n, i in place.items():
                parts[n].append(sitting.window(n, i, end))
            i = place[first]
            y.append(labels.index(r.label_names[r.label[i]]))
            session.append(number * 1000 + int(r.session[i]))
            repetition.append(session[-1] * 1000 + int(r.repetition[i]))
            recording.append(number * 100_000 + i)
        places += len(sitting.places)
    if not y:
        raise RecordingsError(f"{name} has no recording of all parts that is as long as the longest window.")
    return PairedPerson(
        name,
        {n: np.stack(x) for n, x in parts.items()},
        np.array(y),
        np.array(session),
        np.unique(repetition, return_inverse=True)[1],
        np.array(recording),
        sum(s.unpaired for s in sittings),
        places - len(set(recording)),
    )
