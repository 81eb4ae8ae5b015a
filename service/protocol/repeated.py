"""JSON headers that were decoded before: a client that streams windows sends the same one again and again.

What a header asks for is kept by the header's bytes with the user cut out, so that a thousand users of one application
share one entry. Only what is frequent is kept: one binary numeric tensor, with its data behind it.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from service.protocol import inputs
from service.protocol.parameters import Parameters

KEPT = 4096
LONGEST = 4096
_NAMES = (b'"user_id":"', b'"user_id": "')

T = TypeVar("T")


class _Key(NamedTuple):
    """A header without its user, and where in it the user was (-1: it names none)."""

    rest: bytes
    at: int


def cut(header: bytes) -> tuple[_Key, bytes | None]:
    """Cut the text of the user out of a header; None where it names none, or not in a way that can be cut."""
    for name in _NAMES:
        found = header.find(name)
        if found >= 0:
            begin = found + len(name)
            end = header.find(b'"', begin)
            user = header[begin:end]
            if end < 0 or b"\\" in user:  # else what is between the quotes is the user as it is
                break
            return _Key(header[:begin] + header[end:], begin), user
    return _Key(header, -1), None


class RepeatedHeaders(Generic[T]):
    """What headers ask for, by their bytes; belongs to the event loop."""

    def __init__(self) -> None:
        self._known: dict[_Key, tuple[Parameters, T]] = {}

    def find(self, header: bytes) -> tuple[Parameters, T] | None:
        """Return what was kept of a header like this, with this one's user.

        Raises:
            InvalidRequest: the user is not one.
        """
        key, user = cut(header)
        found = self._known.get(key)
        if found is None or user is None:
            return found
        try:
            name = user.decode()
        except UnicodeDecodeError:
            return None  # whoever reads all of it says what is wrong
        return found[0].of_user(inputs.user_id(name)), found[1]

    def keep(self, header: bytes, asked: Parameters, plan: T) -> None:
        """Keep what a header was found to ask for."""
        # Nothing else in it may turn out to be the user: no second one, and no name spelt with escapes.
        if len(header) > LONGEST or b"\\" in header or header.count(b"user_id") > 1:
            return
        key, user = cut(header)
        if (None if user is None else user.decode()) != asked.user_id:
            return
        if len(self._known) >= KEPT:
            self._known.clear()
        self._known[key] = asked, plan
