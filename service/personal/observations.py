"""Rows of users who let their head follow them, on their way from answers to whoever learns from them."""

from __future__ import annotations

import base64
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.loaded import LoadedModel
from service.personal.records import Scope
from service.personal.resolved import ResolvedHead

Rows = NDArray[np.float32]
Who = tuple[Scope, str]
Output = tuple[str, str, str]
"""A model, a user, and which output of the model (`Scope.output`)."""

ROWS_KEPT = 512
"""Rows of one user that wait at most."""
USERS_KEPT = 1000
"""Users whose rows wait at most."""
BYTES_KEPT = 64 * 2**20
"""Of rows that wait, of all users together."""


def observed_message(who: Who, rows: Rows) -> dict[str, Any]:
    """Rows of a user as a message between processes has them."""
    scope, user = who
    data = base64.b64encode(np.ascontiguousarray(rows, "<f4").tobytes()).decode("ascii")
    return {"scope": list(astuple(scope)), "user": user, "rows": data, "features": rows.shape[1]}


def observed_from(message: dict[str, Any]) -> tuple[Who, Rows]:
    """Read what `observed_message` wrote."""
    rows = np.frombuffer(base64.b64decode(message["rows"]), "<f4").reshape(-1, message["features"])
    return (Scope(*message["scope"]), message["user"]), rows


class Observations:
    """A bounded queue of features by user; belongs to the event loop. Whoever predicts never waits for it.

    Where it is full the oldest rows are dropped, first those of the user who has been silent longest.

    Attributes:
        wanted: models and users that are observed; while it is empty nothing is.
        advised: of these, to whom a new calibration of an output is advised: their answers say so.
        dropped: rows that were.
        nbytes: of rows that wait.
        ready: called when a user has `enough` rows.
    """

    def __init__(self, enough: int, ready: Callable[[Who], None]) -> None:
        self.wanted: set[tuple[str, str]] = set()
        self.advised: set[Output] = set()
        self.dropped = 0
        self.enough, self.ready = enough, ready
        self._rows: OrderedDict[Who, deque[Rows]] = OrderedDict()
        self._count: dict[Who, int] = {}
        self.nbytes = 0

    def saw(
        self, model: LoadedModel, users: Sequence[str | None], heads: Sequence[ResolvedHead], features: Rows
    ) -> None:
        """Take the features `(n, d)` of rows that personal heads have answered, in the order of the request."""
        if len(users) == 1 or users.count(users[0]) == len(users):
            if users[0] is not None and heads[0].version and (model.name, users[0]) in self.wanted:
                self.put((model.scope, users[0]), features)
            return
        for user in dict.fromkeys(users):
            if user is not None and (model.name, user) in self.wanted:
                own = [i for i, (u, h) in enumerate(zip(users, heads, strict=True)) if u == user and h.version]
                if own:
                    self.put((model.scope, user), features[own])

    def advised_to(self, model: LoadedModel, user: str | None) -> tuple[str, ...]:
        """Name the outputs of a model in which a new calibration is advised to a user."""
        if user is None:
            return ()
        return tuple(o.output for o in model.each if (model.name, user, o.scope.output) in self.advised)

    def put(self, who: Who, features: Rows) -> None:
        """Queue rows of one user."""
        waiting = self._rows.setdefault(who, deque())
        self._rows.move_to_end(who)
        # A copy: the rows are a part of a batch, which would stay in memory with them.
        waiting.append(features[-ROWS_KEPT:].copy())
        self.nbytes += waiting[-1].nbytes
        count = self._count.get(who, 0) + len(waiting[-1])
        while count > ROWS_KEPT and len(waiting) > 1:
            gone = waiting.popleft()
            count -= len(gone)
            self.dropped += len(gone)
            self.nbytes -= gone.nbytes
        self._count[who] = count
        while len(self._rows) > USERS_KEPT or (self.nbytes > BYTES_KEPT and len(self._rows) > 1):
            silent = next(iter(self._rows))
            self.dropped += self._count[silent]
            self.take(silent)
        if count >= self.enough:
            self.ready(who)

    def take(self, who: Who) -> Rows | None:
        """Take a user's rows out of the queue, in order; None where there are none."""
        waiting = self._rows.pop(who, None)
        self._count.pop(who, None)
        if not waiting:
            return None
        self.nbytes -= sum(rows.nbytes for rows in waiting)
        return np.concatenate(waiting)

    def forget(self, user: str) -> None:
        """Drop the rows of a user of any model."""
        for who in [w for w in self._rows if w[1] == user]:
            self.take(who)
