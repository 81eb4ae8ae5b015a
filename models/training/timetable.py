"""Which layers learn in which steps, and how fast: what a recipe is, as a table that a loop reads."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Layer", "Rate", "Timetable", "discriminative", "freezing_out", "lp_then_all", "together", "warm_cosine"]

Rate = Callable[[int], float]
"""Learning rate of a step."""
WARM_UP = 0.1
DISCRIMINATIVE = 2.6
"""Ratio of the rates of a layer and the one below it (Howard and Ruder 2018)."""
TRIANGLE_RATIO, TRIANGLE_CUT = 32.0, 0.1
"""How much lower the ends of the slanted triangle are than its peak, and the share of steps that go up."""
FINE = 100.0
"""After a head is at its plateau, everything learns at most at this part of the head's rate (Kumar et al. 2022)."""


@dataclass(frozen=True)
class Layer:
    """A group of parameters, by prefixes of their names, that learns in steps `begin ≤ step < end` at `rate(step)`."""

    prefixes: tuple[str, ...]
    rate: Rate
    begin: int = 0
    end: int | None = None

    def learns(self, step: int) -> bool:
        """Whether it learns in a step."""
        return self.begin <= step and (self.end is None or step < self.end)


@dataclass(frozen=True)
class Timetable:
    """The layers of a network that ever learn, from the input on; all others are frozen throughout."""

    layers: tuple[Layer, ...]

    def learning(self, step: int) -> tuple[Layer, ...]:
        """Layers that learn in a step."""
        return tuple(layer for layer in self.layers if layer.learns(step))

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Names of all that ever learns."""
        return tuple(p for layer in self.layers for p in layer.prefixes)


def warm_cosine(steps: int, peak: float) -> Rate:
    """Return a rate with a linear warm-up over a tenth of the steps, then a cosine to zero."""
    warm = max(1, int(WARM_UP * steps))

    def rate(step: int) -> float:
        if step < warm:
            return peak * (step + 1) / warm
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return rate


def slanted_triangle(steps: int, peak: float) -> Rate:
    """Return the slanted triangular rate of ULMFiT (Howard and Ruder 2018): up for a tenth, then down, ratio 32."""
    cut = max(1, math.floor(steps * TRIANGLE_CUT))

    def rate(step: int) -> float:
        share = step / cut if step < cut else max(0.0, 1 - (step - cut) / max(1, steps - cut))
        return peak * (1 + share * (TRIANGLE_RATIO - 1)) / TRIANGLE_RATIO

    return rate


def together(layers: Sequence[Sequence[str]], steps: int, peak: float) -> Timetable:
    """All layers from the first step on, at one rate."""
    return Timetable(tuple(Layer(tuple(names), warm_cosine(steps, peak)) for names in layers))


def lp_then_all(layers: Sequence[Sequence[str]], steps: int, head_rate: float) -> Timetable:
    """All layers, the head with them, at a hundredth of the rate that is usual for a head: it is at its plateau before.

    Source: Kumar et al. 2022, Fine-Tuning can Distort Pretrained Features (LP-FT).
    """
    return together(layers, steps, head_rate / FINE)


def discriminative(layers: Sequence[Sequence[str]], steps: int, peak: float) -> Timetable:
    """From the top down one layer more in each interval, each at 1/2.6 of the rate of the one above, slanted triangle.

    The last layer in `layers` is the head. All have begun when half of the steps are done.

    Source: ULMFiT, Howard and Ruder 2018.
    """
    count = len(layers)
    found = []
    for i, names in enumerate(layers):
        below = count - 1 - i
        rate = slanted_triangle(steps, peak / DISCRIMINATIVE**below)
        found.append(Layer(tuple(names), rate, begin=below * steps // (2 * count)))
    return Timetable(tuple(found))


def freezing_out(
    layers: Sequence[Sequence[str]],
    steps: int,
    peak: float,
    *,
    first: float = 0.5,
    how: Literal["linear", "cubic"] = "cubic",
    scaled: bool = True,
) -> Timetable:
    """Layers stop learning one after the other, the first at a share `first` of the steps, the head at the end.

    Each layer's rate goes to zero by a cosine at the step where it freezes; from then on nothing is computed backwards
    through it. `cubic`: the shares are raised to the third power, so that early layers freeze sooner; `scaled`: a layer
    with less time learns faster, so that the rates' sums over time are equal.

    Source: FreezeOut, Brock et al. 2017.
    """
    count = len(layers)
    found = []
    for i, names in enumerate(layers):
        share = first + (1 - first) * (i / max(1, count - 1))
        share = share**3 if how == "cubic" else share
        end = max(1, round(share * steps))
        top = peak * steps / end if scaled else peak
        found.append(Layer(tuple(names), _annealed(end, top), end=end))
    return Timetable(tuple(found))


def _annealed(end: int, peak: float) -> Rate:
    return lambda step: 0.5 * peak * (1 + math.cos(math.pi * min(step, end) / end))
