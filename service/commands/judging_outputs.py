"""Labelled windows of several outputs from one folder of recordings, or one table: what each says of the same rows."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporters.bundle import Manifest
from exporters.gate import PrecisionError
from exporters.worth import Labelled
from models.data.asked import Ask
from models.data.collections import Collection, records
from models.data.further import further
from models.data.media import reader_of
from models.data.recordings import Recordings, load_folder
from models.data.tasks import UNIT, load_tasks
from models.data.windows import Windows, WindowSpec, windows
from models.evaluation.subjects import check_recorded

Answers = tuple[NDArray[np.int64], NDArray[np.int64] | NDArray[np.float64]]
"""Which rows an output is known of, and what it is there: classes `(m,)`, or values `(m, T)`."""


def of_recordings(manifest: Manifest, data: Path, subjects: str, outputs: tuple[str, ...]) -> dict[str, Labelled]:
    """Read what recordings tell of outputs: their labels, and arrays beside them by the names of outputs and targets.

    An output of which they tell nothing is left out.

    Raises:
        PrecisionError: they tell of none, or use a label that the output does not know.
    """
    spec, people = manifest.input, load_folder(data, subjects)
    for rec in people:
        check_recorded(rec, spec)
    cut = [windows(rec, WindowSpec(spec.window_shape[-1], spec.stride)) for rec in people]
    x = np.concatenate([w.x for w in cut]).astype(spec.dtype)
    user = np.repeat(np.arange(len(cut)), [len(w) for w in cut])
    repetition = np.concatenate([w.session * 1000 + w.repetition for w in cut])
    found = dict[str, Labelled]()
    for name in outputs:
        told = _told(manifest.of_output(name), data, people, cut)
        if told is not None and len(told[0]):
            rows, y = told
            found[name] = Labelled(x, y, user[rows], repetition[rows], rows)
    return _some(found, data, outputs)


def _told(output: Manifest, data: Path, people: list[Recordings], cut: list[Windows]) -> Answers | None:
    """What recordings tell of an output; None where they do not."""
    used = {rec.label_names[i] for rec in people for i in np.unique(rec.label)}
    if output.labels and used <= set(output.labels):
        index = [
            np.array([_index(output, n) for n in rec.label_names], np.int64)[w.y]
            for rec, w in zip(people, cut, strict=True)
        ]
        y = np.concatenate(index)
        return np.flatnonzero(y >= 0), y[y >= 0]
    columns = tuple(target.name for target in output.targets) or (output.output,)
    if not any(set(columns) <= _arrays(data / f"{rec.stem}.npz") for rec in people):
        return None
    task = further(data, people, Ask(output.output, columns, output.task))
    parts = [task.of(number, w) for number, w in enumerate(cut)]
    rows = np.flatnonzero(np.concatenate([known for known, _ in parts]))
    values = np.concatenate([y for _, y in parts])
    return rows, _classes(output, task.labels, values, data) if task.labels else values


def _arrays(file: Path) -> set[str]:
    with np.load(file, allow_pickle=False) as archive:
        return set(archive.files)


def of_table(
    manifest: Manifest,
    file: Callable[[str], bytes],
    data: Path,
    outputs: tuple[str, ...],
    *,
    users: str = "*",
    seed: int = 0,
) -> dict[str, Labelled]:
    """Read what a table tells of outputs: columns by the names of outputs with labels, and of targets.

    Raises:
        PrecisionError: it tells of none, is of another kind, uses a label that an output does not know, or nobody
            matches `users`.
    """
    spec = manifest.input
    header = {str(name) for row in records(data) for name in row}
    header |= {match["name"] for name in header if (match := UNIT.match(name))}
    asked = []
    for name in outputs:
        output = manifest.of_output(name)
        columns = tuple(target.name for target in output.targets) or (name,)
        if set(columns) <= header:
            asked.append(Ask(name, columns, output.task))
    _some({ask.name: None for ask in asked}, data, outputs)
    items = load_tasks(data, asked, seed)
    reader = reader_of(spec, file)
    if spec.media is None or reader is None or spec.media.kind != items.kind:
        kind = "tensors" if spec.media is None else f"{spec.media.kind}s"
        raise PrecisionError(f"{data} holds {items.kind}s, and the model reads {kind}")
    matched = [any(fnmatch.fnmatchcase(user, glob.strip()) for glob in users.split(",")) for user in items.users]
    kept = np.array(matched)[items.user] if items.users else np.full(len(items), users == "*")
    if not kept.any():
        raise PrecisionError(f"no user in {data} matches {users!r}; there are {', '.join(items.users) or 'none'}")
    chosen = np.flatnonzero(kept)
    x = reader.read([items.read(int(i)) for i in chosen])
    at = np.full(len(items), -1)
    at[chosen] = np.arange(len(chosen))
    found = dict[str, Labelled]()
    for task in items.tasks:
        there = kept[task.rows]
        rows = at[task.rows[there]]
        own = task.data
        y: NDArray[np.int64] | NDArray[np.float64]
        y = _classes(manifest.of_output(task.name), own.labels, own.y, data) if isinstance(own, Collection) else own.t
        found[task.name] = Labelled(x, y[there], items.user[task.rows[there]], items.repetition[task.rows[there]], rows)
    return found


def _classes(output: Manifest, labels: tuple[str, ...], y: NDArray[np.int64], data: Path) -> NDArray[np.int64]:
    """Class indices of the output, of those of the data's labels.

    Raises:
        PrecisionError: the output does not know one.
    """
    unknown = sorted(set(labels) - set(output.labels))
    if unknown:
        raise PrecisionError(f"{data} has labels that output {output.output!r} does not know: {', '.join(unknown)}")
    return np.array([_index(output, name) for name in labels], np.int64)[y]


def _index(output: Manifest, label: str) -> int:
    return output.labels.index(label) if label in output.labels else -1


def _some(found: Mapping[str, object], data: Path, outputs: tuple[str, ...]) -> dict[str, Labelled]:
    """Return what was found, which must be something."""
    if not found:
        raise PrecisionError(
            f"{data} tells nothing of {', '.join(outputs)}: it has neither their labels nor their names"
        )
    return dict(found)  # type: ignore[arg-type]
