"""Inputs of several modalities in a request: named tensors, or an object of arrays, texts and files by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from exporters.bundle import InputSpec
from service.errors import InvalidRequest, UnsupportedMediaType
from service.protocol import inputs
from service.protocol.media import Items, is_encoded, items_of
from service.protocol.tensors import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a request gives, by the name of the part: a tensor, or JSON; parts that are missing are not there.

    Which parts there are is the matter of the version that answers: its reader makes rows of this. `finite`: whether
    values that are not are refused.
    """

    given: Mapping[str, Tensor | Any]
    finite: bool = True

    @property
    def rows(self) -> int | None:
        """Most rows of any part, where all are tensors of numbers; None where something has still to be read."""
        counts = [
            len(v.data) if isinstance(v, Tensor) and v.datatype != "BYTES" and v.shape else None
            for v in self.given.values()
        ]
        return None if None in counts else max((c for c in counts if c is not None), default=None)


def names(spec: InputSpec) -> str:
    """What a fused model's inputs are, for messages."""
    shapes = {part.name: ", ".join(map(str, part.window_shape)) for part in spec.parts}
    return ", ".join(f"{part.name!r} ({part.datatype} [rows, {shapes[part.name]}])" for part in spec.parts)


def friendly(body: bytes, content_type: str, spec: InputSpec) -> Parts:
    """Read the body of `predict` or `features`.

    Raises:
        UnsupportedMediaType: another media type than JSON.
        InvalidRequest: malformed.
    """
    media = content_type.split(";")[0].strip().lower()
    if media not in ("application/json", ""):
        raise UnsupportedMediaType(
            f"this model has several inputs and does not read {media[:64]}; send application/json with an object of "
            f"{names(spec)}"
        )
    return of_json(inputs.json_inputs(body, f"an object of one or more of {names(spec)} was"), spec)


def of_json(value: Any, spec: InputSpec, *, finite: bool = True) -> Parts:
    """Read `inputs` of a JSON body.

    Raises:
        InvalidRequest: it is not an object by the names of parts.
    """
    if not isinstance(value, dict):
        raise InvalidRequest(f"this model's inputs are an object with one or more of {names(spec)}")
    return Parts(value, finite)


def read_part(value: Tensor | Any, part: InputSpec, *, finite: bool = True) -> NDArray[Any] | Items:
    """Windows of one part, checked and in its datatype, or encoded media that its reader has still to read.

    Raises:
        InvalidRequest, Unprocessable: as `inputs.windows`.
    """
    if isinstance(value, Tensor):
        if part.media is not None and value.datatype == "BYTES":
            return inputs.encoded_items(value, part)
        return inputs.windows(value, part, finite=finite)
    if is_encoded(value, part):
        return items_of(value, part)
    return inputs.friendly_windows(inputs.nested(value), part, finite=finite)
