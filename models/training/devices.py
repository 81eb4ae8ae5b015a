"""Where and how a loop runs: Lightning Fabric with our checkpoints, on one process or several."""

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.strategy import Strategy
from pydantic import BaseModel, ConfigDict, Field

from models.training.checkpoint import SafetensorsIO
from models.training.config import TrainingError

__all__ = ["Devices", "Precision", "one_process", "run_on"]

R = TypeVar("R")
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


class Devices(BaseModel):
    """What a network is trained on; not part of what is asked for: another count gives the same within rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accelerator: Literal["cpu", "cuda", "auto"] = "cpu"
    count: int = Field(1, ge=1, description="processes, each with a device of its own, that share every batch")
    precision: Precision = "32-true"


def fabric_on(devices: Devices, loggers: Any = None) -> Fabric:
    """Fabric for some devices: one process, or several started by `fabric.launch(function, …)`.

    Raises:
        ValueError: the devices are not there.
    """
    strategy: Strategy | str = "auto"
    if devices.count > 1:
        # Spawned: a fork of a process whose threads have done sums may hang. Networks have parts that no loss reaches.
        strategy = DDPStrategy(start_method="spawn", find_unused_parameters=True)
    return Fabric(
        accelerator=devices.accelerator,
        devices=devices.count,
        strategy=strategy,
        precision=devices.precision,
        plugins=[SafetensorsIO()],
        loggers=loggers or [],
    )


def run_on(devices: Devices, loggers: Any, function: Callable[..., R], job: object, *more: object) -> R:
    """Return `function(fabric, job, …)`, in this process, or the first one's of as many as there are devices.

    `more` is for this process only: bars do not go to others.

    Raises:
        TrainingError: as the function.
        ValueError: the devices are not there.
    """
    fabric = fabric_on(devices, loggers)
    if devices.count == 1:
        return function(fabric, job, *more)
    launch: Any = fabric.launch  # annotated without the arguments that it passes on
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result"
        # As bytes: what is handed over is looked through for modules otherwise, which frozen dataclasses do not allow.
        # And by a file: the launcher waits for processes to end before it reads the pipe, which a network would fill.
        launch(_spawned, pickle.dumps((function, job)), result)
        found = pickle.loads(result.read_bytes())  # noqa: S301 - made by our own process, a moment ago
    if isinstance(found, TrainingError):
        raise found
    answer: R = found
    return answer


def _spawned(fabric: Fabric, work: bytes, result: Path) -> None:
    function, job = pickle.loads(work)  # noqa: S301 - made by the process that started this one
    try:
        found = function(fabric, job)
    except TrainingError as error:  # of all processes alike
        found = error
    if fabric.is_global_zero:
        result.write_bytes(pickle.dumps(found))


def one_process() -> Fabric:
    """Fabric on the CPU in this process, for whoever only restores what was trained."""
    return fabric_on(Devices())
