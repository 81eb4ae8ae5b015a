"""What a model has done since it was loaded, in the shape of Triton's statistics extension.

Counts are 64-bit numbers in memory that the processes serving a model share, a row for each: none waits for another,
and what a process counted outlives it.
"""

from __future__ import annotations

import time
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.jobs import BatchReport, Result


class Cell(IntEnum):
    """Where in a row of counts each number is; durations are in ns."""

    LAST_INFERENCE = 0
    ROWS = 1
    BATCHES = 2
    SUCCESS = 3
    SUCCESS_NS = 4
    FAIL = 5
    FAIL_NS = 6
    QUEUE = 7
    QUEUE_NS = 8
    PENDING = 9
    HITS = 10
    MISSES = 11
    SIZES = 12


_PER_SIZE = 4  # batches of a size: how many, and ns of gathering, forward and heads


def cells(largest_batch: int) -> int:
    """Numbers in a row of counts."""
    return Cell.SIZES + _PER_SIZE * (largest_batch + 1)


class ModelStatistics:
    """One process's counts of one version. Requests are counted on the event loop, batches where they run.

    Args:
        row: `cells(largest_batch)` int64 numbers.
    """

    def __init__(self, row: NDArray[np.int64]) -> None:
        self._row = memoryview(row)  # type: ignore[arg-type]  # a Python number from here takes half of numpy's time

    def batch(self, report: BatchReport) -> None:
        """Count a batch."""
        row, at = self._row, Cell.SIZES + _PER_SIZE * report.rows
        row[0] = time.time_ns() // 1_000_000  # wall clock: a moment, not a duration
        row[1] += report.rows
        row[2] += 1
        row[at] += 1
        row[at + 1] += int(report.gathering * 1e9)
        row[at + 2] += int(report.inference * 1e9)
        row[at + 3] += int(report.heads * 1e9)

    def answered(self, result: Result, seconds: float) -> None:
        """Count a request that was answered after `seconds`."""
        row = self._row
        row[3] += 1
        row[4] += int(seconds * 1e9)
        row[7] += 1
        row[8] += int(result.queue * 1e9)

    def failed(self, seconds: float) -> None:
        """Count a request that was refused or failed."""
        self._row[Cell.FAIL] += 1
        self._row[Cell.FAIL_NS] += int(seconds * 1e9)

    @property
    def pending(self) -> memoryview:
        """Where the scheduler keeps the number of rows that wait."""
        return self._row[Cell.PENDING : Cell.PENDING + 1]

    def looked_up(self, *, hit: bool) -> None:
        """Count a look-up of a head that was resident, or was not."""
        self._row[10 if hit else 11] += 1


def shown(name: str, version: int, counts: NDArray[np.int64]) -> dict[str, Any]:
    """Return the entry of `model_stats` for the `counts (processes, cells)` of a version.

    `compute_input` is the gathering of a batch, `compute_output` its heads.
    """
    row = counts.sum(0)
    sizes = row[Cell.SIZES :].reshape(-1, _PER_SIZE)
    parts = ("compute_input", "compute_infer", "compute_output")
    nothing = {"count": 0, "ns": 0}

    def total(cell: Cell) -> dict[str, int]:
        return {"count": int(row[cell]), "ns": int(row[cell + 1])}

    return {
        "name": name,
        "version": str(version),
        "last_inference": int(counts[:, Cell.LAST_INFERENCE].max()),
        "inference_count": int(row[Cell.ROWS]),
        "execution_count": int(row[Cell.BATCHES]),
        "inference_stats": {
            "success": total(Cell.SUCCESS),
            "fail": total(Cell.FAIL),
            "queue": total(Cell.QUEUE),
            **{
                part: {"count": int(sizes[:, 0].sum()), "ns": int(sizes[:, i].sum())} for i, part in enumerate(parts, 1)
            },
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": size,
                **{part: {"count": int(sizes[size, 0]), "ns": int(sizes[size, i])} for i, part in enumerate(parts, 1)},
            }
            for size in map(int, np.flatnonzero(sizes[:, 0]))
        ],
        "memory_usage": [],
    }
