"""Which columns are to be learned as what: `--task NAME=COLUMN[,COLUMN…][:classification|:regression]`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from exporters.bundle_outputs import MOST_OUTPUTS, OUTPUT_PATTERN
from models.data.collections import CollectionError

__all__ = ["Ask", "Kind", "asks"]

Kind = Literal["classification", "regression"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Ask:
    """A task as it is asked for: the output's name, the columns that hold its answers, and what they are.

    `kind` None: what the column holds tells, words or numbers. Several columns are the targets of one regression.
    """

    name: str
    columns: tuple[str, ...]
    kind: Kind | None = None


def asks(told: Sequence[str]) -> tuple[Ask, ...]:
    """Read tasks as the command line gives them.

    Raises:
        CollectionError: one is not of the form, a name cannot be an output's, or is given twice.
    """
    found = tuple(map(_ask, told))
    names = [ask.name for ask in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise CollectionError(f"--task names '{twice[0]}' twice; every task has a name of its own.")
    if len(found) > MOST_OUTPUTS:
        raise CollectionError(f"There are {len(found)} tasks; a model has at most {MOST_OUTPUTS}.")
    return found


def _ask(text: str) -> Ask:
    said, colon, kind = text.rpartition(":")
    known = next((each for each in KINDS if each == kind), None)
    if not colon or known is None:
        said, known = text, None
    name, equals, of = said.partition("=")
    columns = tuple(column.strip() for column in (of if equals else name).split(","))
    if not all(columns) or (len(columns) > 1 and not equals):
        raise CollectionError(
            f"--task {text}: NAME=COLUMN was expected, or NAME=COLUMN,COLUMN for several targets, and perhaps "
            ":classification or :regression behind it."
        )
    if not re.fullmatch(OUTPUT_PATTERN, name):
        raise CollectionError(
            f"--task {text}: '{name}' cannot be the name of an output: lower-case letters, digits, _ and -, at most "
            f"32; give it one, as --task kind={of if equals else name}."
        )
    if len(set(columns)) < len(columns):
        raise CollectionError(f"--task {text}: a column is named twice.")
    if len(columns) > 1 and known == "classification":
        raise CollectionError(f"--task {text}: a classification has one column; several are targets of a regression.")
    return Ask(name, columns, "regression" if len(columns) > 1 else known)
