"""Who does the jobs of a run: this process one after the other, or a Ray cluster side by side."""

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from models.training.config import TrainingError
from models.training.devices import Devices
from models.training.loggers import check_loggers
from models.training.loop import Tick

__all__ = ["OnRay", "OverNodes", "Runner", "Serial", "Where"]

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
    """As Ray tasks of some cores and GPUs each: on this machine, or on the cluster at `address`.

    A cluster's nodes need this version of Headway, the data under the same path, and a run folder that they share. The
    tasks run the same function as `Serial` does, so that the results are the same.

    Raises:
        TrainingError: Ray is not installed, the cluster cannot be reached, or no node of it has what a task needs.
    """

    def __init__(self, address: str | None = None, cpus: int = 1, gpus: int = 0) -> None:
        self._ray, self._cpus, self._gpus = connected(address), cpus, gpus
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if gpus and not any(of.get("GPU", 0) >= gpus for of in nodes):
            raise TrainingError(f"{gpus} CUDA devices are asked for, and no node of the Ray cluster has so many.")

    def map(self, function: Callable[..., R], jobs: Sequence[J], tick: Tick) -> list[R]:
        """Return `function(job)` of each, in order; the first one's exception is raised as it is.

        Raises:
            TrainingError: as the function; or a task's process was killed, again and again.
        """
        found = self.outcomes(function, jobs, tick)
        for each in found:
            if isinstance(each, Exception):
                raise each from None
        return [each for each in found if not isinstance(each, Exception)]

    def outcomes(self, function: Callable[..., R], jobs: Sequence[J], tick: Tick) -> list[R | Exception]:
        """Return `function(job)` of each, in order, or what it raised."""
        ray = self._ray
        task = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=2)(function)
        refs = [task.remote(job) for job in jobs]
        waiting = list(refs)
        while waiting:
            tick("on Ray", len(refs) - len(waiting), len(refs))
            _, waiting = ray.wait(waiting, num_returns=1)
        tick("on Ray", len(refs), len(refs))
        return [self._outcome(ref) for ref in refs]

    def _outcome(self, ref: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as error:
            return error.cause
        except errors.RayError as error:  # it was killed, each time that it was tried
            return TrainingError(f"A Ray task was lost: {str(error).strip().splitlines()[0]}")


class OverNodes(Serial):
    """One after the other, each on several machines of the Ray cluster at `address` (`models.training.nodes`).

    Raises:
        TrainingError: Ray is not installed, or there is no cluster.
    """

    def __init__(self, address: str | None = None) -> None:
        connected(address or "auto")  # which starts none: one machine would not do


@dataclass(frozen=True)
class Where:
    """How a run is made, which does not change what it is: `devices`, who runs the jobs, which logs are kept."""

    devices: Devices = field(default_factory=Devices)
    runner: Runner = field(default_factory=Serial)
    loggers: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise `TrainingError` for devices and loggers that are not there, before anything is done or claimed."""
        check_loggers(self.loggers)
        if type(self.runner) is Serial:  # else they are the cluster's
            self.devices.check()


def connected(address: str | None) -> Any:
    """Connect to the Ray cluster at an address, else to one on this machine, which is started; returns the module.

    Raises:
        TrainingError: Ray is not installed, or the cluster cannot be reached.
    """
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
