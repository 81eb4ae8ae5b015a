"""Where and how a loop runs: Lightning Fabric with our checkpoints, on one process or several, of a machine or more."""

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.strategy import Strategy
from pydantic import BaseModel, ConfigDict, Field
from torch.multiprocessing.spawn import ProcessExitedException

from models.cluster import Tick
from models.training.checkpoint import SafetensorsIO
from models.training.config import TrainingError

__all__ = ["Devices", "NetworkJob", "Precision", "one_process", "run_on", "spawned"]

R = TypeVar("R")
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
RESULT = "result"


class NetworkJob(Protocol):
    """What is said of a network while it is trained: its name, and the file that it resumes from."""

    @property
    def name(self) -> str:
        """Of the network."""

    @property
    def checkpoint(self) -> Path:
        """In the run's folder, under `checkpoints`."""


class Devices(BaseModel):
    """What a network is trained on; not part of what is asked for: another count gives the same within rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accelerator: Literal["cpu", "cuda", "auto"] = "cpu"
    count: int = Field(
        1, ge=1, description="processes a machine, each with a device of its own, that share every batch"
    )
    nodes: int = Field(1, ge=1, description="machines of a Ray cluster that share every batch")
    precision: Precision = "32-true"

    @property
    def processes(self) -> int:
        """Of all machines together."""
        return self.nodes * self.count

    def check(self) -> None:
        """Raise `TrainingError` where this machine does not have the devices."""
        found = torch.cuda.device_count()
        if self.accelerator == "cuda" and found < self.count:
            there = f"{found} of them" if found else "none that torch can use"
            raise TrainingError(f"CUDA devices asked for: {self.count}; this machine has {there}.")
        if self.accelerator == "cpu" and self.precision == "16-mixed":
            raise TrainingError("A precision of 16-mixed needs --accelerator cuda; on a CPU bf16-mixed can be had.")


def fabric_on(devices: Devices, loggers: Any = None) -> Fabric:
    """Fabric for some devices: one process, or several started by `fabric.launch(function, …)`.

    Raises:
        ValueError: the devices are not there.
    """
    strategy: Strategy | str = "auto"
    if devices.processes > 1:
        # Spawned: a fork of a process whose threads have done sums may hang. Networks have parts that no loss reaches.
        strategy = DDPStrategy(start_method="spawn", find_unused_parameters=True)
    return Fabric(
        accelerator=devices.accelerator,
        devices=devices.count,
        num_nodes=devices.nodes,
        strategy=strategy,
        precision=devices.precision,
        plugins=[SafetensorsIO()],
        loggers=loggers or [],
    )


def run_on(devices: Devices, loggers: Any, function: Callable[..., R], job: NetworkJob, tick: Tick | None = None) -> R:
    """Return `function(fabric, job, tick)`, in this process, or the first one's of as many as there are devices.

    Other processes have no `tick`: of them it is told when they begin and end.

    Raises:
        TrainingError: as the function; or a process was killed, or (several nodes) there is no such cluster.
        ValueError: the devices are not there.
    """
    if devices.processes == 1:
        return function(fabric_on(devices, loggers), job, tick)
    if tick is not None:
        tick(job.name, 0, 1)
    if devices.nodes > 1:
        from models.training.nodes import over_nodes

        found = over_nodes(devices, loggers, function, job, tick)
    else:
        found = spawned(devices, loggers, function, job)
    if tick is not None:
        tick(job.name, 1, 1)
    return found


def spawned(devices: Devices, loggers: Any, function: Callable[..., Any], job: NetworkJob) -> Any:
    """Start this machine's processes and return what the first process of all machines came to; None on the others.

    Raises:
        TrainingError: as the function in any of the processes; or one was killed.
    """
    launch: Any = fabric_on(devices, loggers).launch  # annotated without the arguments that it passes on
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            # As bytes: what is handed over is looked through for modules otherwise, which frozen dataclasses do not
            # allow. And back by a file: the launcher waits for processes to end before it reads the pipe, which a
            # network would fill.
            launch(_process, pickle.dumps((function, job)), folder)
        except Exception as error:
            errors = sorted(folder.glob("error.*"))
            if errors:
                raise pickle.loads(errors[0].read_bytes()) from None  # noqa: S301 - made by our own process, just now
            if isinstance(error, ProcessExitedException):
                by = error.signal_name or f"exit code {error.exit_code}"
                why = ": memory is the usual reason" if by == "SIGKILL" else ""
                told = f"A process that trained {job.name} was killed ({by}{why}); go on with --resume."
                raise TrainingError(told) from error
            raise
        result = folder / RESULT
        return pickle.loads(result.read_bytes()) if result.is_file() else None  # noqa: S301 - as above


def _process(fabric: Fabric, work: bytes, folder: Path) -> None:
    function, job = pickle.loads(work)  # noqa: S301 - made by the process that started this one
    try:
        found = function(fabric, job)
    except TrainingError as error:
        # Of all processes alike or of this one only, for whom the others must not wait: so it ends them.
        (folder / f"error.{fabric.global_rank}").write_bytes(pickle.dumps(error))
        raise
    if fabric.is_global_zero:
        (folder / RESULT).write_bytes(pickle.dumps(found))


def one_process() -> Fabric:
    """Fabric on the CPU in this process, for whoever only restores what was trained."""
    return fabric_on(Devices())
