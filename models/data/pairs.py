"""Labelled items of several parts (a picture, its caption, its sound), as rows of a table; any part may be missing."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.input_spec import InputSpec
from models.data.collections import TABLES, Collection, CollectionError, records, repetitions_of, told_of
from models.data.media import reader_of
from models.data.parts import pack

__all__ = ["TENSOR", "PairedItems", "kinds_of", "load_pairs"]

Files = Callable[[str], bytes] | Mapping[str, bytes]

Labels = NDArray[np.int64]
TENSOR = "tensor"
"""Kind of a part that is no media: its cells name `.npy` files of one window."""


@dataclass(frozen=True, eq=False)
class PairedItems:
    """Rows of a table.

    Attributes:
        kinds: of each of the M parts: `image`, `audio`, `text` or `tensor`.
        parts: of each part its cells: a text, a file, or None where the row lacks it.
        labels: the K label names, sorted.
        y: `(n,)` label of each row.
        users: names of the U people, or none.
        user: `(n,)` index of each row's user; zeros where there are none.
        repetition: `(n,)` repetition ids, unique over users.
    """

    kinds: dict[str, str]
    parts: dict[str, tuple[Path | str | None, ...]]
    labels: tuple[str, ...]
    y: Labels
    users: tuple[str, ...]
    user: Labels
    repetition: Labels

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.y)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which parts each row has, `(n, M)`."""
        return np.array([[cell is not None for cell in cells] for cells in self.parts.values()]).T

    def where(self, part: str) -> Labels:
        """Rows that have a part."""
        return np.flatnonzero([cell is not None for cell in self.parts[part]])

    def column(self, part: str) -> Collection:
        """The rows that have a part, as a collection of that part alone, with the labels and users of all rows."""
        rows = self.where(part)
        items = tuple(cell for cell in self.parts[part] if cell is not None)
        return Collection(
            kind=self.kinds[part],
            items=items,
            users=self.users,
            user=self.user[rows],
            repetition=self.repetition[rows],
            labels=self.labels,
            y=self.y[rows],
        )

    def reader(self, part: str, spec: InputSpec, read_file: Files) -> Callable[[Labels], NDArray[Any]]:
        """Return what reads cells of a part into rows of a model's input, of table rows that have it.

        `read_file` gives what reading the media needs. What is returned raises `CollectionError` naming a cell that
        cannot be read.

        Raises:
            MediaUnavailable: a package is missing.
        """
        media, cells = reader_of(spec, read_file), self.parts[part]

        def one(cell: Path | str | None) -> bytes | str:
            """Contents of a cell."""
            return cell.read_bytes() if isinstance(cell, Path) else str(cell)

        def rows_of(contents: list[bytes | str]) -> NDArray[Any]:
            """Rows of contents."""
            return np.stack([_window(spec, c) for c in contents]) if media is None else media.read(contents)

        def read(rows: Labels) -> NDArray[Any]:
            """Read cells of some rows."""
            try:
                return rows_of([one(cells[int(i)]) for i in rows])
            except (OSError, ValueError):
                for i in rows:  # to name it
                    try:
                        rows_of([one(cells[int(i)])])
                    except (OSError, ValueError) as e:
                        where = f" ({cells[int(i)]})" if isinstance(cells[int(i)], Path) else ""
                        raise CollectionError(f"Row {int(i) + 1}, {part}{where}: {e}") from e
                raise

        return read

    def packed(self, spec: InputSpec, read_file: Files, rows: Labels) -> NDArray[np.float32]:
        """Some rows as a fused model takes them, `(n, size)`, with the parts that each has.

        Raises:
            CollectionError: a cell cannot be read.
        """
        readers = [self.reader(part.name, part, read_file) for part in spec.parts]
        there = self.present[rows]
        found = np.zeros((len(rows), spec.shape[1]), np.float32)
        for way in np.unique(there, axis=0):
            own = np.flatnonzero((there == way).all(1))
            some = [(part.name, read) for part, read, has in zip(spec.parts, readers, way, strict=True) if has]
            found[own] = pack(spec, {name: read(rows[own]) for name, read in some})
        return found


def kinds_of(spec: InputSpec) -> dict[str, str]:
    """Kinds of a fused model's parts, as a table of them is read."""
    return {part.name: TENSOR if part.media is None else part.media.kind for part in spec.parts}


def _window(spec: InputSpec, content: bytes | str) -> NDArray[Any]:
    """One window from a `.npy` file.

    Raises:
        ValueError: it is none, or does not fit the model.
    """
    try:
        assert isinstance(content, bytes)
        x = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as e:
        raise CollectionError("it is not a .npy file of numbers") from e
    misfit = spec.misfit((1, *np.shape(x)))
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "fiu" or misfit:
        raise CollectionError(f"a window {misfit or 'of numbers was expected'}".replace("[rows, ", "["))
    if not np.isfinite(x).all():
        raise CollectionError("it holds values that are not finite")
    return x.astype(spec.dtype)


def load_pairs(path: Path, kinds: Mapping[str, str], seed: int = 0) -> PairedItems:
    """Read a table (CSV, TSV or JSON Lines) with a column for each part, `label`, and perhaps `user` and `repetition`.

    Cells of texts are the texts, those of other kinds paths from the table's folder; an empty one is a part that is
    missing. Other columns are not read. Repetitions that are not told are dealt at random, by the seed.

    Raises:
        CollectionError: no such table, a row without any part, a file that is not there, or fewer than two labels.
    """
    if path.suffix.lower() not in TABLES or not path.is_file():
        raise CollectionError(
            f"{path} is not a table ({', '.join(TABLES)}) with a column for each of {', '.join(kinds)}."
        )
    cells: dict[str, list[Path | str | None]] = {name: [] for name in kinds}
    told = []
    for number, row in enumerate(records(path), 1):
        missing = [name for name in (*kinds, "label") if name not in row]
        if missing:
            raise CollectionError(
                f"{path} row {number} has no column '{missing[0]}'; it has {', '.join(map(str, row))}."
            )
        for name, kind in kinds.items():
            cells[name].append(_cell(path, number, kind, row[name]))
        if all(own[-1] is None for own in cells.values()):
            raise CollectionError(f"{path} row {number} has none of {', '.join(kinds)}; leave it out.")
        told.append(told_of(path, number, row))
    labels = sorted({label for label, *_ in told})
    if len(labels) < 2:
        raise CollectionError(f"{path} has {len(labels)} labels; a model needs two.")
    named = [user for _, user, _ in told]
    if None in named and any(named):
        raise CollectionError(f"{path} names a user for some rows and none for others.")
    users = sorted({name for name in named if name is not None})
    empty = [name for name, own in cells.items() if all(cell is None for cell in own)]
    if empty:
        raise CollectionError(f"{path} has nothing in column '{empty[0]}'.")
    y = np.array([labels.index(label) for label, *_ in told], np.int64)
    user = np.array([users.index(name) if name is not None else 0 for name in named], np.int64)
    repetition = repetitions_of([r for *_, r in told], y, user, seed)
    return PairedItems(
        dict(kinds), {n: tuple(own) for n, own in cells.items()}, tuple(labels), y, tuple(users), user, repetition
    )


def _cell(path: Path, number: int, kind: str, value: object) -> Path | str | None:
    if value is None or not str(value).strip():
        return None
    if kind == "text":
        return str(value)
    file = path.parent / str(value).strip()
    if not file.is_file():
        raise CollectionError(f"{path} row {number}: there is no file {file}.")
    return file
