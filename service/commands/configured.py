"""Settings of recipes, as flags and `--set NAME=VALUE` give them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from models.training.config import TrainingError

C = TypeVar("C", bound=BaseModel)


def configured(kind: type[C], given: Mapping[str, Any], told: Sequence[str]) -> C:
    """Settings of a recipe: what flags gave, and `NAME=VALUE` of `--set`.

    Raises:
        TrainingError: a setting is not known, not of the form, or of a wrong value.
    """
    settings = dict(given)
    for item in told:
        name, equals, value = item.partition("=")
        if not equals:
            raise TrainingError(f"--set {item}: NAME=VALUE was expected.")
        try:
            settings[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            settings[name.replace("-", "_")] = value
    try:
        return kind.model_validate(settings)
    except ValidationError as e:
        first = e.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise TrainingError(
                f"This recipe has no setting '{name}'; there are: {', '.join(sorted(kind.model_fields))}."
            ) from e
        raise TrainingError(f"The setting {name} cannot be {first['input']!r}: {first['msg']}.") from e
