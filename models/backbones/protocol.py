"""What every backbone offers to training, export and analysis."""

from typing import Protocol, runtime_checkable

from pydantic import BaseModel
from torch import Tensor

__all__ = ["Backbone"]


@runtime_checkable
class Backbone(Protocol):
    """An encoder whose whole preprocessing is inside it: raw windows in, features out."""

    default_cfg: BaseModel
    """The configuration it was built from; JSON with `model_dump_json`."""

    @property
    def num_features(self) -> int:
        """Number of features d."""

    def forward_features(self, x: Tensor) -> Tensor:
        """Features `(n, d)` of raw windows `(n, C, T)`."""
