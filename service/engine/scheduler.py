"""One bounded queue of rows a model and one batch for everybody: greedy batching, on the event loop or a thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from exporters.bundle import Padding
from service.engine.jobs import Array, BatchReport, Done, Job, Outcome, Result, late, resolve
from service.errors import TooManyRequests, Unavailable

log = logging.getLogger("headway")

BULK_PATIENCE = 10
"""How many times longer than predictions bulk rows may wait."""
TURN_SECONDS = 0.004
"""About how long one batch may hold the event loop, when it runs there."""


class Forward(Protocol):
    """Runs rows, and the true lengths `(n,)` of padded ones, through the backbone: `(n, d)`."""

    def __call__(self, x: Array, lengths: NDArray[np.int64] | None = None, /) -> NDArray[np.float32]:
        """Return features."""


ApplyHeads = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]


Piece = tuple[Job, int, int]


class Scheduler:
    """Batches rows of all users for one runtime.

    When the runtime is free it takes what waits, up to `max_batch` rows, without waiting for more (`max_delay` seconds
    if that is set). A request larger than that is split and joined again. Each request has a turn: the time it came,
    later by `PRIORITY_STEP` for each level of priority below the highest and by `BULK_STEP` for bulk rows (calibration,
    extraction); the earliest turn goes first, so that lower levels give way and still age. Rows of one batch have one
    input signature. A request whose client went away or whose deadline passed is dropped before the forward.

    `inline` runs batches on the event loop itself, at the end of the turn in which the rows came: for models whose
    forward is shorter than handing rows to a thread and back. Others have a thread of their own.

    `level`, a number in memory that others may read, is kept at the rows that wait.
    """

    def __init__(
        self,
        name: str,
        forward: Forward,
        apply_heads: ApplyHeads,
        *,
        max_batch: int = 64,
        queue_rows: int = 4096,
        queue_seconds: float = 2.0,
        max_delay: float = 0.0,
        padding: Padding | None = None,
        inline: bool = False,
        on_batch: Callable[[BatchReport], None] = lambda _: None,
        level: memoryview | None = None,
    ) -> None:
        self._forward, self._apply_heads, self._on_batch = forward, apply_heads, on_batch
        self._max_batch, self._max_delay, self._inline = max_batch, max_delay, inline
        self._queue_rows, self._queue_seconds = queue_rows, queue_seconds
        self._padding = padding
        self._lanes: dict[Hashable, deque[Job]] = {}
        self._pending = [0, 0]
        self._level = memoryview(bytearray(8)).cast("q") if level is None else level
        self._row_seconds = 0.0
        self._condition = threading.Condition()
        self._stopping = False
        self._turn_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None
        if not inline:
            self._thread = threading.Thread(target=self._work, name=f"engine-{name}", daemon=True)
            self._thread.start()

    @property
    def pending(self) -> int:
        """Rows that wait."""
        return self._pending[0] + self._pending[1]

    @property
    def max_batch(self) -> int:
        """Most rows of one forward."""
        return self._max_batch

    @property
    def inline(self) -> bool:
        """Whether batches run on the event loop."""
        return self._inline

    def enqueue(
        self,
        x: Array,
        slots: NDArray[np.int64] | None,
        done: Done,
        *,
        timeout: float | None = None,
        priority: int = 0,
        bulk: bool = False,
    ) -> Job:
        """Queue rows `x (n, …)`, each with the slot of its head (None: features only); call on the event loop.

        Args:
            x: the rows.
            slots: `(n,)`, of several outputs `(n, outputs)`, or None.
            done: called on the event loop with the result or the error, once, unless the job is cancelled.
            timeout: seconds after which the request is not worth running.
            priority: 1 is the highest level; 0 is the usual one, between 1 and 2.
            bulk: a request that gives way to predictions.

        Raises:
            TooManyRequests: the queue is full.
            DeadlineExceeded: there is no time left.
            Unavailable: the scheduler has been stopped.
        """
        job = Job(x, slots, done, padding=self._padding, timeout=timeout, priority=priority, bulk=bulk)
        lane = (job.key, job.level)
        with self._condition:
            if self._stopping:
                raise Unavailable("the model is being unloaded", retry_after=1)
            waiting = self._pending[bulk]
            if waiting and waiting + job.rows > (most := self._most_rows(bulk)):
                raise TooManyRequests(
                    f"{waiting} rows wait already and {most} may; try again later",
                    retry_after=waiting * self._row_seconds or 1.0,
                )
            queue = self._lanes.get(lane)
            if queue is None:
                queue = self._lanes[lane] = deque()
            queue.append(job)
            self._pending[bulk] += job.rows
            self._level[0] = waiting + job.rows + self._pending[not bulk]
            if not self._inline:
                self._condition.notify()
            elif not self._turn_due:
                self._turn_due = True
                if self._max_delay and self.pending < self._max_batch:
                    self._timer = job.loop.call_later(self._max_delay, self._inline_turn, job.loop)
                else:
                    job.loop.call_soon(self._inline_turn, job.loop)
            elif self._timer is not None and self.pending >= self._max_batch:  # a full batch waits for nobody
                self._timer.cancel()
                self._timer = None
                job.loop.call_soon(self._inline_turn, job.loop)
        return job

    def _most_rows(self, bulk: bool) -> int:
        """Rows that may wait: fewer than `queue_rows` if they would take longer than `queue_seconds`."""
        if not self._row_seconds:
            return self._queue_rows
        seconds = self._queue_seconds * (BULK_PATIENCE if bulk else 1)
        return min(self._queue_rows, max(self._max_batch, int(seconds / self._row_seconds)))

    async def submit(
        self,
        x: Array,
        slots: NDArray[np.int64] | None,
        *,
        timeout: float | None = None,
        priority: int = 0,
        bulk: bool = False,
    ) -> Result:
        """Queue rows and wait for their result; arguments and refusals as of `enqueue`.

        Raises:
            DeadlineExceeded: the timeout passed while the rows waited.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def done(outcome: Result | Exception) -> None:
            if future.done():
                return
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        job = self.enqueue(x, slots, done, timeout=timeout, priority=priority, bulk=bulk)
        try:
            return await future
        finally:
            job.cancel()

    def stop(self, timeout: float = 10.0) -> None:
        """Answer what is queued, then end. Not to be called on the event loop, which inline batches need."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
            if self._inline:
                self._condition.wait_for(lambda: not self._lanes, timeout)
        if self._thread is not None:
            self._thread.join(timeout)
        self._on_batch = lambda _: None  # it knows the model that knows this scheduler: no cycle is left

    def _inline_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run one batch on the event loop; what is left has the loop's next turn, after new requests were read."""
        with self._condition:
            self._turn_due, self._timer = False, None
            batch, expired = self._take(self._turn_rows())
            if self._lanes:
                self._turn_due = True
                loop.call_soon(self._inline_turn, loop)
            elif self._stopping:
                self._condition.notify_all()
        resolve((job, late()) for job in expired)
        if batch:
            resolve(self._run(batch))

    def _turn_rows(self) -> int:
        if not self._row_seconds:
            return self._max_batch
        return max(1, min(self._max_batch, int(TURN_SECONDS / self._row_seconds)))

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._lanes and not self._stopping:
                    self._condition.wait()
                if not self._lanes:
                    return
                if self._max_delay and self.pending < self._max_batch:
                    begin = min(lane[0].queued for lane in self._lanes.values())
                    self._condition.wait_for(
                        lambda: self._stopping or self.pending >= self._max_batch,
                        max(0.0, begin + self._max_delay - time.monotonic()),
                    )
                batch, expired = self._take(self._max_batch)
            if expired:
                self._deliver([(job, late()) for job in expired])
            if batch:
                self._deliver(self._run(batch))

    def _take(self, room: int) -> tuple[list[Piece], list[Job]]:
        """Take up to `room` rows of one signature, earliest turn first; called with the lock held."""
        batch: list[Piece] = []
        expired: list[Job] = []
        lanes, now = self._lanes, time.monotonic()
        wanted: Hashable = None
        while room and lanes:
            if len(lanes) == 1:
                name, lane = next(iter(lanes.items()))
            else:
                fitting = [item for item in lanes.items() if not batch or item[1][0].key == wanted]
                if not fitting:
                    break
                name, lane = min(fitting, key=lambda item: item[1][0].turn)
            job = lane[0]
            if batch and job.key != wanted:
                break
            left = job.rows - job.taken
            late = not job.taken and job.deadline <= now
            if job.dropped or late:
                rows = left
                if late and not job.dropped:
                    expired.append(job)
            else:
                wanted = job.key
                rows = min(left, room)
                if not job.taken:
                    job.wait = now - job.queued
                batch.append((job, job.taken, job.taken + rows))
                room -= rows
            job.taken += rows
            self._pending[job.bulk] -= rows
            if job.taken == job.rows:
                lane.popleft()
                if not lane:
                    del lanes[name]
        self._level[0] = self._pending[0] + self._pending[1]
        return batch, expired

    def _run(self, batch: list[Piece]) -> list[Outcome]:
        """Run one batch; returns the requests that are complete by it."""
        begin = time.monotonic()
        try:
            pieces = [job.x if hi - lo == job.rows else job.x[lo:hi] for job, lo, hi in batch]
            x = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
            gathered = time.monotonic()
            if self._padding is None:
                features = self._forward(x)
            else:
                features = self._forward(x, np.repeat([p[0].length for p in batch], [hi - lo for _, lo, hi in batch]))
            forwarded = time.monotonic()
            scores, rows = self._heads(batch, features)
        except Exception as error:
            if len(batch) > 1:  # whose rows are to blame is not known: alone, only theirs fail
                return [outcome for piece in batch for outcome in self._run([piece])]
            job = batch[0][0]
            job.dropped = True  # what is left of a split request is of no use
            return [(job, error)]
        end = time.monotonic()
        seconds = (end - begin) / len(features)
        self._row_seconds = seconds if not self._row_seconds else 0.9 * self._row_seconds + 0.1 * seconds
        try:
            self._on_batch(BatchReport(len(features), gathered - begin, forwarded - gathered, end - forwarded))
        except Exception:  # metrics must not end the engine, on which every request waits
            log.exception("the report of a batch failed")
        finished: list[Outcome] = []
        at = 0
        for job, lo, hi in batch:
            n = hi - lo
            own = None
            if job.slots is not None and scores is not None:
                own = scores[at : at + n] if rows is None else scores[rows[at : at + n]]
            result = job.answered(features[at : at + n], own, forwarded - gathered, end - forwarded)
            if result is not None:
                finished.append((job, result))
            at += n
        return finished

    def _heads(
        self, batch: list[Piece], features: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.int64] | None]:
        """Apply heads to the rows that want one; returns scores, and where in them each row is (None: in order)."""
        if all(job.slots is not None for job, _, _ in batch):
            slots = [job.slots[lo:hi] for job, lo, hi in batch if job.slots is not None]
            return self._apply_heads(features, slots[0] if len(slots) == 1 else np.concatenate(slots)), None
        if all(job.slots is None for job, _, _ in batch):
            return None, None
        wanting = np.repeat([job.slots is not None for job, _, _ in batch], [hi - lo for _, lo, hi in batch])
        chosen = np.concatenate([job.slots[lo:hi] for job, lo, hi in batch if job.slots is not None])
        return self._apply_heads(features[wanting], chosen), np.cumsum(wanting) - 1

    @staticmethod
    def _deliver(outcomes: list[Outcome]) -> None:
        """Hand results over with one wake-up of each loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
        for item in outcomes:
            by_loop.setdefault(item[0].loop, []).append(item)
        for loop, items in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(resolve, items)
