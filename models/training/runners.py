"""Who trains the networks of a run: this process one after the other, or a Ray cluster side by side."""

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from models.training.config import TrainingError
from models.training.devices import Devices
from models.training.loop import Tick

__all__ = ["OnRay", "Runner", "Serial", "Where"]

J = TypeVar("J")
R = TypeVar("R")


class Runner(Protocol):
    """Runs jobs that do not depend on each other."""

    def map(self, function: Callable[..., R], jobs: Sequence[J], tick: Tick) -> list[R]:
        """Return `function(job)` of each, in order."""


class Serial:
    """One after the other, in this process."""

    def map(self, function: Callable[..., R], jobs: Sequence[J], tick: Tick) -> list[R]:
        """Return `function(job, tick)` of each, in order."""
        return [function(job, tick) for job in jobs]


class OnRay:
    """As Ray tasks of `cpus` cores each: on this machine, or on the cluster at `address`.

    A cluster's nodes need this version of Headway, the data under the same path, and a run folder that they share. The
    tasks run the same function as `Serial` does, so that the results are the same.

    Raises:
        TrainingError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, address: str | None = None, cpus: int = 1) -> None:
        self._ray, self._cpus = _connected(address), cpus

    def map(self, function: Callable[..., R], jobs: Sequence[J], tick: Tick) -> list[R]:
        """Return `function(job)` of each, in order; the first one's exception is raised as it is."""
        ray = self._ray
        task = ray.remote(num_cpus=self._cpus, max_retries=2)(function)
        refs = [task.remote(job) for job in jobs]
        waiting = list(refs)
        while waiting:
            tick("on Ray", len(refs) - len(waiting), len(refs))
            _, waiting = ray.wait(waiting, num_returns=1)
        tick("on Ray", len(refs), len(refs))
        try:
            results: list[R] = ray.get(refs)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        return results


@dataclass(frozen=True)
class Where:
    """How a run is made, which does not change what it is: `devices`, who runs the jobs, which logs are kept."""

    devices: Devices = field(default_factory=Devices)
    runner: Runner = field(default_factory=Serial)
    loggers: tuple[str, ...] = ()


def _connected(address: str | None) -> Any:
    try:
        import ray
    except ImportError as e:
        raise TrainingError("--ray needs: pip install ray") from e
    _reachable(address)
    if not ray.is_initialized():
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as e:
            raise TrainingError(f"No Ray cluster can be reached at '{address}': {e}") from e
    return ray


def _reachable(address: str | None) -> None:
    """Raise `TrainingError` where nothing listens at `[ray://]host:port`; Ray itself would try for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as e:
        raise TrainingError(f"No Ray cluster can be reached at '{address}': {e.strerror or e}.") from e
