"""What every backbone offers to training, export and analysis."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from pydantic import BaseModel
from torch import Tensor

from exporters.input_spec import InputSpec

__all__ = ["Backbone", "Encoder"]


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


@runtime_checkable
class Encoder(Backbone, Protocol):
    """A pre-trained backbone: it says what it takes, and lets one look at its layers."""

    input: InputSpec
    """The tensor it takes, and which media are read into it."""

    files: dict[str, bytes]
    """What reading its media needs, by file name: a tokenizer. Not part of the weights."""

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of layers whose outputs `forward_taps` gives, from the input on."""

    def forward_taps(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of layers for raw windows, each pooled to `(n, channels)`."""
