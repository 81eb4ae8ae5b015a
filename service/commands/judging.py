"""Labelled windows that variants of a model are judged on, from recordings, files or texts."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from exporters.bundle import Manifest
from exporters.gate import PrecisionError
from exporters.worth import Labelled
from models.data.collections import load_collection
from models.data.media import MediaError, reader_of
from models.data.paired import load_parts, pair
from models.data.pairs import kinds_of, load_pairs
from models.data.recordings import load_folder
from models.data.windows import WindowSpec, windows
from models.evaluation.subjects import check_signal
from service.commands.judging_outputs import of_recordings, of_table


def located(manifest: Manifest, data: Sequence[str], *, together: bool = False) -> dict[str, Path]:
    """Tell by output where its labelled data are: DIR for a model with one, whose name is empty, else OUTPUT=DIR each.

    `together`: one DIR may be of all outputs; it has the empty name, too.

    Raises:
        PrecisionError: an output is not there or named twice, or none is named and there are several.
    """
    if not manifest.outputs:
        if len(data) > 1:
            raise PrecisionError(f"model {manifest.name} has one output: give --data once, not {len(data)} times")
        return {"": Path(data[0])}
    if together and len(data) == 1 and data[0].partition("=")[0] not in manifest.names:
        return {"": Path(data[0])}
    names = ", ".join(manifest.names)
    found = dict[str, Path]()
    for each in data:
        name, mark, path = each.partition("=")
        if not mark:
            raise PrecisionError(
                f"model {manifest.name} has the outputs {names}: say which one {each} is labelled for, as "
                f"--data {manifest.names[0]}={each}"
            )
        if name not in manifest.names or name in found:
            raise PrecisionError(f"--data {each}: {name!r} is not one of {names}, or is given twice")
        found[name] = Path(path)
    return found


def judges(
    manifest: Manifest, file: Callable[[str], bytes], data: Mapping[str, Path], held_out: str, seed: int
) -> tuple[dict[str, Labelled], int | None]:
    """By output, people, or users of files and texts, whose names match globs; and how many the model was trained on.

    Of several outputs `data` by the empty name are of all that they tell of. The number is None where a run does not
    tell: of files and texts.

    Raises:
        PrecisionError: the data hold nothing that an output could be judged on.
    """
    seen = {subject["digest"] for subject in manifest.provenance.get("subjects", [])}
    known: int | None = None
    found = dict[str, Labelled]()
    for name, path in data.items():
        output = manifest.of_output(name) if name else manifest
        asked = (name,) if name else manifest.names
        media = manifest.input.media is not None
        if manifest.input.parts:
            found[name] = together(output, file, path, held_out, seed=seed)
        elif manifest.outputs and (not name or output.targets):
            if media:
                found |= of_table(manifest, file, path, asked, users=held_out, seed=seed)
            else:
                found |= of_recordings(manifest, path, held_out, asked)
        elif media:
            found[name] = collected(output, file, path, users=held_out, seed=seed)
        else:
            found[name] = recorded(output, path, held_out)
        if not media and not manifest.input.parts:
            known = max(known or 0, sum(rec.digest in seen for rec in load_folder(path, held_out)))
    return found, known


def together(
    manifest: Manifest, file: Callable[[str], bytes], data: Path, users: str = "*", *, seed: int = 0
) -> Labelled:
    """Rows of a fused model: of a folder with a folder of recordings a part, or of a table with a column a part.

    Raises:
        PrecisionError: the data have labels unknown to the model, or nobody matches.
    """
    spec, labels = manifest.input, _labels(manifest)
    if data.is_dir():
        people, _ = pair(load_parts(data, spec, users), {part.name: part for part in spec.parts}, labels)
        rows = [(p.packed(spec), p.y, np.full(len(p), u), p.repetition) for u, p in enumerate(people)]
        return Labelled(*(np.concatenate(part) for part in zip(*rows, strict=True)))
    items = load_pairs(data, kinds_of(spec), seed)
    unknown = sorted(set(items.labels) - set(labels))
    if unknown:
        raise PrecisionError(f"{data} has labels that the model does not know: {', '.join(unknown)}")
    globs = [glob.strip() for glob in users.split(",")]
    matched = [any(fnmatch.fnmatchcase(user, glob) for glob in globs) for user in items.users]
    chosen = np.flatnonzero(np.array(matched)[items.user]) if items.users else np.arange(len(items))
    if not len(chosen):
        raise PrecisionError(f"no user in {data} matches {users!r}; there are {', '.join(items.users)}")
    y = np.array([labels.index(name) for name in items.labels])[items.y]
    x = items.packed(spec, file, chosen)
    return Labelled(x, y[chosen], items.user[chosen], items.repetition[chosen])


def recorded(manifest: Manifest, data: Path, subjects: str) -> Labelled:
    """Windows of recordings, those of labels that the model knows.

    Raises:
        PrecisionError: there are none, or the output is of targets.
    """
    spec, labels = manifest.input, _labels(manifest)
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
    spec, labels = manifest.input, _labels(manifest)
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
    user = collection.user if collection.users else np.full(len(collection), -1)
    return Labelled(x, y[chosen], user[chosen], collection.repetition[chosen])


def _labels(manifest: Manifest) -> tuple[str, ...]:
    if manifest.targets:
        raise PrecisionError(
            f"model {manifest.name} is of targets, and these data hold labels: without --data it is judged by how its "
            "values change"
        )
    return manifest.labels
