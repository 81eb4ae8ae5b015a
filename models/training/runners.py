"""Where a run is made: on which devices, by whom, and with which logs."""

from dataclasses import dataclass, field

from models.cluster import OnRay, Runner, Serial, connected
from models.training.devices import Devices
from models.training.loggers import check_loggers

__all__ = ["OnRay", "OverNodes", "Runner", "Serial", "Where"]


class OverNodes(Serial):
    """One after the other, each on several machines of the Ray cluster at `address` (`models.training.nodes`).

    Raises:
        ClusterError: Ray is not installed, or there is no cluster.
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
