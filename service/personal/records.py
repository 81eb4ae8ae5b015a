"""What goes into the store and comes out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import safetensors
import safetensors.numpy

from exporters.bundle_outputs import OUTPUT_MARK
from models.heads.head import Head

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a user's heads are valid."""

    model: str
    feature_space: str
    tenant: str = "default"

    @property
    def output(self) -> str:
        """Which of several outputs its heads are of; empty for the first, and where there is one."""
        return output_of(self.feature_space)


def output_of(feature_space: str) -> str:
    """Return the output that a feature space, as scopes name it, is of; empty for the first, and where there is one."""
    return feature_space.rpartition("-")[0].partition(OUTPUT_MARK)[2]


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version to be committed.

    `active` moves the pointer to it; `base` lets the next update add to its statistics; `revision` is the user's that
    it was made from (0: there was none), so that nothing that another service did meanwhile is lost; `also` runs in the
    same transaction, with the version's number.
    """

    calibration_id: str
    head: Head
    statistics: bytes | None
    report: dict[str, Any]
    active: bool
    base: bool
    idempotency_key: str | None = None
    request_digest: str | None = None
    revision: int | None = None
    also: Callable[[AsyncConnection, int], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class User:
    """A user's pointers and times (Unix seconds)."""

    name: str
    active: int
    base: int
    last: int
    created: float
    updated: float
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Erasure:
    """What an erasure did: rows deleted, and whether logs were truncated (None: that is the server's)."""

    rows: int
    log_truncated: bool | None


@dataclass(frozen=True, slots=True)
class Version:
    """A stored version without its arrays."""

    version: int
    calibration_id: str
    created: float
    digest: str
    report: dict[str, Any]
    request_digest: str | None


class Kind(IntEnum):
    """What a change in the store means for what is kept in memory: a pointer moved, heads or all are no more."""

    MOVED = 1
    DROPPED = 2
    ERASED = 3


OnChanges = Callable[[Sequence[tuple[int, Kind]]], None]
"""Takes changes of heads by any service: the keyed hash of whose, and what happened."""

OWN_LABELS = "own_labels"
"""Key of a user's own labels in the metadata of a stored head."""


class StoreError(RuntimeError):
    """The store is out of reach or holds what it should not."""


class UserChanged(RuntimeError):
    """Another service changed the user between what was read and what was to be written; nothing was."""

    def __init__(self) -> None:
        super().__init__("another service changed this user meanwhile; nothing was stored; try again")


class NoSuchVersion(LookupError):
    """The user has no version of that number."""


class VersionIsActive(RuntimeError):
    """The active version cannot be deleted."""


def head_to_bytes(head: Head) -> bytes:
    """Encode a head as safetensors in float32."""
    arrays = {"weight": head.weight, "bias": head.bias}
    if head.floors is not None:
        arrays["floors"] = head.floors
    metadata = {OWN_LABELS: orjson.dumps(head.own).decode()} if head.own else None
    return safetensors.numpy.save(
        {name: np.ascontiguousarray(value, np.float32) for name, value in arrays.items()}, metadata
    )


def head_from_bytes(data: bytes, digest: str) -> Head:
    """Decode a head and check its digest.

    Raises:
        StoreError: the bytes are not those that were written.
    """
    if hashlib.sha256(data).hexdigest() != digest:
        raise StoreError("a stored head does not match its digest; it is not served")
    try:
        tensors = safetensors.numpy.load(data)
        own = _own_labels(data)
    except (safetensors.SafetensorError, ValueError) as e:
        raise StoreError(f"a stored head cannot be read: {e}") from e
    return Head(tensors["weight"], tensors["bias"], tensors.get("floors"), own)


def _own_labels(data: bytes) -> tuple[str, ...]:
    """Read the labels of a user's own from the header of a safetensors file, which its reader keeps to itself."""
    length = int.from_bytes(data[:8], "little")
    metadata = orjson.loads(data[8 : 8 + length]).get("__metadata__") or {}
    return tuple(orjson.loads(metadata.get(OWN_LABELS, "[]")))
