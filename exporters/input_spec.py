"""What a bundle's graph takes: datatype, shape and meaning of its input tensor. Torch-free."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from exporters.media_spec import Media

Datatype = Literal["FP32", "FP16", "UINT8", "INT8", "INT16", "INT64"]
NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "FP16": np.dtype("<f2"),
    "UINT8": np.dtype("u1"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT64": np.dtype("<i8"),
}
"""What a graph may take, as numpy calls it."""
PART_NAME = r"^[a-z][a-z0-9_]{0,31}$"
RESERVED_PARTS = frozenset({"input", "user_id"})


class Padding(BaseModel):
    """How windows of different lengths come into one batch: filled up with `value` to a multiple of `multiple_of`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    axis: int = Field(ge=1, description="the variable axis of the batch's shape; 0 is the batch itself")
    multiple_of: int = Field(1, ge=1)
    value: float = 0.0
    maximum: int = Field(ge=1, description="longest window that is taken")
    lengths: str | None = Field(
        None, min_length=1, description="second input of the graph, INT64 [batch], that takes the true lengths"
    )

    @model_validator(mode="after")
    def _whole(self) -> Padding:
        if self.maximum % self.multiple_of:
            raise ValueError(f"maximum {self.maximum} must be a multiple of multiple_of, {self.multiple_of}")
        return self

    def padded(self, length: int) -> int:
        """Length that windows of `length` are filled up to."""
        return -(-length // self.multiple_of) * self.multiple_of


class Views(BaseModel):
    """Changes of a window that leave its label as it is: `tta` averages a window and such views of it.

    `shift` and `flip` are of time for signals and sounds, of the picture for images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gain: float = Field(0.0, ge=0, le=1, description="standard deviation of a window's log gain")
    channel_gain: float = Field(0.0, ge=0, le=1, description="the same of each channel")
    noise: float = Field(0.0, ge=0, le=1, description="largest added noise, in standard deviations of the channel")
    shift: float = Field(0.0, ge=0, le=0.5, description="largest shift, as a share of the axis; edges are reflected")
    flip: bool = Field(False, description="mirror images left to right")


class InputSpec(BaseModel):
    """The input tensor: a batch of raw windows (signals, images, ...) in the graph's own datatype."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "input"
    datatype: Datatype = "FP32"
    shape: tuple[int, ...] = Field(min_length=2, description="-1 for the batch, then e.g. channels and samples")
    unit: str = Field(description="of the samples, e.g. 'armband counts', 'mV', 'grey levels'")
    sample_rate: float = Field(0.0, ge=0, description="Hz; 0 where a window has no time axis")
    stride: int = Field(1, ge=1, description="samples between the windows the model was made with")
    modality: str = Field("emg", min_length=1, description="free text: 'emg', 'imu', 'image', ...")
    channel_layout: Literal["ring", "none"] = "none"
    padding: Padding | None = Field(None, description="of the one axis that may be -1 beside the batch")
    media: Media | None = Field(None, description="what files or texts a client may send instead of the tensor")
    views: Views | None = Field(None, description="what `tta` averages over; by default what is usual for the input")
    parts: tuple[InputSpec, ...] = Field(
        (), description="of a fused bundle: inputs of its modalities, packed into rows (`models.data.parts`)"
    )

    @model_validator(mode="after")
    def _packed(self) -> InputSpec:
        if not self.parts:
            return self
        names = [part.name for part in self.parts]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"a fused input has two parts or more of different names, not {', '.join(names)}")
        for part in self.parts:
            if not re.match(PART_NAME, part.name) or part.name in RESERVED_PARTS:
                raise ValueError(
                    f"{part.name!r} cannot name a part: lower-case letters, digits and _ can, but not "
                    f"{', '.join(sorted(RESERVED_PARTS))}"
                )
            if part.parts or (part.padding is not None and part.padding.lengths is not None):
                raise ValueError(f"part {part.name!r} has parts of its own, or a second input for lengths")
        size = len(self.parts) + sum(part.row_size for part in self.parts)
        if (self.datatype, self.shape) != ("FP32", (-1, size)):
            raise ValueError(f"a fused input of these parts is FP32 [-1, {size}], not {self.datatype} {self.shape}")
        if self.media is not None or self.padding is not None or self.views is not None:
            raise ValueError("a fused input has no media, padding or views of its own: its parts have")
        return self

    @model_validator(mode="after")
    def _sizes(self) -> InputSpec:
        batch, *window = self.shape
        if batch != -1 or any(size < 1 and size != -1 for size in window):
            raise ValueError(f"shape {list(self.shape)} must begin with -1, the batch, and go on with sizes from 1")
        variable = [axis for axis, size in enumerate(self.shape) if axis and size == -1]
        if variable != ([] if self.padding is None else [self.padding.axis]):
            raise ValueError(f"shape {list(self.shape)} needs a padding for its one variable axis, and for no other")
        if self.media is not None:
            self._check_media(self.media.kind)
        if self.views is not None and self.datatype == "INT64":
            raise ValueError("an input of tokens has no views")
        return self

    def _check_media(self, kind: str) -> None:
        """Check that the tensor is of the form that the media are read into."""
        fits = {
            "image": self.datatype == "UINT8" and len(self.shape) == 4 and self.shape[3] == 3,
            "text": self.datatype == "INT64" and len(self.shape) == 2 and self.padding is not None,
            "audio": self.datatype == "FP32" and len(self.shape) == 2 and self.sample_rate > 0 and self.shape[1] > 0,
        }
        if not fits[kind]:
            forms = {
                "image": "UINT8 [-1, height, width, 3]",
                "text": "INT64 [-1, -1] with a padding",
                "audio": "FP32 [-1, samples] with a sample_rate",
            }
            raise ValueError(f"media of kind {kind} needs an input {forms[kind]}; it is {self.datatype} {self.shape}")

    @property
    def window_shape(self) -> tuple[int, ...]:
        """Shape of one window, without the batch; -1 where it varies."""
        return self.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The datatype as numpy calls it."""
        return NUMPY_TYPES[self.datatype]

    @property
    def row_size(self) -> int:
        """Numbers in one window, at its longest."""
        return math.prod(self.sized(None if self.padding is None else self.padding.maximum))

    def sized(self, length: int | None = None) -> tuple[int, ...]:
        """Shape of one window whose variable axis, if there is one, is `length` long (its shortest by default)."""
        if self.padding is None:
            return self.window_shape
        return tuple(length or self.padding.multiple_of if size == -1 else size for size in self.window_shape)

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say what is wrong with a batch of this shape; None when nothing is."""
        if shape[1:] == self.shape[1:] and self.padding is None:
            return None
        fixed = len(shape) == len(self.shape) and all(
            want in (-1, got) for want, got in zip(self.shape, shape, strict=True)
        )
        if not fixed:
            return f"must have shape [rows, {', '.join(map(str, self.window_shape))}], not {list(shape)}"
        if self.padding is not None and not 1 <= shape[self.padding.axis] <= self.padding.maximum:
            return (
                f"must be 1 to {self.padding.maximum} long in axis {self.padding.axis}, not {shape[self.padding.axis]}"
            )
        return None
