"""Where and how a loop runs: Lightning Fabric with our checkpoints, on one process or several."""

from typing import Any, Literal

from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.strategy import Strategy
from pydantic import BaseModel, ConfigDict, Field

from models.training.checkpoint import SafetensorsIO

__all__ = ["Devices", "Precision", "fabric_on", "one_process"]

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


def one_process() -> Fabric:
    """Fabric on the CPU in this process, for whoever only restores what was trained."""
    return fabric_on(Devices())
