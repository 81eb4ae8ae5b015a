"""What may be kept of a user, and windows as they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from models.heads.statistics import Statistics
from service.errors import Unprocessable
from service.personal.records import StoreError

RETENTION = ("none", "statistics", "features", "inputs")
"""Levels, each keeping what the one before keeps and more: heads, statistics, features, raw windows."""
ADAPT = ("off", "suggest", "on")
LONGEST_HALF_LIFE = 36_500.0
"""Days."""
MOST_WINDOWS = 8192
"""Windows whose features or inputs are kept of a user in a feature space: of enrolled ones, and behind a version."""


@dataclass(frozen=True, slots=True)
class UserSettings:
    """What a user chose.

    Attributes:
        retention: one of `RETENTION`.
        adapt: one of `ADAPT`: whether the head follows unlabelled windows.
        attributes: the caller's own metadata, a JSON object.
        half_life: days after which a labelled window counts half in an update; 0: windows do not age.
    """

    retention: str = "statistics"
    adapt: str = "off"
    attributes: dict[str, Any] = field(default_factory=dict)
    half_life: float = 0.0

    @classmethod
    def of(cls, given: dict[str, Any]) -> UserSettings:
        """Read settings as a file has them.

        Raises:
            Unprocessable: they are none.
        """
        found = cls(
            **{name: given[name] for name in ("retention", "adapt", "attributes", "half_life") if name in given}
        )
        chosen = found.retention in RETENTION and found.adapt in ADAPT and isinstance(found.attributes, dict)
        if not chosen or not isinstance(found.half_life, int | float) or not 0 <= found.half_life <= LONGEST_HALF_LIFE:
            raise Unprocessable(f"the user's settings cannot be read: retention is one of {', '.join(RETENTION)}")
        return found

    def keeps(self, level: str) -> bool:
        """Whether what `level` stands for is kept."""
        return RETENTION.index(self.retention) >= RETENTION.index(level)

    def require(self, level: str, what: str) -> None:
        """Refuse what needs more than is kept.

        Raises:
            Unprocessable: naming the level that `what` needs.
        """
        if not self.keeps(level):
            raise Unprocessable(
                f"{what} needs retention {level!r}, and this user's is {self.retention!r}; "
                f'PUT {{"retention": "{level}"}} to the user first'
            )


@dataclass(frozen=True, slots=True)
class Kept:
    """Labelled windows of a user in one feature space.

    Attributes:
        z: features `(n, d)` float32.
        y: class indices `(n,)`.
        repetition: repetition ids `(n,)`.
        x: raw windows `(n, …)`, or None where only features are kept.
    """

    z: NDArray[np.float32]
    y: NDArray[np.int64]
    repetition: NDArray[np.int64]
    x: NDArray[Any] | None = None

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.y)

    def at(self, which: NDArray[Any]) -> Kept:
        """Return some of the windows, by index or mask."""
        x = None if self.x is None else self.x[which]
        return Kept(self.z[which], self.y[which], self.repetition[which], x)

    def counts(self) -> list[list[int]]:
        """Windows by class and repetition: `[class, repetition, number]` for each of both that there is."""
        pairs, numbers = np.unique(np.stack([self.y, self.repetition], 1), axis=0, return_counts=True)
        return [[int(c), int(r), int(n)] for (c, r), n in zip(pairs.tolist(), numbers.tolist(), strict=True)]

    def without_inputs(self) -> Kept:
        """Return the same, features only."""
        return replace(self, x=None)

    def later_than(self, others: Kept) -> Kept:
        """Return the same with repetition ids behind those of `others`."""
        first = int(others.repetition.max()) + 1 if len(others) else 0
        return replace(self, repetition=np.unique(self.repetition, return_inverse=True)[1].astype(np.int64) + first)

    def statistics(self, classes: int, personal: int) -> Statistics:
        """Summarise the windows in the first `personal` features."""
        return Statistics.of(self.z[:, :personal], self.y, self.repetition, classes)

    def to_bytes(self) -> bytes:
        """Encode as safetensors."""
        arrays: dict[str, NDArray[Any]] = {
            "z": np.ascontiguousarray(self.z, np.float32),
            "y": np.asarray(self.y, np.int64),
            "repetition": np.asarray(self.repetition, np.int64),
        }
        if self.x is not None:
            arrays["x"] = np.ascontiguousarray(self.x)
        return safetensors.numpy.save(arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> Kept:
        """Decode what `to_bytes` wrote.

        Raises:
            StoreError: the bytes are something else.
        """
        try:
            t = safetensors.numpy.load(data)
            return cls(t["z"], t["y"], t["repetition"], t.get("x"))
        except (safetensors.SafetensorError, KeyError) as e:
            raise StoreError(f"windows kept of a user cannot be read: {e}") from e


def joined(parts: Sequence[Kept]) -> Kept | None:
    """Join windows in their order; None for no parts. Inputs are kept only where all parts have them, in one shape."""
    if not parts:
        return None
    inputs = [p.x for p in parts if p.x is not None]
    whole = len(inputs) == len(parts) and len({x.shape[1:] for x in inputs}) == 1
    return Kept(
        np.concatenate([p.z for p in parts]),
        np.concatenate([p.y for p in parts]),
        np.concatenate([p.repetition for p in parts]),
        np.concatenate(inputs) if whole else None,
    )
