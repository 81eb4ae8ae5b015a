"""The base of pre-trained encoders as modules."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from torch import Tensor, nn

from exporters.input_spec import InputSpec
from models.backbones.registry import BackboneError, create

__all__ = ["EncoderModule", "create_encoder"]


class EncoderModule(nn.Module):
    """A module that is an `Encoder` (protocol.py); subclasses say how features come about and which layers have names.

    Attributes:
        default_cfg: the settings that rebuild it before its weights are loaded.
        input: the tensor it takes, and which media are read into it.
        files: what reading its media needs, by file name.
    """

    default_cfg: BaseModel
    input: InputSpec
    files: dict[str, bytes]

    @property
    def num_features(self) -> int:
        """Number of features d."""
        raise NotImplementedError

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of layers, from the input on."""
        return ()

    def forward_features(self, x: Tensor) -> Tensor:
        """Features `(n, d)` of raw input."""
        raise NotImplementedError

    def forward_taps(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Outputs of layers, each pooled to `(n, channels)`.

        Raises:
            KeyError: there is no tap of that name.
        """
        self.check_taps(names)
        return {}

    def check_taps(self, names: Sequence[str]) -> None:
        """Raise `KeyError` with the known ones for a name that is not a tap's."""
        unknown = [name for name in names if name not in self.taps]
        if unknown:
            raise KeyError(f"there is no tap '{unknown[0]}'; there are: {', '.join(self.taps) or 'none'}")

    def forward(self, x: Tensor) -> Tensor:
        """Features `(n, d)`; the same as `forward_features`."""
        return self.forward_features(x)


def create_encoder(name: str, cfg: Mapping[str, Any] | None = None, **settings: Any) -> EncoderModule:
    """Build a pre-trained encoder by name, in inference mode.

    Raises:
        BackboneError: as `create`, or a backbone of that name that says nothing of its input.
    """
    module = create(name, cfg, **settings)
    if not isinstance(module, EncoderModule):
        raise BackboneError(f"The backbone '{name}' is made for recordings; give one of a family, as 'timm:resnet50'.")
    return module.eval()
