"""Answers that may still be corrected: the features of some predictions, for a short time, within bounded memory."""

from __future__ import annotations

import base64
import secrets
import time
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.loaded import LoadedModel
from service.personal.records import Scope

SECONDS = 15 * 60.0
"""For how long a prediction can be corrected."""
MOST_BYTES = 32 * 1024 * 1024
"""Bytes of answers in a process; past it the oldest go first."""
ANSWER_BYTES = 1024
"""What an answer takes beside its features, at most: its id, its user's, and the objects around them."""


class Answer(NamedTuple):
    """A prediction's features `(n, d)` in a feature space, whose it was, and until when it is kept (monotonic s)."""

    scope: Scope
    user: str
    features: NDArray[np.float32]
    until: float


class Answered:
    """The answers of one process that asked for `feedback`; belongs to its event loop.

    Args:
        process: number of the process, which an id begins with: 0 for the one that keeps the store.
        most_bytes: bytes of answers that are kept.
        seconds: for how long.
    """

    def __init__(self, process: int = 0, most_bytes: int = MOST_BYTES, seconds: float = SECONDS) -> None:
        self._process, self._most_bytes, self._seconds = process, most_bytes, seconds
        self._kept: OrderedDict[str, Answer] = OrderedDict()
        self.nbytes = 0

    def keep(self, model: LoadedModel, user: str | None, features: NDArray[np.float32]) -> str:
        """Remember an answer; returns its `prediction_id`."""
        assert user is not None
        number = f"{self._process}-{secrets.token_hex(12)}"
        self._expire()
        # A copy: the features are a part of a batch, which would stay with it.
        answer = Answer(model.scope, user, np.array(features, np.float32), time.monotonic() + self._seconds)
        self._kept[number] = answer
        self.nbytes += ANSWER_BYTES + answer.features.nbytes
        while self.nbytes > self._most_bytes:
            self._drop(next(iter(self._kept)))
        return number

    def find(self, number: str) -> Answer | None:
        """Return an answer that is still remembered."""
        self._expire()
        return self._kept.get(number)

    def forget(self, user: str) -> None:
        """Drop all answers to a user."""
        for number in [number for number, answer in self._kept.items() if answer.user == user]:
            self._drop(number)

    def _expire(self) -> None:
        now = time.monotonic()
        while self._kept:
            number = next(iter(self._kept))
            if self._kept[number].until > now:
                return
            self._drop(number)

    def _drop(self, number: str) -> None:
        self.nbytes -= ANSWER_BYTES + self._kept.pop(number).features.nbytes


def message_of(answer: Answer) -> dict[str, Any]:
    """Write an answer as JSON, for another process."""
    data = base64.b64encode(answer.features.tobytes()).decode()
    scope = [answer.scope.model, answer.scope.feature_space, answer.scope.tenant]
    return {"scope": scope, "user": answer.user, "shape": answer.features.shape, "features": data}


def answer_of(message: dict[str, Any]) -> Answer:
    """Read what `message_of` wrote; how long it is still kept there is not known here."""
    features = np.frombuffer(base64.b64decode(message["features"]), np.float32).reshape(message["shape"])
    return Answer(Scope(*message["scope"]), message["user"], features, 0.0)


def process_of(number: str) -> int | None:
    """Return which process a `prediction_id` is of, or None where it is not one."""
    process, dash, rest = number.partition("-")
    return int(process) if dash and rest and process.isdecimal() and len(process) <= 4 else None
