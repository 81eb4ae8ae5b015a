"""The calibration request: labelled windows and what to do with them; without windows, those that were enrolled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.bundle import Manifest
from models.heads.calibration import METHODS
from service.errors import InvalidRequest
from service.protocol.labelled import (
    LABELLED_FIELDS,
    TARGETED_FIELDS,
    Labelled,
    Read,
    digest_of,
    labelled,
    message_of,
    targeted,
)

FIELDS = {*LABELLED_FIELDS, "mode", "method", "activate", "among", "dry_run", "seed"}
REGRESSION_FIELDS = {*TARGETED_FIELDS, "mode", "activate", "dry_run", "seed"}
CHOICES = {
    "mode": ("update", "replace"),
    "method": METHODS,
    "activate": ("if_better", "always", "never"),
    "among": ("all", "shown"),
}
DEFAULTS = {"mode": "update", "method": "map", "activate": "if_better", "among": "all"}


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """Labelled windows and what to do with them.

    Attributes:
        x: windows `(n, …)`.
        y: class indices `(n,)`; of a regression all 0.
        repetition: repetition ids `(n,)`.
        enrolled: whether there are none here: use those that were enrolled.
        digest: sha256 of the body, to tell a repeated call from another with the same key.
        own: labels that the bundle does not know, as `Labelled` has them.
        among: which labels the head may answer: `all`, or those that were `shown`.
        tta: views of each window whose features are averaged.
        targets: of a regression `(n, T)`.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    repetition: NDArray[np.int64]
    mode: str
    method: str
    activate: str
    dry_run: bool
    seed: int
    digest: str
    own: tuple[str, ...] = ()
    among: str = "all"
    tta: int = 1
    targets: NDArray[np.float64] | None = None

    @property
    def enrolled(self) -> bool:
        """Whether the request has no windows: those that were enrolled are meant."""
        return not len(self.y)


def decode(body: bytes, header_length: str | None, manifest: Manifest, read: Read) -> CalibrationRequest:
    """Decode and check a calibration request; `read` makes rows of the media that the model reads.

    Raises:
        InvalidRequest: malformed, or of another shape or datatype.
        Unprocessable: unknown labels or values that are not finite.
    """
    regression = bool(manifest.targets)
    message, binary = message_of(body, header_length, REGRESSION_FIELDS if regression else FIELDS)
    if regression:
        given = targeted(message, binary, manifest, read)
    elif any(f in message for f in LABELLED_FIELDS):
        given = labelled(message, binary, manifest, read)
    else:
        given = _none(manifest)
    choice = {name: _choice(message, name) for name in CHOICES}
    return CalibrationRequest(
        x=given.x,
        y=given.y,
        repetition=given.repetition,
        dry_run=_typed(message, "dry_run", bool, False),
        seed=_typed(message, "seed", int, 0),
        digest=digest_of(body),
        own=given.own,
        tta=given.tta,
        targets=given.targets,
        **choice,
    )


def _none(manifest: Manifest) -> Labelled:
    nothing = np.empty(0, np.int64)
    return Labelled(np.empty((0, 0, 0), manifest.input.dtype), nothing, nothing)


def _choice(message: dict[str, Any], name: str) -> str:
    value = message.get(name, DEFAULTS[name])
    if value not in CHOICES[name]:
        raise InvalidRequest(f"{name} is {value!r}; it can be {', '.join(CHOICES[name])}")
    return str(value)


def _typed(message: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = message.get(name, default)
    if type(value) is not kind:
        raise InvalidRequest(f"{name} must be of type {kind.__name__}, not {type(value).__name__}")
    return value
