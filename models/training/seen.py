"""Which items a run on images, sounds or texts was trained on: kept by their digests, to tell strangers from known."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.data.collections import Collection
from models.files import write_atomically
from models.training.config import TrainingError

__all__ = ["Item", "items_of", "known_of", "note_items", "noted_items", "short_digests", "told_items"]

ITEMS = "items.json"
DIGITS = 16
MOST_TOLD = 10_000
"""Digests in a run's record, and so in its bundle's manifest: of more items the least ones, a sample."""


Item = tuple[str, str, str]
"""Digest, label and user of an item; the user is empty where there are none."""


def items_of(collection: Collection) -> list[Item]:
    """Every item of a collection, in its order."""
    users = collection.users or ("",)
    told = zip(short_digests(collection), collection.y, collection.user, strict=True)
    return [(digest, collection.labels[y], users[u]) for digest, y, u in told]


def short_digests(collection: Collection) -> list[str]:
    """The first digits of every item's sha256, in the collection's order."""
    return [collection.digest_of(i)[:DIGITS] for i in range(len(collection))]


def told_items(items: Sequence[Item]) -> dict[str, Any]:
    """What a record says of the items that a run was trained on."""
    return {"digests": sorted({digest for digest, *_ in items})[:MOST_TOLD]}


def known_of(provenance: Mapping[str, Any], digests: Iterable[str]) -> set[str]:
    """Which of these items a run or bundle was trained on, as far as its record tells."""
    data = provenance.get("data")
    told = data.get("digests", ()) if isinstance(data, Mapping) else ()
    return set(told) & set(digests)


def note_items(folder: Path, items: Sequence[Item]) -> None:
    """Keep all items in a run's folder, in the order of the training, by which its folds were drawn."""
    write_atomically(folder / ITEMS, json.dumps(items).encode() + b"\n")


def noted_items(folder: Path) -> list[Item]:
    """Read what `note_items` kept.

    Raises:
        TrainingError: it is not there.
    """
    try:
        return [(str(d), str(label), str(user)) for d, label, user in json.loads((folder / ITEMS).read_text())]
    except (OSError, ValueError, TypeError) as e:
        raise TrainingError(
            f"{folder} does not say what it was trained on ({ITEMS} cannot be read), as runs of earlier releases; "
            "train it anew."
        ) from e
