"""Labelled windows that variants of a model are judged on, from recordings, files or texts."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from pathlib import Path

import numpy as np

from exporters.bundle import Manifest
from exporters.int8 import Labelled
from exporters.precision import PrecisionError
from models.data.collections import load_collection
from models.data.media import MediaError, reader_of
from models.data.paired import load_parts, pair
from models.data.pairs import kinds_of, load_pairs
from models.data.recordings import load_folder
from models.data.windows import WindowSpec, windows
from models.evaluation.subjects import check_signal


def judges(
    manifest: Manifest, file: Callable[[str], bytes], data: Path, held_out: str, seed: int
) -> tuple[Labelled, int | None]:
    """People, or users of files and texts, whose names match globs; and how many of them the model was trained on.

    The number is None where a run does not tell: of files and texts.

    Raises:
        PrecisionError: the data hold nothing that the model could be judged on.
    """
    if manifest.input.parts:
        return together(manifest, file, data, held_out, seed=seed), None
    if manifest.input.media is not None:
        return collected(manifest, file, data, held_out, seed=seed), None
    seen = {subject["digest"] for subject in manifest.provenance.get("subjects", [])}
    return recorded(manifest, data, held_out), sum(rec.digest in seen for rec in load_folder(data, held_out))


def together(manifest: Manifest, file: Callable[[str], bytes], data: Path, subjects: str, *, seed: int = 0) -> Labelled:
    """Rows of a fused model: of a folder with a folder of recordings a part, or of a table with a column a part.

    Raises:
        PrecisionError: the data have labels unknown to the model, or nobody matches.
    """
    spec, labels = manifest.input, manifest.labels
    if data.is_dir():
        people, _ = pair(load_parts(data, spec, subjects), {part.name: part for part in spec.parts}, labels)
        rows = [(p.packed(spec), p.y, np.full(len(p), u), p.repetition) for u, p in enumerate(people)]
        return Labelled(*(np.concatenate(part) for part in zip(*rows, strict=True)))
    items = load_pairs(data, kinds_of(spec), seed)
    unknown = sorted(set(items.labels) - set(labels))
    if unknown:
        raise PrecisionError(f"{data} has labels that the model does not know: {', '.join(unknown)}")
    globs = [glob.strip() for glob in subjects.split(",")]
    matched = [any(fnmatch.fnmatchcase(user, glob) for glob in globs) for user in items.users]
    chosen = np.flatnonzero(np.array(matched)[items.user]) if items.users else np.arange(len(items))
    if not len(chosen):
        raise PrecisionError(f"no user in {data} matches {subjects!r}; there are {', '.join(items.users)}")
    y = np.array([labels.index(name) for name in items.labels])[items.y]
    x = items.packed(spec, file, chosen)
    return Labelled(x, y[chosen], items.user[chosen], items.repetition[chosen])


def recorded(manifest: Manifest, data: Path, subjects: str) -> Labelled:
    """Windows of recordings, those of labels that the model knows.

    Raises:
        PrecisionError: there are none.
    """
    spec, labels = manifest.input, manifest.labels
    cut = WindowSpec(spec.window_shape[-1], spec.stride)
    parts = []
    for number, rec in enumerate(load_folder(data, subjects)):
        index = check_signal(rec, spec, labels)
        found = windows(rec, cut)
        y = index[found.y]
        repetition = found.session * (1 + int(found.repetition.max(initial=0))) + found.repetition
        known = y >= 0
        parts.append((found.x[known], y[known], np.full(int(known.sum()), number), repetition[known]))
    x, y, user, repetition = (np.concatenate(part) for part in zip(*parts, strict=True))
    if not len(y):
        raise PrecisionError(f"the recordings in {data} hold no window of a label of the model: {', '.join(labels)}")
    return Labelled(x.astype(spec.dtype), y, user, repetition)


def collected(
    manifest: Manifest, file: Callable[[str], bytes], data: Path, users: str = "*", *, seed: int = 0
) -> Labelled:
    """Rows of files or texts; `file` gives those of the bundle that reading needs, `users` are globs of their users.

    Raises:
        PrecisionError: they are damaged or of another kind, have labels unknown to the model, or nobody matches.
    """
    spec, labels = manifest.input, manifest.labels
    collection = load_collection(data, seed)
    reader = reader_of(spec, file)
    if spec.media is None or reader is None or spec.media.kind != collection.kind:
        kind = "tensors" if spec.media is None else f"{spec.media.kind}s"
        raise PrecisionError(f"{data} holds {collection.kind}s, and the model reads {kind}")
    unknown = sorted(set(collection.labels) - set(labels))
    if unknown:
        raise PrecisionError(f"{data} has labels that the model does not know: {', '.join(unknown)}")
    chosen = np.arange(len(collection))
    if users != "*":
        globs = [glob.strip() for glob in users.split(",")]
        matched = [any(fnmatch.fnmatchcase(name, glob) for glob in globs) for name in collection.users]
        if not any(matched):
            there = ", ".join(collection.users) or "none: FOLDER/<user>/<label>/* or a column user names them"
            raise PrecisionError(f"no user in {data} matches {users!r}; there are {there}")
        chosen = chosen[np.array(matched)[collection.user]]
    items = [collection.read(int(i)) for i in chosen]
    try:
        x = reader.read(items)
    except MediaError:
        for i, item in zip(chosen, items, strict=True):  # it numbers them, and the user knows names
            try:
                reader.read([item])
            except MediaError as e:
                raise PrecisionError(f"{collection.name(int(i))}: {e}") from e
        raise
    y = np.array([labels.index(name) for name in collection.labels])[collection.y]
    return Labelled(x, y[chosen], collection.user[chosen], collection.repetition[chosen])
