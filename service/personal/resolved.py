"""The head that a row gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.engine.head_table import SHARED
from service.errors import UnknownUser
from service.loaded import LoadedModel

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


class Heads(Protocol):
    """Finds the heads of requests, and holds those that wait for their rows."""

    def resident(
        self, model: LoadedModel, users: Sequence[str | None], version: int | None, fallback: str
    ) -> list[ResolvedHead] | None:
        """Hold the heads of `users` if all are known here, without waiting; else None, and `fetched` finds them."""

    def release(self, model: LoadedModel, heads: Sequence[ResolvedHead]) -> None:
        """Let go of what `resident` or `fetched` held."""

    def preferred(self, candidates: Sequence[LoadedModel], user: str) -> LoadedModel | None:
        """Which of several versions a user has a head in, newest first; None if that is not known here."""

    async def has_head(self, model: LoadedModel, user: str) -> bool:
        """Whether a personal head is active for a user in a model's feature space."""

    async def fetched(
        self, model: LoadedModel, users: Sequence[str | None], version: int | None, fallback: str
    ) -> list[ResolvedHead]:
        """Hold the heads of `users` (None: the shared one), waiting for what is not known here."""
