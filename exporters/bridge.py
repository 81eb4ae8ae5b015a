"""Fits a bridge from an older bundle's feature space to a newer one's, on the population, through a parity gate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.bundle import BridgeEntry, Bundle
from exporters.bundle_outputs import bridge_file
from exporters.card import model_card
from exporters.precision import features
from exporters.tasks import columns
from models.data.recordings import Recordings
from models.data.windows import Windows, WindowSpec, windows
from models.evaluation.subjects import check_signal
from models.heads import bridge as bridges
from models.heads.bridge import Bridge, BridgeParity, Pairs, fit_bridge
from models.heads.calibration import shared_head
from models.heads.fit import fit_map
from models.heads.head import Head
from models.heads.prior import Prior
from models.heads.statistics import Statistics

log = logging.getLogger("headway")

RIDGES = (1e-5, 1e-3, 1e-2, 1e-1)
BETWEEN = (0.2, 0.5, 0.8)
CYCLES = (1, 2)
"""Repetitions that a left-out person is calibrated on; their others score the head."""
MOST_WINDOWS = 6000
"""Windows of a person; more are thinned out evenly."""
FEWEST_PEOPLE = 3

Progress = Callable[[str], None]


class BridgeError(ValueError):
    """No bridge can be fitted between two bundles, or none that is good enough; the message says why."""


@dataclass(frozen=True, eq=False)
class Person:
    """One person's windows in both spaces: `old (n, p)`, all features `new (n, d)`, labels and repetitions `(n,)`."""

    name: str
    old: NDArray[np.float64]
    new: NDArray[np.float64]
    y: NDArray[np.int64]
    repetition: NDArray[np.int64]

    def pairs(self, personal: int) -> Pairs:
        """What a bridge is fitted on."""
        group = self.y * (self.repetition.max() + 1) + self.repetition
        return Pairs.of(self.old, self.new[:, :personal], group)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A bridge fitted on everybody, how it was chosen, and what it is worth for those left out."""

    bridge: Bridge
    parity: BridgeParity
    ridge: float
    between: float


@dataclass(frozen=True, eq=False)
class Rows:
    """One person's rows as a fused model takes them, `x (n, size)`, labels by the model's, repetitions `(n,)`."""

    name: str
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    repetition: NDArray[np.int64]

    @property
    def stem(self) -> str:
        """What the person is called in the record."""
        return self.name


Data = Sequence[Recordings] | Sequence[Rows]


def bridge(
    old: Path, new: Path, recordings: Data, models: Path, told: Progress = lambda _: None
) -> tuple[Path, Fitted]:
    """Fit a bridge between bundles with one output; `bridge_outputs` says how."""
    path, fitted = bridge_outputs(old, new, {"": recordings}, models, told)
    return path, fitted[""]


def bridge_outputs(
    old: Path,
    new: Path,
    recordings: Mapping[str, Data],
    models: Path,
    told: Progress = lambda _: None,
) -> tuple[Path, dict[str, Fitted]]:
    """Fit a bridge for each output and write the newer bundle with them, as the next version of its name.

    The version keeps the newer bundle's graph, priors and feature spaces: heads of it stay valid. A bridge that is not
    good enough is left out, and the others are written.

    Args:
        old: the bundle whose users move; where it has one output, that is the first of several.
        new: the bundle that they move to.
        recordings: of the population, by the newer bundle's outputs; of the one output, which has no name, by `""`.
            Of fused bundles everybody's rows instead.
        models: folder of bundles to write to.
        told: is told how far it is.

    Returns:
        The bundle's folder, and what was fitted for each output, good enough (`parity.passes`) or not.

    Raises:
        BridgeError: an output is not in both, is of targets, or its labels, input or name differ, or the feature space
            is shared; the people are too few; or no output's heads that come over the bridge are worth enough.
    """
    before, after = (bundles.load(bundles.resolve(path)) for path in (old, new))
    pairs = {name: _pair(before, after, name) for name in recordings}
    for name, pair in pairs.items():
        try:
            _check(*pair)
        except BridgeError as e:
            raise BridgeError(f"output {name!r}: {e}") if name else e from None
    found = {}
    for name, (one, other) in pairs.items():
        mark = f"{name}: " if name else ""

        def said(text: str, mark: str = mark) -> None:
            """Tell which output it is of."""
            told(f"{mark}{text}")

        found[name] = fit([person(rec, one, other, said) for rec in recordings[name]], other.prior, said)
    good = {name: fitted for name, fitted in found.items() if fitted.parity.passes}
    if not good:
        why = "; ".join(f"{f'{name}: ' if name else ''}{in_words(fitted.parity)}" for name, fitted in found.items())
        raise BridgeError(f"the bridge is not good enough and is not written: {why}")
    people = {name: [r.stem for r in recordings[name]] for name in good}
    return _written(pairs, after, models, good, people), found


def _pair(before: Bundle, after: Bundle, name: str) -> tuple[Bundle, Bundle]:
    """Return an output of both bundles, each as a bundle of that one alone.

    Raises:
        BridgeError: it is not in both, or there are several and none is named.
    """
    new = {each.manifest.output: each for each in after.outputs} or {"": after}
    if name not in new:
        there = ", ".join(new) if after.outputs else "one output, which has no name"
        raise BridgeError(f"{after.path} has no output {name!r}; it has {there}")
    old = {each.manifest.output: each for each in before.outputs} or {next(iter(new)): before}
    if name not in old:
        raise BridgeError(f"{before.path} has no output {name!r} that its users could move from")
    return old[name], new[name]


def fit(people: Sequence[Person], prior: Prior, told: Progress = lambda _: None) -> Fitted:
    """Choose and fit a bridge, leaving each person out in turn.

    Raises:
        BridgeError: fewer than three people.
    """
    if len(people) < FEWEST_PEOPLE:
        raise BridgeError(f"a bridge needs {FEWEST_PEOPLE} people at least; there are {len(people)}")
    pairs = [person.pairs(prior.personal) for person in people]
    baseline = [_baseline(person, prior) for person in people]
    best: tuple[float, BridgeParity, float, float] | None = None
    for ridge in RIDGES:
        for between in BETWEEN:
            accuracy = []
            for u, person in enumerate(people):
                made = fit_bridge([p for v, p in enumerate(pairs) if v != u], ridge, between)
                accuracy.append(_accuracy(person, prior, lambda s, made=made: made.statistics(s)))  # type: ignore[misc]
            parity = _parity(accuracy, baseline)
            told(f"ridge {ridge:g}, means weigh {between:g}: {in_words(parity)}")
            if best is None or parity.bridged > best[0]:
                best = (parity.bridged, parity, ridge, between)
    assert best is not None
    _, parity, ridge, between = best
    return Fitted(fit_bridge(pairs, ridge, between), parity, ridge, between)


def in_words(parity: BridgeParity) -> str:
    """Say what a bridge is worth."""
    return (
        f"{parity.users} left-out people: {parity.bridged:.2%} right by heads over the bridge, {parity.inputs:.2%} by "
        f"heads from their windows, {parity.generic:.2%} by the shared head; worst loss {parity.worst_loss:.2%} "
        f"(allowed: {bridges.LARGEST_MEAN_LOSS:.0%} on average, {bridges.LARGEST_LOSS:.0%} for one, nobody below the "
        f"shared head by it: {parity.harmed})"
    )


def _check(old: Bundle, new: Bundle) -> None:
    a, b = old.manifest, new.manifest
    if a.targets or b.targets:
        raise BridgeError("there is no bridge between heads of targets: their users are not moved, they calibrate anew")
    if a.name != b.name:
        raise BridgeError(f"the bundles are of two models: {a.name} and {b.name}; users belong to one")
    if a.labels != b.labels:
        raise BridgeError(f"the labels differ: {', '.join(a.labels)} and {', '.join(b.labels)}")
    if a.feature_space == b.feature_space:
        raise BridgeError(
            f"both compute feature space {a.feature_space}: heads of one are valid in the other as they are"
        )
    if b.input.parts and a.input.parts == b.input.parts:
        return
    if len(b.input.window_shape) != 2 or b.input.padding is not None:
        raise BridgeError(f"bridges are fitted on recordings of signals; the input is {list(b.input.shape)}")
    if (a.input.shape, a.input.sample_rate, a.input.unit) != (b.input.shape, b.input.sample_rate, b.input.unit):
        raise BridgeError(
            f"the inputs differ: {list(a.input.shape)} at {a.input.sample_rate:g} Hz in {a.input.unit}, and "
            f"{list(b.input.shape)} at {b.input.sample_rate:g} Hz in {b.input.unit}; both must take the same windows"
        )


def person(rec: Recordings | Rows, old: Bundle, new: Bundle, told: Progress) -> Person:
    """Cut one person's windows and run both backbones on them."""
    spec = new.manifest.input
    if isinstance(rec, Rows):
        some = slice(None, None, max(1, -(-len(rec.y) // MOST_WINDOWS)))
        x, y = rec.x[some], rec.y[some]
        repetition = np.unique(rec.repetition[some], return_inverse=True)[1].reshape(-1)
    else:
        index = check_signal(rec, spec, new.manifest.labels)
        cut = windows(rec, WindowSpec(spec.window_shape[-1], spec.stride))
        cut = cut.select(slice(None, None, max(1, -(-len(cut) // MOST_WINDOWS))))
        x, y, repetition = cut.x.astype(spec.dtype), index[cut.y], _repetitions(cut)
    told(f"{rec.stem}: {len(x)} windows")
    z = [
        np.asarray(columns(features(b.backbone, b.manifest.input, x), b.manifest.features), np.float64)
        for b in (old, new)
    ]
    return Person(rec.stem, z[0][:, : old.prior.personal], z[1], y, repetition)


def _repetitions(cut: Windows) -> NDArray[np.int64]:
    """Number repetitions over all sessions."""
    return np.unique(np.stack([cut.session, cut.repetition]), axis=1, return_inverse=True)[1].reshape(-1)


def _baseline(person: Person, prior: Prior) -> tuple[float, float]:
    """Accuracy of heads refitted from the windows, and of the shared head, on the same windows."""
    return _accuracy(person, prior, None), _accuracy(person, prior, None, shared_head(prior))


def _accuracy(
    person: Person, prior: Prior, over: Callable[[Statistics], Statistics] | None, head: Head | None = None
) -> float:
    """Mean accuracy over `CYCLES` on the repetitions that the head was not fitted on.

    Args:
        person: left out of the bridge.
        prior: of the newer bundle.
        over: maps statistics of the older features; None: those of the newer ones are taken.
        head: to score instead of fitting one.
    """
    found = []
    repetitions = np.unique(person.repetition)
    for cycles in CYCLES:
        if cycles >= len(repetitions):
            break
        known = np.isin(person.repetition, repetitions[:cycles])
        y, repetition = person.y[known], person.repetition[known]
        if head is None:
            if over is None:
                stats = Statistics.of(person.new[known, : prior.personal], y, repetition, prior.classes)
            else:
                stats = over(Statistics.of(person.old[known], y, repetition, prior.classes))
        made = fit_map(stats, prior) if head is None else head
        found.append(float((made.logits(person.new[~known]).argmax(1) == person.y[~known]).mean()))
    if not found:
        raise BridgeError(f"{person.name} has one repetition: nothing is left to score a head on")
    return float(np.mean(found))


def _parity(bridged: Sequence[float], baseline: Sequence[tuple[float, float]]) -> BridgeParity:
    over, (inputs, generic) = np.array(bridged), np.array(baseline).T
    return BridgeParity(
        users=len(over),
        bridged=float(over.mean()),
        inputs=float(inputs.mean()),
        generic=float(generic.mean()),
        mean_loss=float((inputs - over).mean()),
        worst_loss=float((inputs - over).max()),
        harmed=int(((over < generic) & (inputs >= generic)).sum()),
    )


def _written(
    pairs: Mapping[str, tuple[Bundle, Bundle]],
    new: Bundle,
    models: Path,
    good: Mapping[str, Fitted],
    people: Mapping[str, list[str]],
) -> Path:
    manifest = new.manifest
    entries, files, records = dict[str, dict[str, BridgeEntry]](), dict[str, bytes](), list[dict[str, Any]]()
    for name, fitted in good.items():
        old = pairs[name][0]
        space = old.manifest.feature_space
        file = bridge_file(space)
        entries[name] = {
            space: BridgeEntry(file=file, version=old.manifest.version, digest=old.digest, parity=fitted.parity)
        }
        files[file] = bridges.to_bytes(fitted.bridge)
        records.append(
            {
                **({"output": name} if name else {}),
                "from": {"version": manifest.version, "digest": new.digest},
                "old": {"version": old.manifest.version, "digest": old.digest, "feature_space": space},
                "people": people[name],
                "ridge": fitted.ridge,
                "between": fitted.between,
                "cycles": list(CYCLES),
            }
        )
    made = manifest.model_copy(
        update={
            "manifest_version": manifest.manifest_version if manifest.outputs else "1.1",
            "version": max(bundles.next_version(models, manifest.name), manifest.version + 1),
            "bridges": {**manifest.bridges, **entries.get(manifest.output, {})},
            "outputs": tuple(
                each.model_copy(update={"bridges": {**each.bridges, **entries.get(each.name, {})}})
                for each in manifest.outputs
            ),
            "provenance": {
                **manifest.provenance,
                "bridges": [*manifest.provenance.get("bridges", []), *records],
            },
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": {},
        }
    )
    kept = {name: (new.path / name).read_bytes() for name in manifest.files}
    return bundles.write(models, made, {**kept, **files, bundles.CARD: model_card(made).encode()})
