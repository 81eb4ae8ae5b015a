"""People for the guard's benchmark: windows and features, as recorded and damaged, calibrations and tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bench import damage
from exporters import bundle as bundles
from models.data.recordings import Recordings, load_folder
from models.data.windows import Windows, WindowSpec, windows
from models.heads.head import Head
from models.heads.prior import Prior
from models.training.run import load_run
from models.training.strangers import strangers

Features = Callable[[NDArray[np.float32]], NDArray[np.floating]]


@dataclass(eq=False)
class Person:
    """One person: all windows, which of them calibrate and test in a round, and features of each damage, made once."""

    name: str
    prior: Prior
    features: Features
    windows: Windows
    rate: float
    stride: int
    rotating: bool
    channel: int = 0
    _made: dict[str, NDArray[np.floating]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.channel = crc32(self.name.encode()) % self.windows.x.shape[1]
        self.overlap = -(-self.windows.x.shape[2] // self.stride) - 1

    def block(self, seconds: float) -> int:
        """Windows in so many seconds."""
        return round(seconds * self.rate / self.stride)

    def x(self, title: str = "clean") -> NDArray[np.float32]:
        """All windows with a damage of the signal."""
        x = self.windows.x
        if title.startswith("turned"):
            return damage.turned(x, int(title.split()[1]))
        made = {
            "gain x4": lambda: damage.gained(x, 4),
            "gain x1/4": lambda: damage.gained(x, 0.25),
            "flat channel": lambda: damage.flat(x, self.channel),
            "clipped channel": lambda: damage.driven(x, self.channel),
        }
        return made[title]() if title in made else x

    def z(self, title: str = "clean") -> NDArray[np.floating]:
        """Features of all windows with a damage."""
        if title not in self._made:
            self._made[title] = self.features(self.x(title)).astype(np.float32)
        return self._made[title]

    def forget(self) -> None:
        """Drop the features that were made, which are many."""
        self._made.clear()

    def calibrations(self, seed: int) -> tuple[str, ...]:
        """Names of the calibrations; few windows are the same in every round, but for those that rotate."""
        return ("all cycles", "1 cycle", "5 windows", "1 window") if seed == 0 or self.rotating else ("all cycles",)

    def _cycles(self, seed: int) -> NDArray[np.integer]:
        cycles = np.unique(self.windows.repetition[self.windows.session == 0])
        return np.roll(cycles, -(seed + 1))[:-1] if self.rotating else cycles

    def _mask(self, name: str, seed: int) -> NDArray[np.bool_]:
        w, cycles = self.windows, self._cycles(seed)
        first = (w.session == 0) & np.isin(w.repetition, cycles)
        if name in ("all cycles", "later", "1 cycle"):
            at = {"all cycles": cycles, "later": cycles[1:], "1 cycle": cycles[:1]}[name]
            return np.asarray(first & np.isin(w.repetition, at))
        found = np.zeros(len(w), bool)
        for c in np.unique(w.y):
            own = np.flatnonzero(first & (w.repetition == cycles[0]) & (w.y == c))
            found[own[len(own) // 2 : len(own) // 2 + int(name.split()[0])]] = True
        return found

    def shown(
        self, name: str, seed: int, title: str = "clean", under: Person | None = None
    ) -> tuple[NDArray[np.floating], Windows]:
        """Features and windows of a calibration; `under`: as another person's encoder sees them."""
        mask = self._mask(name, seed)
        w = self.windows.select(mask)
        x = self.x(title)[mask]
        w = Windows(x, w.y, w.repetition, w.session, w.recording, w.start)
        return (self.z(title)[mask] if under is None else under.features(x)), w

    def accuracy(self, head: Head, seed: int, title: str = "clean", labels: NDArray[np.integer] | None = None) -> float:
        """Accuracy on the test windows, or those of some labels; with several sessions, the mean over them."""
        w = self.windows
        if self.rotating:
            tests = [~np.isin(w.repetition, self._cycles(seed))]
        else:
            tests = [w.session == s for s in np.unique(w.session) if s]
        if labels is not None:
            tests = [t & np.isin(w.y, labels) for t in tests]
        z = self.z(title)
        return float(np.mean([(head.logits(z[t]).argmax(1) == w.y[t]).mean() for t in tests]))


def left_out(run_folder: Path, data: Path) -> list[Person]:
    """The people of a run, each under the prior of the others."""
    run = load_run(run_folder)
    stems = {s["stem"] for s in run.provenance["subjects"]}
    recordings = load_folder(data, ",".join(sorted(stems)))
    by_name = {r.stem: r for r in recordings}
    spec = WindowSpec(run.signal.length, run.signal.stride)
    return [
        Person(s.name, s.prior, s.features, windows(by_name[s.name], spec), run.signal.fs, spec.stride, True)
        for s in strangers(run, recordings)
    ]


def tested(model: Path, data: Path) -> list[Person]:
    """The evaluation people of the publication, under a bundle that never saw them."""
    bundle = bundles.load(bundles.resolve(model))
    given = bundle.manifest.input
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(bundle.backbone, options, providers=["CPUExecutionProvider"])
    spec = WindowSpec(given.window_shape[1], given.stride)

    def person(rec: Recordings) -> Person:
        def features(x: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.concatenate([session.run(None, {"input": x[at : at + 64]})[0] for at in range(0, len(x), 64)])

        names = [bundle.manifest.labels.index(n) for n in rec.label_names]
        w = windows(rec, spec)
        w = Windows(w.x, np.asarray(names)[w.y], w.repetition, w.session, w.recording, w.start)
        return Person(rec.stem, bundle.prior, features, w, given.sample_rate, spec.stride, False)

    return [person(r) for r in load_folder(data, "eval_*") if r.in_paper]
