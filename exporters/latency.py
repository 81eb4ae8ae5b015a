"""How long variants of a graph take on this machine, measured beside one another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporters.session import Forward

WARM_UP = 3
FEWEST_ROUNDS, MOST_ROUNDS = 20, 200
SECONDS = 10.0
"""Time that the rounds of one batch size should take together, within the bounds on their number."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of a call: its median and 95th percentile."""

    median: float
    p95: float

    def __str__(self) -> str:
        return f"{self.median:.2f} / {self.p95:.2f}"


@dataclass(frozen=True, slots=True)
class Timing:
    """Latency of a single window, and of the batch asked for."""

    single: Latency
    batch: Latency


Measure = Callable[[Mapping[str, Forward], NDArray[np.generic], int], dict[str, Timing]]


def measure(
    forwards: Mapping[str, Forward], x: NDArray[np.generic], batch: int, *, clock: Clock = time.perf_counter
) -> dict[str, Timing]:
    """Time each forward on single windows of `x (n, …)` and on batches of `batch` of them.

    In each round every forward runs once on the same rows, in an order that turns: what else the machine does meets all
    of them alike, so that their ratios hold on a busy one.
    """
    single = _rounds(forwards, x, 1, clock)
    many = single if batch == 1 else _rounds(forwards, x, batch, clock)
    return {name: Timing(single[name], many[name]) for name in forwards}


def _rounds(forwards: Mapping[str, Forward], x: NDArray[np.generic], rows: int, clock: Clock) -> dict[str, Latency]:
    names = list(forwards)
    taken: dict[str, list[float]] = {name: [] for name in names}
    rounds, number = MOST_ROUNDS, 0
    while number < WARM_UP + rounds:
        if number == WARM_UP:
            once = sum(samples[-1] for samples in taken.values())
            rounds = int(np.clip(SECONDS / max(once, 1e-9), FEWEST_ROUNDS, MOST_ROUNDS))
        given = x.take(np.arange(number * rows, (number + 1) * rows), axis=0, mode="wrap")
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            begin = clock()
            forwards[name](given)
            taken[name].append(clock() - begin)
        number += 1
    return {name: _latency(np.array(samples[WARM_UP:])) for name, samples in taken.items()}


def _latency(seconds: NDArray[np.float64]) -> Latency:
    median, p95 = np.percentile(seconds, (50, 95)) * 1e3
    return Latency(float(median), float(p95))
