"""Whose rows front ends hand to the primary, and what they hand over."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from service.frontends.channel import Channel, ChannelClosed
from service.frontends.frontend import Frontend
from service.personal.following import Following
from service.personal.observations import Output, observed_from


class Observing:
    """The primary's side of observations; tells every front end who is followed and who is advised to calibrate."""

    def __init__(self, following: Following, frontends: Callable[[], Iterable[Frontend]]) -> None:
        self._observations, self._frontends = following.observations, frontends
        following.changed, following.advised = self._changed, self._advised

    def begin(self, channel: Channel) -> None:
        """Tell a front end that starts."""
        channel.post("observe", {"added": list(self._observations.wanted), "gone": []})
        channel.post("advise", {"to": list(self._observations.advised), "now": True})

    def observed(self, content: dict[str, Any], fds: list[int]) -> None:
        """Take rows that a front end has answered."""
        who, rows = observed_from(content)
        if (who[0].model, who[1]) in self._observations.wanted:
            self._observations.put(who, rows)

    def _changed(self, added: list[tuple[str, str]], gone: list[tuple[str, str]]) -> None:
        self._tell("observe", {"added": added, "gone": gone})

    def _advised(self, output: Output, now: bool) -> None:
        self._tell("advise", {"to": [output], "now": now})

    def _tell(self, do: str, content: dict[str, Any]) -> None:
        for frontend in self._frontends():
            with contextlib.suppress(ChannelClosed):
                frontend.channel.post(do, content)
