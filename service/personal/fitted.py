"""What a calibration comes to before it is stored, whatever its model's task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.parts import signals
from models.data.windows import shared_samples
from models.heads.head import Head
from service.loaded import LoadedModel
from service.personal.data_changes import Enrolled
from service.personal.kept import Kept


@dataclass(frozen=True, slots=True)
class Fitted:
    """A head that was fitted and judged.

    Attributes:
        head: to be stored.
        serves: whether it is to be served.
        statistics: of all the user's windows, encoded; None where they may not be kept.
        report: all of it but what the service adds; `remembered` says whether the next update adds to the statistics.
        seconds: durations of `fit` and `evaluate`.
        seen: what was enrolled, and the user's settings.
        used: whether the version takes over what was enrolled.
        kept: all windows behind the version, where they may be kept.
        own: the user's own labels from now on.
    """

    head: Head
    serves: bool
    statistics: bytes | None
    report: dict[str, Any]
    seconds: dict[str, float]
    seen: Enrolled
    used: bool = False
    kept: Kept | None = None
    own: tuple[str, ...] = ()


def overlap_of(x: NDArray[Any] | None, model: LoadedModel) -> int:
    """How many following windows share samples with a window: told by the samples, else by the model's own stride."""
    spec = model.bundle.manifest.input
    if x is not None:
        found = [shared_samples(sensor.x[sensor.there]) for sensor in signals(spec, x) if sensor.there.any()]
        return max(found, default=0) if len(x) else 0
    if spec.parts:
        return 0
    return -(-spec.window_shape[-1] // spec.stride) - 1 if spec.stride > 1 and spec.window_shape[-1] > 0 else 0


def rounded(numbers: dict[str, Any]) -> dict[str, Any]:
    """Round the fractions in a report."""
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in numbers.items()}


def milliseconds(seconds: float) -> float:
    """Return seconds in ms, as reports have them."""
    return float(np.round(seconds * 1e3, 3))
