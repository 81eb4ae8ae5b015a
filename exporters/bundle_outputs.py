"""What heads of one output answer, and which features they read: of a bundle's only output, or of one of several."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.heads.bridge import BridgeParity
from models.heads.prior import HyperParameters
from models.heads.regression_prior import MOST_FEATURES, RegressionSettings

if TYPE_CHECKING:
    from exporters.bundle import Manifest

MOST_USER_LABELS = 256
MOST_OUTPUTS = 16
OUTPUT_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,31}$"
OUTPUT_MARK = "/"
"""Stands before the output's name in the feature space of one that is not the first."""

Task = Literal["classification", "regression"]
Ranges = tuple[tuple[int, int], ...]
"""Columns of the graph's features: `(first, behind the last)` of each run of them, ascending; none stand for all."""


class Target(BaseModel):
    """What a regression says: a name and the unit of its values, which may be empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=64)
    unit: str = Field("", max_length=64)

    @model_validator(mode="after")
    def _printable(self) -> Target:
        if not self.name.isprintable() or not self.unit.isprintable() or not self.name.strip():
            raise ValueError("a target's name and unit must be printable")
        return self

    def __str__(self) -> str:
        return f"{self.name} [{self.unit}]" if self.unit else self.name


class BridgeEntry(BaseModel):
    """A bridge from an older feature space: its file, the bundle it was fitted from, and what it is worth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    version: int = Field(ge=1, description="of the older bundle")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the older bundle's manifest")
    parity: BridgeParity


class Output(BaseModel):
    """One of several outputs of a bundle, not the first. Its prior is the file `prior.<name>.safetensors`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=OUTPUT_PATTERN)
    task: Task = "classification"
    labels: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    label_set: Literal["closed", "open"] = "closed"
    user_labels: int = Field(0, ge=0, le=MOST_USER_LABELS)
    features: Ranges = Field((), description="of the graph's features, those that its heads are over; else all")
    feature_space: str = Field(min_length=8, description="ends with the output's name")
    head: HyperParameters | None = Field(None, description="of a classification's heads")
    regression: RegressionSettings | None = Field(None, description="of a regression's heads")
    bridges: dict[str, BridgeEntry] = Field(default_factory=dict, description="by its older feature space")
    evaluation: dict[str, Any] = Field(default_factory=dict)

    def check(self, feature_dim: int) -> None:
        """Check what is said against the graph's number of features.

        Raises:
            ValueError: it contradicts itself, or the features that it reads are not there.
        """
        try:
            check_ranges(self.features, feature_dim)
            check_task(self, width_of(self.features, feature_dim))
            if len(set(self.labels)) < len(self.labels):
                raise ValueError("a label is named twice")
            if not self.feature_space.endswith(f"{OUTPUT_MARK}{self.name}"):
                raise ValueError(f"its feature space {self.feature_space!r} does not end with {OUTPUT_MARK}{self.name}")
        except ValueError as e:
            raise ValueError(f"output {self.name!r}: {e}") from e


def bridge_file(feature_space: str) -> str:
    """File with the bridge from an older feature space."""
    return f"bridge.{feature_space.replace(OUTPUT_MARK, '.')}.safetensors"


def prior_file(output: str) -> str:
    """File with the population prior of an output that is not the first."""
    return f"prior.{output}.safetensors"


def width_of(ranges: Ranges, feature_dim: int) -> int:
    """Number of features that heads over `ranges` have."""
    return sum(end - begin for begin, end in ranges) if ranges else feature_dim


def check_ranges(ranges: Ranges, feature_dim: int) -> None:
    """Check columns that an output reads.

    Raises:
        ValueError: they do not ascend, or are not there.
    """
    ends = [0, *(end for pair in ranges for end in pair)]
    ascending = all(a <= b for a, b in pairwise(ends)) and all(a < b for a, b in ranges)
    if not ascending or ends[-1] > feature_dim:
        raise ValueError(f"features {[list(pair) for pair in ranges]} are not ascending ranges within {feature_dim}")


def check_task(said: Manifest | Output, features: int) -> None:
    """Check that an output is of one task, whole.

    Raises:
        ValueError: fields of the other task are set, or its own are missing.
    """
    if (said.label_set == "open") != (said.user_labels > 0):
        raise ValueError(f"label_set is {said.label_set!r} and user_labels is {said.user_labels}; open sets have some")
    if said.task == "classification":
        _check_labels(said)
        return
    if not said.targets or said.regression is None:
        raise ValueError("a regression has one of targets or more, and says under regression how heads are fitted")
    names = _names(said.targets)
    if len(set(names)) < len(names):
        raise ValueError(f"the targets are {', '.join(names)}: one is named twice")
    if said.labels or said.user_labels or said.bridges:
        raise ValueError("a regression has no labels, no user_labels and no bridges")
    if features > MOST_FEATURES:
        raise ValueError(f"a regression has at most {MOST_FEATURES} features, not {features}: project them")


def _check_labels(said: Manifest | Output) -> None:
    if said.head is None or "head" not in said.model_fields_set:
        raise ValueError("a classification says under head how heads are fitted")
    if len(said.labels) < 2:
        raise ValueError(f"a classification has two labels or more, not {len(said.labels)}")
    if said.targets or said.regression is not None:
        raise ValueError("a classification has neither targets nor regression: its labels and head say all")


def _names(targets: Sequence[Target]) -> list[str]:
    return [target.name for target in targets]
