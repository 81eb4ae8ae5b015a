"""What a sweep tries: settings of a recipe, each with some values or a range to draw from."""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel

from models.training.config import TrainingError

__all__ = ["Choices", "Range", "Space", "parsed", "settings_of", "space_of"]

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
MOST_TRIALS = 10_000


@dataclass(frozen=True)
class Choices:
    """Values to choose from."""

    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        """One of them, each as likely."""
        return self.values[int(rng.integers(len(self.values)))]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`: equally likely, or (`log`) their logarithms; `whole` ones have both ends in."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def draw(self, rng: np.random.Generator) -> float | int:
        """One of them."""
        ends = (self.low, self.high + 1) if self.whole else (self.low, self.high)
        x = float(np.exp(rng.uniform(*np.log(ends))) if self.log else rng.uniform(*ends))
        return min(math.floor(x), int(self.high)) if self.whole else float(f"{x:.6g}")


Space = Mapping[str, Choices | Range]


def space_of(kind: type[BaseModel], vary: Sequence[str], fixed: Sequence[str] = ()) -> Space:
    """What varies, of each `--vary`; `fixed` are the settings of `--set`.

    Raises:
        TrainingError: as `parsed`; or a setting is said twice, of which only one would be tried.
    """
    space: dict[str, Choices | Range] = {}
    same = {told.partition("=")[0].replace("-", "_") for told in fixed}
    for told in vary:
        name, values = parsed(kind, told)
        if name in space:
            raise TrainingError(f"--vary {name} is there twice; give all that is to be tried at once: {name}=A,B.")
        if name in same:
            raise TrainingError(f"{name} is in --vary and in --set; it varies, or is the same in all trials.")
        space[name] = values
    return space


def parsed(kind: type[BaseModel], told: str) -> tuple[str, Choices | Range]:
    """Read `NAME=V1,V2,…`, `NAME=LOW:HIGH` or `NAME=LOW:HIGH:log`, of a setting of a recipe.

    Raises:
        TrainingError: it is none of these, the recipe has no such setting, or a value is there twice.
    """
    name, equals, text = told.partition("=")
    name = name.replace("-", "_")
    if not equals or not text:
        raise TrainingError(f"--vary {told}: NAME=VALUE,VALUE or NAME=LOW:HIGH or NAME=LOW:HIGH:log was expected.")
    if name not in kind.model_fields:
        raise TrainingError(f"This recipe has no setting '{name}'; there are: {', '.join(sorted(kind.model_fields))}.")
    found = re.fullmatch(f"({NUMBER}):({NUMBER})(:log)?", text)
    if found is None:
        values = _values(text)
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise TrainingError(f"--vary {told}: {json.dumps(twice[0])} is there twice; it would be the same trial.")
        return name, Choices(values)
    low, high, log = float(found[1]), float(found[2]), found[3] is not None
    if low >= high or (log and low <= 0):
        raise TrainingError(
            f"--vary {told}: a range goes from a smaller number to a larger one, of logarithms from more than 0."
        )
    return name, Range(low, high, log, whole=kind.model_fields[name].annotation is int)


def _values(text: str) -> tuple[Any, ...]:
    """Values as JSON; what is none is a word."""
    try:
        return tuple(json.loads(f"[{text}]"))
    except ValueError:
        return tuple(_value(word) for word in text.split(","))


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def settings_of(space: Space, trials: int | None, seed: int) -> list[dict[str, Any]]:
    """Settings of each trial: the whole grid, or so many `trials` of it or drawn from ranges, by a seed.

    More trials begin with the same ones, so that a sweep can be gone on with.

    Raises:
        TrainingError: there is nothing to vary, there are ranges and no number of trials, or there are too many.
    """
    if not space:
        raise TrainingError("Nothing varies: give --vary NAME=VALUE,VALUE or --vary NAME=LOW:HIGH.")
    choices = {name: each.values for name, each in space.items() if isinstance(each, Choices)}
    ranges = [name for name in space if name not in choices]
    if ranges and trials is None:
        raise TrainingError(f"{', '.join(ranges)}: of a range settings are drawn; say how many with --trials.")
    size = math.prod(map(len, choices.values()))
    wanted = size if trials is None else trials
    if wanted > MOST_TRIALS:
        raise TrainingError(f"{wanted} trials; {MOST_TRIALS} are the most. With --trials some are drawn.")
    if ranges:
        drawn = [np.random.default_rng((seed, number)) for number in range(wanted)]
        return [{name: each.draw(rng) for name, each in space.items()} for rng in drawn]
    if wanted >= size:
        return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    picked = np.random.default_rng(seed).permutation(size)[:wanted]
    shape = tuple(map(len, choices.values()))
    return [
        {name: choices[name][int(i)] for name, i in zip(choices, np.unravel_index(int(at), shape), strict=True)}
        for at in picked
    ]
