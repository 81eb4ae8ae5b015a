"""Rows that are rejected, and sets of labels with a coverage: of answers that ask for them, and of no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.heads.confidence import level_of
from service.engine.head_table import SHARED
from service.engine.jobs import Result
from service.errors import Unprocessable
from service.loaded import LoadedModel
from service.personal.resolved import ResolvedHead
from service.protocol.parameters import Parameters


class Decided(NamedTuple):
    """What is decided of n rows.

    Attributes:
        rejected: `(n,)` where the best label's probability is below the threshold; None where none was given.
        sets: `(n, K)` labels that together have the coverage; None where none was asked for.
        calibrated_on: of the sets: `held_out` windows of the user, the `population`, or `mixed`.
    """

    rejected: NDArray[np.bool_] | None
    sets: NDArray[np.bool_] | None
    calibrated_on: str | None


def decide(
    asked: Parameters, model: LoadedModel, result: Result, heads: Sequence[ResolvedHead], columns: int
) -> Decided:
    """Decide what a request asks for, among the first `columns` labels.

    Raises:
        Unprocessable: sets are asked for, and neither the head of a row nor the shared one is calibrated for them.
        HeadMoved: a head moved since its rows were answered.
    """
    assert result.scores is not None
    probabilities = result.scores[:, model.columns : model.columns + columns]
    rejected = None if asked.threshold is None else probabilities.max(1) < asked.threshold
    if asked.coverage is None:
        return Decided(rejected, None, None)
    slots = np.array([h.slot for h in heads], np.int64)
    floors, own = _floors(model, slots, level_of(asked.coverage))
    sets = probabilities >= floors[:, None]
    if columns > len(model.label_bytes):  # of rows of several users some have labels that others do not
        known = len(model.label_bytes) + np.array([len(h.own) for h in heads])
        sets &= np.arange(columns) < known[:, None]
    sets[np.arange(len(sets)), probabilities.argmax(1)] = True
    calibrated_on = "held_out" if own.all() else "mixed" if own.any() else "population"
    return Decided(rejected, sets, calibrated_on)


def _floors(model: LoadedModel, slots: NDArray[np.int64], level: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Least probability of a label in each row's set `(n,)`, and whether it is of the user's own held-out windows."""
    found = model.floors(slots, level)
    known = np.isfinite(found)
    if known.all():
        return found, known & (slots != SHARED)
    (shared,) = model.floors(np.array([SHARED]), level)
    if not np.isfinite(shared):
        raise Unprocessable(
            "coverage needs a head that was calibrated with windows to hold out: calibrate with two repetitions a "
            "label or more (the bundle's shared head has no calibration for sets of its own)"
        )
    return np.where(known, found, shared), known & (slots != SHARED)
