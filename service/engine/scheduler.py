"""One bounded queue of rows and one batch for everybody: greedy batching on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.errors import DeadlineExceeded, TooManyRequests, Unavailable

log = logging.getLogger("headway")

BULK_TURN = 8
"""While both lanes wait, one batch in this many is taken from the bulk lane."""

Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]
ApplyHeads = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class BatchReport:
    """Durations of one batch in seconds, and its rows; for metrics."""

    rows: int
    inference: float
    heads: float
    pending: int


@dataclass(slots=True)
class Result:
    """What a request gets: features `(n, d)`, logits `(n, K)` if heads were asked for, and durations in seconds."""

    features: NDArray[np.float32]
    logits: NDArray[np.float32] | None
    queue: float
    inference: float
    heads: float


@dataclass(slots=True, eq=False)
class _Job:
    x: NDArray[np.float32]
    slots: NDArray[np.int64] | None
    future: asyncio.Future[Result]
    loop: asyncio.AbstractEventLoop
    deadline: float
    queued: float
    bulk: bool
    taken: int = 0
    done: int = 0
    dropped: bool = False
    wait: float = 0.0
    inference: float = 0.0
    heads: float = 0.0
    parts: list[tuple[NDArray[np.float32], NDArray[np.float32] | None]] = field(default_factory=list)


class Scheduler:
    """Batches rows of all users for one runtime.

    When the runtime is free it takes what waits, up to `max_batch` rows, without waiting for more. A request larger
    than that is split and joined again. Bulk rows (calibration, extraction) have a lane of their own that gives way to
    predictions. A request whose client went away or whose deadline passed is dropped before the forward.
    """

    def __init__(
        self,
        name: str,
        forward: Forward,
        apply_heads: ApplyHeads,
        *,
        max_batch: int = 64,
        queue_rows: int = 16384,
        on_batch: Callable[[BatchReport], None] = lambda _: None,
    ) -> None:
        self._forward, self._apply_heads, self._on_batch = forward, apply_heads, on_batch
        self._max_batch, self._queue_rows = max_batch, queue_rows
        self._lanes: tuple[deque[_Job], deque[_Job]] = (deque(), deque())
        self._pending = [0, 0]
        self._turn = 0
        self._drain_rate = 0.0
        self._condition = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name=f"engine-{name}", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Rows that wait."""
        return sum(self._pending)

    async def submit(
        self,
        x: NDArray[np.float32],
        slots: NDArray[np.int64] | None,
        *,
        timeout: float | None = None,
        bulk: bool = False,
    ) -> Result:
        """Queue rows `x (n, …)`, each with the slot of its head (None: features only), and wait for their results.

        Raises:
            TooManyRequests: the lane is full.
            DeadlineExceeded: `timeout` seconds passed before the forward.
            Unavailable: the scheduler has been stopped.
        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        deadline = float("inf") if timeout is None else now + timeout
        job = _Job(x, slots, loop.create_future(), loop, deadline, now, bulk)
        with self._condition:
            if self._stopping:
                raise Unavailable("the model is being unloaded", retry_after=1)
            if self._pending[bulk] and self._pending[bulk] + len(x) > self._queue_rows:
                wait = self._pending[bulk] / self._drain_rate if self._drain_rate else 1.0
                raise TooManyRequests(
                    f"{self._pending[bulk]} rows wait already and {self._queue_rows} may; try again later",
                    retry_after=wait,
                )
            self._lanes[bulk].append(job)
            self._pending[bulk] += len(x)
            self._condition.notify()
        try:
            return await job.future
        finally:
            job.dropped = True

    def stop(self, timeout: float = 10.0) -> None:
        """Answer what is queued, then end the thread."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join(timeout)

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self.pending and not self._stopping:
                    self._condition.wait()
                if not self.pending:
                    return
                batch, expired = self._take()
            if expired:
                self._deliver(
                    [(job, DeadlineExceeded("the timeout passed while the request waited")) for job in expired]
                )
            if batch:
                self._run(batch)

    def _take(self) -> tuple[list[tuple[_Job, int, int]], list[_Job]]:
        """Take up to `max_batch` rows from one lane; called with the lock held."""
        self._turn += 1
        bulk = bool(self._pending[1]) and (not self._pending[0] or self._turn % BULK_TURN == 0)
        lane = self._lanes[bulk]
        batch: list[tuple[_Job, int, int]] = []
        expired: list[_Job] = []
        room, now = self._max_batch, time.monotonic()
        while lane and room:
            job = lane[0]
            left = len(job.x) - job.taken
            late = job.deadline <= now and not job.taken
            if job.dropped or job.future.cancelled() or late:
                lane.popleft()
                self._pending[bulk] -= left
                if late:
                    expired.append(job)
                continue
            rows = min(left, room)
            if not job.taken:
                job.wait = now - job.queued
            batch.append((job, job.taken, job.taken + rows))
            job.taken += rows
            room -= rows
            self._pending[bulk] -= rows
            if job.taken == len(job.x):
                lane.popleft()
        return batch, expired

    def _run(self, batch: list[tuple[_Job, int, int]]) -> None:
        begin = time.monotonic()
        try:
            pieces = [job.x[lo:hi] for job, lo, hi in batch]
            features = self._forward(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
            forwarded = time.monotonic()
            logits, rows = self._heads(batch, features)
        except Exception as error:
            self._deliver([(job, error) for job, _, _ in batch])
            return
        end = time.monotonic()
        rate = len(features) / max(end - begin, 1e-9)
        self._drain_rate = rate if not self._drain_rate else 0.9 * self._drain_rate + 0.1 * rate
        try:
            self._on_batch(BatchReport(len(features), forwarded - begin, end - forwarded, self.pending))
        except Exception:  # metrics must not end the engine's thread, on which every request waits
            log.exception("the report of a batch failed")
        finished: list[tuple[_Job, Result | Exception]] = []
        at = 0
        for job, lo, hi in batch:
            n = hi - lo
            own = None if job.slots is None or logits is None else logits[rows[at : at + n]]
            job.parts.append((features[at : at + n], own))
            job.done += n
            job.inference += forwarded - begin
            job.heads += end - forwarded
            at += n
            if job.done == len(job.x):
                finished.append((job, _joined(job)))
        self._deliver(finished)

    def _heads(
        self, batch: list[tuple[_Job, int, int]], features: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.int64]]:
        """Apply heads to the rows that want one; returns logits, and where in them each row of the batch is."""
        slots = [np.full(hi - lo, -1, np.int64) if job.slots is None else job.slots[lo:hi] for job, lo, hi in batch]
        every = slots[0] if len(slots) == 1 else np.concatenate(slots)
        wanting = every >= 0
        where = np.cumsum(wanting) - 1
        if wanting.all():
            return self._apply_heads(features, every), where
        if not wanting.any():
            return None, where
        return self._apply_heads(features[wanting], every[wanting]), where

    @staticmethod
    def _deliver(outcomes: Sequence[tuple[_Job, Result | Exception]]) -> None:
        """Hand results over with one wake-up of each loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Job, Result | Exception]]] = {}
        for job, outcome in outcomes:
            by_loop.setdefault(job.loop, []).append((job, outcome))
        for loop, items in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(_resolve, items)


def _joined(job: _Job) -> Result:
    if len(job.parts) == 1:
        features, logits = job.parts[0]
    else:
        features = np.concatenate([part[0] for part in job.parts])
        pieces = [part[1] for part in job.parts if part[1] is not None]
        logits = np.concatenate(pieces) if pieces else None
    return Result(features, logits, job.wait, job.inference, job.heads)


def _resolve(items: list[tuple[_Job, Result | Exception]]) -> None:
    for job, outcome in items:
        if job.future.done():
            continue
        job.dropped = True
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
