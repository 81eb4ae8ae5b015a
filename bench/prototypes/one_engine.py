"""Front-end processes that parse HTTP and find heads, and one engine process that runs everybody's rows.

A front end is the service itself; in the place of its scheduler it puts rows and the slots of their heads into shared
memory and wakes the engine, if that sleeps, by an eventfd. The engine takes what is there of all front ends, up to 64
rows, writes scores back, and wakes each front end once a batch. Complete enough to be timed, no more: no deadlines,
priorities, metrics of batches, features; one model.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import select
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.prototypes.board import ENTRIES, LINE, Board, Shape
from bench.prototypes.replicas import listener, serve
from exporters import bundle as bundles
from models.heads.calibration import shared_head
from service.engine.head_bank import SPARE_SLOTS, HeadBank
from service.engine.head_table import fence
from service.engine.jobs import Done, Result
from service.engine.runtime import Runtime
from service.errors import TooManyRequests
from service.state import Services

MOST_ROWS = 64
NO_FEATURES = np.empty((0, 0), np.float32)
DOZE_MS = 50


class Job:
    """A request's entries, and who waits for them."""

    __slots__ = ("begin", "done", "entries", "left")

    def __init__(self, entries: list[int], done: Done) -> None:
        self.entries, self.left, self.done, self.begin = entries, len(entries), done, time.monotonic()

    def cancel(self) -> None:
        """Nobody waits any more; the rows run all the same."""
        self.done = _nobody


class EngineClient:
    """What stands in a front end for the scheduler of a model."""

    inline = True

    def __init__(self, board: Board, front_end: int, wake: int, woken: int) -> None:
        self._board, self._wake, self._woken = board, wake, woken
        self._sent, self._done = board.sent(front_end), board.done(front_end)
        self._own, self._theirs = LINE * front_end, LINE * (board.shape.front_ends + front_end)
        self._asleep = 2 * LINE * board.shape.front_ends
        self._first_slot = front_end * board.shape.slots
        self._free = list(range(front_end * ENTRIES, (front_end + 1) * ENTRIES))
        self._jobs: dict[int, Job] = {}
        self._head = self._tail = 0
        asyncio.get_running_loop().add_reader(woken, self._collect)

    @property
    def pending(self) -> int:
        """Rows that are under way."""
        return ENTRIES - len(self._free)

    def enqueue(self, x: Any, slots: Any, done: Done, **_how: Any) -> Job:
        """Send rows to the engine.

        Raises:
            TooManyRequests: too many rows are under way.
        """
        board, n = self._board, len(x)
        if n > len(self._free):
            raise TooManyRequests(f"{self.pending} rows are under way and {ENTRIES} may be", retry_after=1.0)
        job = Job([self._free.pop() for _ in range(n)], done)
        for i, entry in enumerate(job.entries):
            board.x[entry] = x[i]
            board.slot[entry] = self._first_slot + slots[i]
            self._jobs[entry] = job
            self._sent[self._tail % ENTRIES] = entry
            self._tail += 1
        board.tails[self._own] = self._tail
        fence()
        if board.tails[self._asleep]:
            board.tails[self._asleep] = 0
            os.eventfd_write(self._wake, 1)
        return job

    def stop(self, timeout: float = 0.0) -> None:
        """Nothing is to be ended here."""

    def _collect(self) -> None:
        os.eventfd_read(self._woken)
        tail = self._board.tails[self._theirs]
        while self._head < tail:
            entry = self._done[self._head % ENTRIES]
            self._head += 1
            job = self._jobs.pop(entry)
            job.left -= 1
            if not job.left:
                scores = self._board.scores[job.entries]
                self._free += job.entries
                job.done(Result(NO_FEATURES, scores, 0.0, time.monotonic() - job.begin, 0.0))


def _nobody(_: Any) -> None:
    """Nobody waits for this job any more."""


def run_engine(board: Board, runtime: Runtime, wake: int, front_ends: list[int]) -> None:
    """Run what front ends send, for ever."""
    n, tails = len(front_ends), board.tails
    sent, done = [board.sent(f) for f in range(n)], [board.done(f) for f in range(n)]
    heads, finished = [0] * n, [0] * n
    asleep, poll = 2 * LINE * n, select.poll()
    poll.register(wake, select.POLLIN)
    turn = 0
    while True:
        turn += 1
        entries: list[int] = []
        for f in (range(n), range(n - 1, -1, -1))[turn % 2]:
            tail = tails[LINE * f]
            while heads[f] < tail and len(entries) < MOST_ROWS:
                entries.append(sent[f][heads[f] % ENTRIES])
                heads[f] += 1
        if not entries:
            tails[asleep] = 1
            fence()
            if all(tails[LINE * f] == heads[f] for f in range(n)) and poll.poll(DOZE_MS):
                os.eventfd_read(wake)
            tails[asleep] = 0
            continue
        rows = np.array(entries)
        board.scores[rows] = board.table.scores(runtime.run(board.x[rows]), board.slot[rows])
        before = finished.copy()
        for entry in entries:
            f = entry // ENTRIES
            done[f][finished[f] % ENTRIES] = entry
            finished[f] += 1
        fence()
        for f in range(n):
            if finished[f] != before[f]:
                tails[LINE * (n + f)] = finished[f]
                os.eventfd_write(front_ends[f], 1)


def main() -> None:
    """Fork a front end for each store, and be the engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder of one bundle")
    parser.add_argument("--stores", type=Path, nargs="+", required=True, help="SQLite files, one a front end")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--users", type=int, required=True, help="heads that a front end keeps at most")
    chosen = parser.parse_args()
    (name,) = bundles.find(chosen.models)
    bundle = bundles.load(bundles.resolve(chosen.models / name))
    manifest, head = bundle.manifest, shared_head(bundle.prior)
    count, (classes, dim) = len(chosen.stores), head.weight.shape
    window, dtype = manifest.input.window_shape, np.dtype(manifest.input.dtype)
    board = Board(Shape(count, window, dtype, classes, dim, chosen.users + SPARE_SLOTS))
    wake, woken = os.eventfd(0), [os.eventfd(0) for _ in chosen.stores]
    sockets = [listener(chosen.port) for _ in chosen.stores]
    for f, (store, sock) in enumerate(zip(chosen.stores, sockets, strict=True)):

        def started(services: Services, f: int = f) -> None:
            (model,) = services.models.loaded()
            model.resident = HeadBank(head, chosen.users, table=board.heads_of(f))
            model.scheduler = EngineClient(board, f, wake, woken[f])  # type: ignore[assignment]

        if not os.fork():
            serve(chosen.models, store, sock, started)
            return
    for sock in sockets:
        sock.close()
    run_engine(board, Runtime.of(bundle, device="cpu", threads=1, max_batch=MOST_ROWS), wake, woken)


if __name__ == "__main__":
    main()
