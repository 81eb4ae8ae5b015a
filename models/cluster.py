"""Who does jobs that do not depend on each other: this process one after the other, or a Ray cluster side by side.

Nothing here is of training: whatever is to be done needs no more than Ray on the nodes, and itself.
"""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

__all__ = ["ClusterError", "OnRay", "Runner", "Serial", "Tick", "connected"]

Tick = Callable[[str, int, int], None]
"""Called with a stage's name, what is done and how much there is to do."""
J = TypeVar("J")
R = TypeVar("R")


class ClusterError(ValueError):
    """There is no such cluster, it has not what is asked for, or it lost a task; the message says which."""


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
        ClusterError: Ray is not installed, the cluster cannot be reached, or no node of it has what a task needs.
    """

    def __init__(self, address: str | None = None, cpus: int = 1, gpus: int = 0) -> None:
        self._ray, self._cpus, self._gpus = connected(address), cpus, gpus
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if gpus and not any(of.get("GPU", 0) >= gpus for of in nodes):
            raise ClusterError(f"CUDA devices asked for: {gpus}; no node of the Ray cluster has so many.")

    def map(self, function: Callable[..., R], jobs: Sequence[J], tick: Tick) -> list[R]:
        """Return `function(job)` of each, in order; the first one's exception is raised as it is.

        Raises:
            ClusterError: as the function; or a task's process was killed, again and again.
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
            return ClusterError(f"A Ray task was lost: {str(error).strip().splitlines()[0]}")


def connected(address: str | None) -> Any:
    """Connect to the Ray cluster at an address or at `RAY_ADDRESS`, else start one here; returns the module.

    Raises:
        ClusterError: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as e:
        raise ClusterError("--ray needs: pip install ray") from e
    # Not None: that would join whatever cluster somebody has started on this machine.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _reachable(address)
    if not ray.is_initialized():
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as e:
            raise ClusterError(f"No Ray cluster can be reached at '{address}': {e}.{_token(address)}") from e
    return ray


def _token(address: str) -> str:
    """What to try with a cluster that wants a token, which Ray sends only where it is told to."""
    if address == "local" or os.environ.get("RAY_AUTH_MODE"):
        return ""
    return " If `ray start` said that token authentication is enabled there, set RAY_AUTH_MODE=token here, too."


def _reachable(address: str) -> None:
    """Raise `ClusterError` where nothing listens at `[ray://]host:port`; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as e:
        raise ClusterError(f"No Ray cluster can be reached at '{address}': {e.strerror or e}.") from e
