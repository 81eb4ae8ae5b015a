"""`headway bundle add-task`: a further output of a bundle, fitted on its features as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from exporters import bundle as bundles
from exporters.bundle import Bundle, BundleError, InputSpec, Manifest
from exporters.bundle_outputs import Ranges, Target
from exporters.regression import Population
from exporters.tasks import Task, add_task
from models.data.asked import Ask, asks
from models.data.collections import Collection
from models.data.further import further
from models.data.media import MediaError, reader_of
from models.data.recordings import load_folder
from models.data.tasks import load_tasks
from models.data.windows import WindowSpec, windows
from models.evaluation.subjects import check_recorded
from models.heads.regression_prior import MOST_FEATURES

MOST_WINDOWS = 1000
"""Of a person; more are thinned out evenly."""


def run_add_task(
    path: Path,
    data: Path,
    told: str,
    *,
    called: str,
    models: Path | None,
    user_labels: int,
    subjects: str,
    seed: int,
    console: Console,
) -> None:
    """Fit an output and write the bundle's next version with it; prints what it is worth.

    Raises:
        BundleError: the bundle has such an output, a name is missing, or the data are of another kind.
        CollectionError: a column or an array is not there, or has nothing to learn.
        ValueError: fewer than three people are known.
    """
    bundle, (ask,) = bundles.load(bundles.resolve(path)), asks([told])
    spec = bundle.manifest.input
    found = _recorded(spec, data, ask, subjects) if spec.media is None else _collected(bundle, data, ask, seed)
    console.print(f"{ask.name}: {len(found.population.windows)} examples of {found.people} people", highlight=False)
    task = _task(bundle.manifest, ask.name, found, user_labels)
    written = bundles.load(add_task(bundle.path, models or bundle.path.parent.parent, task, called=called))
    told = f"{_worth(written.outputs[-1].manifest)}\nwritten to {written.path}"
    console.print(told, highlight=False, markup=False, soft_wrap=True)


class _Found(NamedTuple):
    """What the data say of the task."""

    labels: tuple[str, ...]
    targets: tuple[Target, ...]
    population: Population

    @property
    def people(self) -> int:
        """Number of people."""
        return len(np.unique(self.population.users))


def _collected(bundle: Bundle, data: Path, ask: Ask, seed: int) -> _Found:
    """Files or texts of a table, as the graph takes them."""
    (task,) = load_tasks(data, [ask], seed).tasks
    items, spec = task.data, bundle.manifest.input
    assert spec.media is not None
    if items.kind != spec.media.kind:
        raise BundleError(f"{data} holds {items.kind}s, and {bundle.path} reads {spec.media.kind}s")
    if not items.users:
        raise BundleError(f"an output is fitted on people, and {data} has no column user, which says whose an item is")
    reader = reader_of(spec, bundle.file)
    assert reader is not None
    given = [items.read(i) for i in range(len(items))]
    try:
        rows = reader.read(given)
    except MediaError:
        for i, item in enumerate(given):  # it numbers them, and the user knows names
            try:
                reader.read([item])
            except MediaError as e:
                raise BundleError(f"{items.name(i)}: {e}") from e
        raise
    values: NDArray[Any] = items.y if isinstance(items, Collection) else items.t
    people = np.array(items.users)[items.user]
    return _Found(task.labels, task.targets, Population(rows, values, people, items.repetition))


def _recorded(spec: InputSpec, data: Path, ask: Ask, subjects: str) -> _Found:
    """Windows of recordings of which an array beside their labels tells the task."""
    recordings = load_folder(data, subjects)
    for rec in recordings:
        check_recorded(rec, spec)
    task, length = further(data, recordings, ask), spec.window_shape[-1]
    parts: list[tuple[NDArray[Any], ...]] = []
    for number, rec in enumerate(recordings):
        room = np.maximum((rec.stop - rec.start - length) // spec.stride + 1, 0).sum()
        w = windows(rec, WindowSpec(length, spec.stride * max(1, -(-int(room) // MOST_WINDOWS))))
        known, values = task.of(number, w)
        if known.any():
            repetition = (number * 1000 + w.session) * 1000 + w.repetition
            parts.append((w.x[known], values, np.array([rec.subject] * int(known.sum())), repetition[known]))
    if not parts:
        raise BundleError(f"no window of the recordings in {data} has an answer in '{ask.columns[0]}'")
    x, values, people, repetition = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _Found(task.labels, task.targets, Population(x.astype(spec.dtype), values, people, repetition))


def _task(manifest: Manifest, name: str, found: _Found, user_labels: int) -> Task:
    """The output; of more features than a regression may have, it reads the first."""
    wide: Ranges = ((0, MOST_FEATURES),) if found.targets and manifest.feature_dim > MOST_FEATURES else ()
    return Task(
        name,
        labels=found.labels,
        targets=found.targets,
        population=found.population,
        user_labels=user_labels if found.labels else 0,
        features=wide,
    )


def _worth(manifest: Manifest) -> str:
    """How the shared head of the added output did."""
    left = manifest.evaluation["left_out_people"]
    if manifest.labels:
        return (
            f"{manifest.output}: {len(manifest.labels)} labels; shared head on left-out people: {left['accuracy']:.1%} "
            f"right (worst {left['worst']:.1%})"
        )
    each = (f"{t} wrong by {left['rmse'][t.name]:.4g}, R² {left['r2'][t.name]:.3f}" for t in manifest.targets)
    return f"{manifest.output}: shared head on left-out people: {', '.join(each)} (root mean square)"
