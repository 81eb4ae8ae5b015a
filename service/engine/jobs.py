"""A request's rows on their way through the scheduler, and what comes of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.bundle import Padding
from service.errors import DeadlineExceeded

log = logging.getLogger("headway")

PRIORITY_STEP = 0.05
"""Seconds that one level of priority is worth: a request a level lower that came so much earlier goes first."""
BULK_STEP = 0.5
"""Seconds that a bulk request has waited when it begins to go before predictions."""
LOWEST_PRIORITY = 8

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class BatchReport:
    """Durations of one batch in seconds, and its rows; for metrics."""

    rows: int
    gathering: float
    inference: float
    heads: float


@dataclass(slots=True)
class Result:
    """What a request gets: features `(n, d)`, its heads' scores if they were asked for, and durations in seconds.

    `prediction_id` is set where the answer is remembered for a correction; `advised` names the outputs in which a
    calibration is advised (the one of a model that has one has no name).
    """

    features: NDArray[np.float32]
    scores: NDArray[np.float32] | None
    queue: float
    inference: float
    heads: float
    prediction_id: str | None = None
    advised: tuple[str, ...] = ()


Done = Callable[[Result | Exception], None]


class Job:
    """One request's rows on their way through the scheduler."""

    __slots__ = (
        "bulk", "deadline", "done", "done_rows", "dropped", "heads", "inference", "key", "length", "level", "loop",
        "parts", "queued", "rows", "slots", "taken", "turn", "wait", "x",
    )  # fmt: skip

    def __init__(
        self,
        x: Array,
        slots: NDArray[np.int64] | None,
        done: Done,
        *,
        padding: Padding | None = None,
        timeout: float | None = None,
        priority: int = 0,
        bulk: bool = False,
    ) -> None:
        self.length = 0
        if padding is not None:
            self.length = x.shape[padding.axis]
            x = padded(x, padding)
        self.x, self.slots, self.done, self.bulk = x, slots, done, bulk
        self.loop = asyncio.get_running_loop()
        self.rows = len(x)
        self.taken = self.done_rows = 0
        self.dropped = False
        self.wait = self.inference = self.heads = 0.0
        self.queued = now = time.monotonic()
        self.deadline = float("inf")
        if timeout is not None:
            if timeout <= 0:
                raise DeadlineExceeded("the timeout passed before the request was queued")
            self.deadline = now + timeout
        self.level = BULK_STEP if bulk else PRIORITY_STEP * (1.5 if priority == 0 else min(priority, LOWEST_PRIORITY))
        self.turn = now + self.level
        self.key: Hashable = (x.shape[1:], bulk)
        self.parts: list[tuple[NDArray[np.float32], NDArray[np.float32] | None]] = []

    def cancel(self) -> None:
        """Give up: rows not yet in a batch never run, and `done` is not called."""
        self.dropped, self.done = True, _nobody

    def answered(
        self, features: NDArray[np.float32], scores: NDArray[np.float32] | None, inference: float, heads: float
    ) -> Result | None:
        """Take what one batch made of this request's rows; returns the result once they are all there."""
        self.inference += inference
        self.heads += heads
        if len(features) == self.rows:
            return Result(features, scores, self.wait, self.inference, self.heads)
        self.parts.append((features, scores))
        self.done_rows += len(features)
        if self.done_rows < self.rows:
            return None
        pieces = [part[1] for part in self.parts if part[1] is not None]
        joined = np.concatenate(pieces) if pieces else None
        return Result(np.concatenate([part[0] for part in self.parts]), joined, self.wait, self.inference, self.heads)


Outcome = tuple[Job, Result | Exception]


def _nobody(_: Result | Exception) -> None:
    """Nobody waits for this job any more."""


def padded(x: Array, padding: Padding) -> Array:
    """Fill windows up along their variable axis, so that those of nearly one length share a batch."""
    missing = padding.padded(x.shape[padding.axis]) - x.shape[padding.axis]
    if not missing:
        return x
    widths = [(0, missing if axis == padding.axis else 0) for axis in range(x.ndim)]
    return np.pad(x, widths, constant_values=np.asarray(padding.value, x.dtype))


def late() -> DeadlineExceeded:
    """Return the error of a request whose time ran out in the queue."""
    return DeadlineExceeded("the timeout passed while the request waited")


def resolve(items: Iterable[Outcome]) -> None:
    """Tell each request its outcome, on its event loop."""
    for job, outcome in items:
        job.dropped = True
        done, job.done = job.done, _nobody  # the request holds the job, and the job not the request: no cycle is left
        try:
            done(outcome)
        except Exception:  # one request's answer must not cost its neighbours theirs
            log.exception("answering a request failed")
