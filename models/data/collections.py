"""Labelled images, sounds and texts: folders of files, and tables, as they lie on a disk."""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SUFFIXES",
    "TABLES",
    "Collection",
    "CollectionError",
    "Items",
    "load_collection",
    "records",
    "repetitions_of",
    "told_of",
]

Labels = NDArray[np.int64]
SUFFIXES = {
    **dict.fromkeys((".png", ".jpg", ".jpeg"), "image"),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".opus"), "audio"),
}
TABLES = (".csv", ".tsv", ".jsonl")
COLUMNS = ("text", "label", "user", "repetition")
MOST_REPETITIONS = 4
FEWEST_A_REPETITION = 5


class CollectionError(ValueError):
    """A folder or table that labelled examples cannot be read from; the message says why."""


@dataclass(frozen=True, eq=False)
class Items:
    """Items of one kind, and whose they are.

    Attributes:
        kind: `image`, `audio` or `text`.
        items: paths of files, or the texts themselves.
        users: names of the U people, or none: one pooled population.
        user: `(n,)` index of each item's user; zeros where there are none.
        repetition: `(n,)` repetition ids, unique over users.
    """

    kind: str
    items: tuple[Path | str, ...]
    users: tuple[str, ...]
    user: Labels
    repetition: Labels

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    def read(self, index: int) -> bytes | str:
        """An item's file as it is, or its text.

        Raises:
            CollectionError: the file is gone.
        """
        item = self.items[index]
        if isinstance(item, str):
            return item
        try:
            return item.read_bytes()
        except OSError as e:
            raise CollectionError(f"{item} cannot be read: {e.strerror}") from e

    def name(self, index: int) -> str:
        """What to call an item in a message."""
        item = self.items[index]
        return f"row {index + 1}" if isinstance(item, str) else str(item)

    def digest_of(self, index: int) -> str:
        """Hex sha256 of an item's content."""
        data = self.read(index)
        return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


@dataclass(frozen=True, eq=False)
class Collection(Items):
    """Labelled items of one kind.

    Attributes:
        labels: the K label names, sorted.
        y: `(n,)` label of each item.
    """

    labels: tuple[str, ...]
    y: Labels


def load_collection(path: Path, seed: int = 0, column: str | None = None) -> Collection:
    """Read `FOLDER/<label>/*`, `FOLDER/<user>/<label>/*` (images, sounds), or a table with columns text and label.

    A table is CSV, TSV or JSON Lines, with optional columns `user` and `repetition`. Where nothing tells repetitions,
    the items of a user (or of all) are dealt at random, by the seed, to up to four. Of a table whose rows have several
    parts `column` is the one to read: texts, or paths of files from its folder; rows without it are left out. Several
    things that are to be learned of each item are a table's other columns: `models.data.tasks`.

    Raises:
        CollectionError: nothing of the kind, items of several kinds, or fewer than two labels.
    """
    if path.is_dir() and column is not None:
        raise CollectionError(f"{path} is a folder, which has no column '{column}'; a table has.")
    if path.is_dir():
        rows = list(_files(path))
    elif path.suffix.lower() in TABLES and path.is_file():
        rows = list(_table(path) if column is None else _column(path, column))
    else:
        raise CollectionError(f"{path} is neither a folder nor a table ({', '.join(TABLES)}).")
    kinds = {kind for kind, *_ in rows}
    if len(kinds) != 1:
        found = f"holds {' and '.join(sorted(kinds))} files" if kinds else "holds no labelled images, sounds or texts"
        expected = "FOLDER/<label>/* or FOLDER/<user>/<label>/*" if column is None else f"one kind in column {column}"
        raise CollectionError(f"{path} {found}; {expected} was expected.")
    labels = sorted({label for _, _, label, _, _ in rows})
    if len(labels) < 2:
        raise CollectionError(f"{path} has one label only, '{labels[0]}'; a model needs two.")
    named = [user for *_, user, _ in rows]
    if any(n is None for n in named) and any(n is not None for n in named):
        raise CollectionError(f"{path} names a user for some items and none for others.")
    users = sorted({n for n in named if n is not None})
    y = np.array([labels.index(label) for _, _, label, _, _ in rows], np.int64)
    user = np.array([users.index(n) if n is not None else 0 for n in named], np.int64)
    return Collection(
        kind=kinds.pop(),
        items=tuple(item for _, item, *_ in rows),
        users=tuple(users),
        user=user,
        repetition=repetitions_of([r for *_, r in rows], y, user, seed),
        labels=tuple(labels),
        y=y,
    )


Row = tuple[str, Path | str, str, str | None, int | None]


def _files(folder: Path) -> Iterator[Row]:
    """Find files two or three levels deep; the depth must be the same for all."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    depths = {len(p.relative_to(folder).parts) for p in found}
    if len(depths) > 1 or not depths <= {2, 3}:
        raise CollectionError(
            f"{folder} has files at {'different depths' if len(depths) > 1 else 'the wrong depth'}: "
            "FOLDER/<label>/* (one population) or FOLDER/<user>/<label>/* was expected."
        )
    for path in found:
        *owner, label, _ = path.relative_to(folder).parts
        yield SUFFIXES[path.suffix.lower()], path, label, owner[0] if owner else None, None


def _table(path: Path) -> Iterator[Row]:
    for number, row in enumerate(records(path), 1):
        unknown = sorted(set(row) - set(COLUMNS))
        if unknown or not {"text", "label"} <= set(row):
            raise CollectionError(
                f"{path} row {number}: columns text and label, and perhaps user and repetition, were expected; "
                f"it has {', '.join(map(str, row))}. Columns of other names are learned where --task names them; of a "
                "table of several parts --column names the one to read."
            )
        if not (isinstance(row["text"], str) and row["text"].strip()):
            raise CollectionError(f"{path} row {number}: text and label must be strings that are not empty.")
        yield "text", row["text"], *told_of(path, number, row)


def _column(path: Path, column: str) -> Iterator[Row]:
    """Read the rows that have a part: of files where the cell ends as their names do, else of texts."""
    for number, row in enumerate(records(path), 1):
        if column not in row or "label" not in row:
            raise CollectionError(
                f"{path} row {number}: columns {column} and label were expected; it has {', '.join(map(str, row))}."
            )
        cell = row[column]
        if cell is None or not str(cell).strip():
            continue
        kind = SUFFIXES.get(Path(str(cell)).suffix.lower(), "text")
        yield kind, str(cell) if kind == "text" else path.parent / str(cell), *told_of(path, number, row)


def told_of(path: Path, number: int, row: dict[str, Any]) -> tuple[str, str | None, int | None]:
    """Label, user and repetition of a table's row, which is named in messages.

    Raises:
        CollectionError: there is no label, or the repetition is no number.
    """
    label, user, repetition = (row.get(name) for name in COLUMNS[1:])
    if not (isinstance(label, str) and label.strip()):
        raise CollectionError(f"{path} row {number}: text and label must be strings that are not empty.")
    try:
        told = None if repetition in (None, "") else int(repetition)
    except (TypeError, ValueError) as e:
        raise CollectionError(f"{path} row {number}: repetition {repetition!r} is not a whole number.") from e
    return label.strip(), None if user in (None, "") else str(user), told


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a table, by column.

    Raises:
        CollectionError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() != ".jsonl":
                yield from _rows(path, csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise CollectionError(f"{path} line {number} is not a JSON object.")
                    yield record
    except CollectionError:
        raise
    except (OSError, ValueError, csv.Error) as e:
        raise CollectionError(f"{path} cannot be read: {e}") from e


def _rows(path: Path, reader: "csv.DictReader[str]") -> Iterator[dict[str, Any]]:
    """Rows under a header that names each column once: a row with more cells is one whose cells have moved."""
    header = list(reader.fieldnames or ())
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise CollectionError(f"{path} has two columns '{twice}'; every column has a name of its own.")
    for number, row in enumerate(reader, 1):
        if None in row:
            raise CollectionError(
                f"{path} row {number} has more cells than the header, {', '.join(header)}: a cell that holds the "
                'separator stands in quotes, "so, as this".'
            )
        yield row


def repetitions_of(told: Sequence[int | None], y: Labels, user: Labels, seed: int) -> Labels:
    """Repetition ids that differ between users; dealt at random, of each label alike, where they are not told.

    Raises:
        CollectionError: some are told and others are not.
    """
    if all(r is not None for r in told):
        pairs = np.stack([user, np.array(told, np.int64)], 1)
        return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    if any(r is not None for r in told):
        raise CollectionError("Some rows name a repetition and others none.")
    rng = np.random.default_rng(seed)
    found = np.zeros(len(y), np.int64)
    for u in np.unique(user):
        own = user == u
        fewest = min(int((y[own] == c).sum()) for c in np.unique(y[own]))
        count = min(MOST_REPETITIONS, max(2, fewest // FEWEST_A_REPETITION))
        for c in np.unique(y[own]):
            where = rng.permutation(np.flatnonzero(own & (y == c)))
            found[where] = int(u) * MOST_REPETITIONS + np.arange(len(where)) % count
    return found
