"""Several things to learn of each item: a table whose further columns are labels and numbers, cells left empty."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from exporters.bundle_outputs import Target
from models.data.asked import Ask
from models.data.collections import (
    SUFFIXES,
    TABLES,
    Collection,
    CollectionError,
    Items,
    records,
    repetitions_of,
)

__all__ = ["FEWEST_PEOPLE", "LARGEST", "Measured", "Task", "Tasks", "check_shown_by_two", "load_tasks", "target_of"]

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
UNIT = re.compile(r"^(?P<name>.*?)\s*\[(?P<unit>[^\]]*)\]$")
"""A column's header with a unit: `age [years]`."""
LARGEST = 1e30
"""Size of a target: heads and answers are FP32, and errors are squared."""
FEWEST_PEOPLE = 3
"""Users from which on they are a population, each left out in turn."""


@dataclass(frozen=True, eq=False)
class Measured(Items):
    """Items of one kind with numbers: `t (n, T)` of the T targets."""

    targets: tuple[Target, ...]
    t: Array


@dataclass(frozen=True, eq=False)
class Task:
    """One thing to learn: its name, which items `rows (m,)` it is known of, and these with their answers alone."""

    name: str
    rows: Rows
    data: Collection | Measured

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of a classification; none of a regression."""
        return self.data.labels if isinstance(self.data, Collection) else ()

    @property
    def targets(self) -> tuple[Target, ...]:
        """Targets of a regression; none of a classification."""
        return self.data.targets if isinstance(self.data, Measured) else ()

    @property
    def width(self) -> int:
        """Numbers that a head says of an item: one a label, or one a target."""
        return len(self.labels or self.targets)

    def __str__(self) -> str:
        """What was understood, for people."""
        of = ", ".join(map(str, self.targets)) if self.targets else f"{len(self.labels)} labels"
        if isinstance(self.data, Measured):
            of += f", from {self.data.t.min():.4g} to {self.data.t.max():.4g}"
        return f"{self.name}: {of}; known of {len(self.rows)} items"


@dataclass(frozen=True, eq=False)
class Tasks(Items):
    """Items of one kind, and the tasks that are to be learned of them."""

    tasks: tuple[Task, ...]


def load_tasks(path: Path, asked: Sequence[Ask], seed: int = 0) -> Tasks:
    """Read a table (CSV, TSV, JSON Lines): a column `text` or `file`, perhaps `user` and `repetition`, and the tasks'.

    `file` is a path beside the table, of an image or a sound. An empty cell is an answer that is not known; rows
    without any are left out. A target's unit is in the header: `age [years]`.

    Raises:
        CollectionError: there is no such table, file or column, a cell is not what its column holds, or a task has
            nothing to learn; the sentence names row and column.
    """
    if path.is_dir() or path.suffix.lower() not in TABLES:
        raise CollectionError(
            f"{path} is not a table ({', '.join(TABLES)}): --task names its columns. A folder says one label of each "
            "file; for more give a table with a column file."
        )
    rows = list(records(path))
    header = list(dict.fromkeys(str(name) for row in rows for name in row))
    columns = [[_column(path, column, header) for column in ask.columns] for ask in asked]
    wanted = [name for each in columns for name in each]
    kept = [(i, row) for i, row in enumerate(rows, 1) if any(not _empty(row.get(name)) for name in wanted)]
    if not kept:
        raise CollectionError(f"{path} has no row with an answer in {', '.join(wanted)}.")
    told = _repetitions(path, kept)
    items = _items(path, kept, told, seed)
    tasks = tuple(_task(path, ask, own, kept, items) for ask, own in zip(asked, columns, strict=True))
    (first, *others) = tasks
    if not others and isinstance(first.data, Collection):
        # One task of labels is dealt to repetitions label by label, as any collection is.
        dealt = repetitions_of(told, first.data.y, items.user, seed)
        tasks = (replace(first, data=replace(first.data, repetition=dealt)),)
        items = replace(items, repetition=dealt)
    return Tasks(items.kind, items.items, items.users, items.user, items.repetition, tasks)


Numbered = Sequence[tuple[int, dict[str, Any]]]
"""Rows by their numbers in the table."""


def _column(path: Path, name: str, header: Sequence[str]) -> str:
    if name in ("text", "file", "user", "repetition"):
        raise CollectionError(f"The column {name} says what an item is or whose; it cannot be a task of its own.")
    if name in header:
        return name
    meant = [full for full in header if (match := UNIT.match(full)) and match["name"] == name]
    if len(meant) > 1:
        raise CollectionError(f"{path} has '{name}' in several units, {', '.join(meant)}: say which, unit and all.")
    if not meant:
        raise CollectionError(f"{path} has no column '{name}'; it has {', '.join(header) or 'none'}.")
    return meant[0]


def _empty(cell: object) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _items(path: Path, rows: Numbered, told: Sequence[int | None], seed: int) -> Items:
    """The items themselves, whose they are, and their repetitions."""
    found = [_item(path, number, row) for number, row in rows]
    kinds = sorted({kind for kind, _ in found})
    if len(kinds) > 1:
        raise CollectionError(f"{path} holds {' and '.join(kinds)} items; a model reads one kind.")
    owners = [None if _empty(row.get("user")) else str(row["user"]) for _, row in rows]
    if any(o is None for o in owners) and any(o is not None for o in owners):
        raise CollectionError(f"{path} names a user for some items and none for others.")
    users = sorted({o for o in owners if o is not None})
    user = np.array([0 if o is None else users.index(o) for o in owners], np.int64)
    repetition = repetitions_of(told, np.zeros(len(rows), np.int64), user, seed)
    return Items(kinds[0], tuple(item for _, item in found), tuple(users), user, repetition)


def _repetitions(path: Path, rows: Numbered) -> list[int | None]:
    """Repetitions as the table has them, None where it has none."""
    told: list[int | None] = []
    for number, row in rows:
        cell = row.get("repetition")
        try:
            told.append(None if _empty(cell) else int(str(cell)))
        except ValueError as e:
            raise CollectionError(f"{path} row {number}: repetition {cell!r} is not a whole number.") from e
    return told


def _item(path: Path, number: int, row: dict[str, Any]) -> tuple[str, Path | str]:
    text, file = row.get("text"), row.get("file")
    if _empty(text) == _empty(file):
        raise CollectionError(
            f"{path} row {number}: either a text in the column text, or a path beside the table in the column file, "
            "was expected."
        )
    if not _empty(text):
        return "text", str(text)
    there = path.parent / str(file).strip()
    kind = SUFFIXES.get(there.suffix.lower())
    if kind is None:
        raise CollectionError(f"{path} row {number}: {there.name} is neither of {', '.join(SUFFIXES)}.")
    if not there.is_file():
        raise CollectionError(f"{path} row {number}: there is no file {there}.")
    return kind, there


def _task(path: Path, ask: Ask, columns: Sequence[str], rows: Numbered, items: Items) -> Task:
    cells = [[row.get(name) for name in columns] for _, row in rows]
    index = np.array([i for i, own in enumerate(cells) if not any(map(_empty, own))], np.int64)
    where = f"{path}, task {ask.name} (column {', '.join(columns)})"
    if not len(index):
        raise CollectionError(f"{where}: no row has an answer; an empty cell is one that is not known.")
    values = {name: [(rows[i][0], cells[i][at]) for i in index] for at, name in enumerate(columns)}
    kind = ask.kind or _kind(where, next(iter(values.values())))
    own = _part(items, index)
    data = _measured(where, values, own) if kind == "regression" else _labelled(where, values[columns[0]], own)
    return Task(ask.name, index, data)


def _part(items: Items, rows: Rows) -> Items:
    """Some of the items, as if there were no others."""
    user, users = items.user[rows], items.users
    if users:
        there, user = np.unique(user, return_inverse=True)
        users = tuple(users[u] for u in there)
    return Items(items.kind, tuple(items.items[i] for i in rows), users, user.reshape(-1), items.repetition[rows])


Cells = Sequence[tuple[int, Any]]


def _number(cell: object) -> float | None:
    try:
        return float(cell) if isinstance(cell, int | float | str) and not isinstance(cell, bool) else None
    except ValueError:
        return None


def _kind(where: str, cells: Cells) -> str:
    """Numbers are targets, words are labels; where both occur it must be said."""
    words = [(number, cell) for number, cell in cells if _number(cell) is None]
    if words and len(words) < len(cells):
        raise CollectionError(
            f"{where}: {len(cells) - len(words)} cells are numbers, and row {words[0][0]} holds '{words[0][1]}'. Empty "
            "that cell if it is not known, or say what the column is: behind its name :classification or :regression."
        )
    return "classification" if words else "regression"


def _measured(where: str, values: Mapping[str, Cells], items: Items) -> Measured:
    found = []
    for name, cells in values.items():
        numbers = [_number(cell) for _, cell in cells]
        bad = next((i for i, value in enumerate(numbers) if value is None or not math.isfinite(value)), None)
        if bad is not None:
            raise CollectionError(
                f"{where}, row {cells[bad][0]}: '{cells[bad][1]}' in {name} is not a finite number; leave the cell "
                "empty if it is not known."
            )
        column = np.array(numbers, np.float64)
        far = int(np.abs(column).argmax())
        if not np.abs(column[far]) <= LARGEST:
            raise CollectionError(
                f"{where}, row {cells[far][0]}: {column[far]:g} in {name} is beyond ±{LARGEST:g}; answers are FP32: "
                "take another unit."
            )
        if not column.std() > 0:
            raise CollectionError(f"{where}: {name} is {column[0]:g} in every row: there is nothing to learn of it.")
        found.append(column)
    return Measured(
        items.kind,
        items.items,
        items.users,
        items.user,
        items.repetition,
        tuple(target_of(where, name) for name in values),
        np.stack(found, 1),
    )


def target_of(where: str, header: str) -> Target:
    """The target that a header names, with its unit where it has one: `age [years]`.

    Raises:
        CollectionError: that is no name.
    """
    match = UNIT.match(header)
    try:
        return Target(name=match["name"], unit=match["unit"]) if match else Target(name=header)
    except ValidationError as e:
        raise CollectionError(f"{where}: '{header}' cannot be a target's name: 1 to 64 printable characters.") from e


def _labelled(where: str, cells: Cells, items: Items) -> Collection:
    said = [str(cell).strip() for _, cell in cells]
    labels = sorted(set(said))
    if len(labels) < 2:
        raise CollectionError(f"{where} has one label only, '{labels[0]}'; a task needs two.")
    y = np.array([labels.index(word) for word in said], np.int64)
    check_shown_by_two(where, labels, y, items.user, items.users)
    return Collection(items.kind, items.items, items.users, items.user, items.repetition, tuple(labels), y)


def check_shown_by_two(where: str, labels: Sequence[str], y: Rows, user: Rows, users: Sequence[str]) -> None:
    """Raise `CollectionError` for a label that one person of a population alone has; `y` -1 is not known."""
    if len(users) < FEWEST_PEOPLE:
        return
    for c, label in enumerate(labels):
        owners = np.unique(user[y == c])
        if len(owners) == 1:
            raise CollectionError(
                f"{where}: only {users[owners[0]]} has items of '{label}', so nobody is left to learn it from when "
                "they are left out. Give it to two people or more, or leave its cells empty."
            )
