"""Users of whom something is kept in memory, by the name that changes in a shared store have for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from service.personal.records import Scope


class KnownUsers:
    """Finds users by keyed hash; the one who was added longest ago makes room for a new one.

    Args:
        who: the hash (`Store.who`).
        most: how many are kept.
        on_eviction: called with one who is found no more, so that nothing is kept of those who cannot be found.
    """

    def __init__(self, who: Callable[[Scope, str], int], most: int, on_eviction: Callable[[Scope, str], None]) -> None:
        self._who, self._most, self._on_eviction = who, most, on_eviction
        self._known: OrderedDict[int, tuple[Scope, str]] = OrderedDict()

    def add(self, scope: Scope, user: str) -> None:
        """Keep a user in mind."""
        who = self._who(scope, user)
        self._known[who] = (scope, user)
        self._known.move_to_end(who)
        if len(self._known) > self._most:
            _, oldest = self._known.popitem(last=False)
            self._on_eviction(*oldest)

    def find(self, who: int) -> tuple[Scope, str] | None:
        """Return the user of a hash, or None if nothing is kept of them."""
        return self._known.get(who)

    def all(self) -> list[tuple[Scope, str]]:
        """Return all who are known."""
        return list(self._known.values())
