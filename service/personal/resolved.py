"""The head that a row gets."""

from __future__ import annotations

from dataclasses import dataclass

from service.engine.head_table import SHARED
from service.errors import UnknownUser

POINTERS_KEPT = 1_000_000
"""Users whose active version is remembered."""


@dataclass(frozen=True, slots=True)
class ResolvedHead:
    """The head that a row gets: its slot (in a front end its handle), and the version it is (0 = shared).

    `own`: labels of the user's own that it knows beside the bundle's.
    """

    slot: int
    version: int
    own: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """`personal` or `shared`, as answers say it."""
        return "personal" if self.version else "shared"


SHARED_HEAD = ResolvedHead(SHARED, 0)


def no_head(user: str, model: str) -> UnknownUser:
    """Return the error of a request that wants a personal head and nothing else."""
    return UnknownUser(f"user {user!r} has no head for model {model!r}; calibrate first or use fallback 'shared'")
