"""Label sets that grow: a user's own labels beside the population's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.heads.head import Head
from models.heads.prior import Prior

NEVER = -1e4
"""Logit of a label that a head does not know: it is never chosen, and its probability is 0 in float32."""


@dataclass(frozen=True, slots=True)
class Recall:
    """Share of a class's windows that are decided rightly, before and after a change; None where it has no windows."""

    label: str
    windows: int
    before: float | None
    after: float | None


def extended(prior: Prior, names: Sequence[str]) -> Prior:
    """Return a prior with labels added that the population does not have.

    There is no prior mean for them: a user's own mean stands, under the population's covariance. The shared head never
    prefers them. What it says of the others does not change.

    Raises:
        ValueError: a name is there already, or twice.
    """
    labels = (*prior.labels, *names)
    if len(set(labels)) < len(labels):
        twice = sorted({name for name in labels if labels.count(name) > 1})
        raise ValueError(f"labels must differ; {', '.join(twice)} would be there twice")
    if not names:
        return prior
    base, more = prior.base or prior, len(names)
    rows = np.repeat(prior.generic_weight.mean(0, keepdims=True), more, 0)
    return replace(
        prior,
        labels=labels,
        generic_weight=np.concatenate([prior.generic_weight, rows]),
        generic_bias=np.concatenate([prior.generic_bias, np.full(more, prior.generic_bias.mean())]),
        means=np.concatenate([prior.means, np.repeat(base.means.mean(0, keepdims=True), more, 0)]),
        placements=None,
        base=base,
    )


def padded(head: Head, classes: int) -> Head:
    """Return a head with rows for labels that it does not know, which it never chooses."""
    more = classes - len(head.bias)
    if more < 0:
        raise ValueError(f"a head of {len(head.bias)} labels cannot be padded to {classes}")
    return Head(np.pad(head.weight, ((0, more), (0, 0))), np.concatenate([head.bias, np.full(more, NEVER)]))


def recalls(
    before: NDArray[np.floating], after: NDArray[np.floating], y: NDArray[np.integer], labels: Sequence[str]
) -> list[Recall]:
    """Report each class's recall on held-out windows under two heads' logits `(n, K)`; the first may know fewer."""
    found = []
    for c, label in enumerate(labels):
        own = y == c
        if not own.any():
            found.append(Recall(label, 0, None, None))
            continue
        shares = [float((logits[own].argmax(1) == c).mean()) for logits in (before, after)]
        found.append(Recall(label, int(own.sum()), *shares))
    return found
