"""The population in the joint features of a fusion: windows of people, items of people, or items without users."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.heads.fit import fit_map
from models.heads.head import log_loss
from models.heads.prior import Evidence, HyperParameters, Prior
from models.heads.statistics import Statistics
from models.heads.tuning import LeftOut, Trial, evidence, trials_of, tune, with_settings
from models.training.config import TrainingError
from models.training.fusion_sources import Joined
from models.training.pooling import TEMPERATURES, probe_prior, space_of
from models.training.population import moments, population_prior
from models.training.probing import POOLED

__all__ = ["SHOTS", "Kind", "calibrations", "joint_prior", "settings"]

Array = NDArray[np.float64]
Kind = Literal["windows", "items", "pooled"]
"""Windows of people's recordings; items of people; items without users, whose people are the folds left out."""
SHOTS: dict[Kind, dict[str, tuple[int, int]]] = {
    "windows": {"1 window": (1, 1), "5 windows": (5, 1), "1 repetition": (0, 1)},
    "items": {"1 item": (1, 1), "5 items": (5, 1), "1 repetition": (0, 1)},
    "pooled": {"1 item": (1, 1), "5 items": (5, 1)},
}
"""Calibrations that figures are of: windows or items a label (0: all), and repetitions."""
DRAWS = 4


def joint_prior(
    kind: Kind,
    z: Sequence[Array],
    people: Sequence[Joined],
    labels: tuple[str, ...],
    personal: int,
    hyper: HyperParameters | None = None,
) -> tuple[Prior, Array, Array]:
    """Make the prior of some people's features `z (n, P)`, the centre `(P,)` and the projection `(P, p)` that it is in.

    Windows are projected on discriminants, items on principal directions, as in members of their kinds.
    """
    if kind == "windows":
        found = [moments(own, p.y, p.repetition, len(labels)) for own, p in zip(z, people, strict=True)]
        return population_prior([found], range(len(people)), labels, min(personal, z[0].shape[1]), hyper=hyper)
    rows, y = np.concatenate(z), np.concatenate([p.y for p in people])
    space = space_of(rows, y, personal)
    user = np.repeat(np.arange(len(people)), [len(p.y) for p in people])
    user = user if kind == "items" else np.zeros_like(user)
    repetition = np.concatenate([p.repetition for p in people])
    prior = probe_prior(space.personal(rows), y, user, repetition, labels, hyper or HyperParameters())
    return prior, space.centre, space.projection


def calibrations(kind: Kind, left: Sequence[LeftOut], seed: int = 0) -> list[Trial]:
    """Calibrations of everyone left out; of items without users draws of a few a label, others scored.

    Raises:
        TrainingError: nobody has enough.
    """
    if kind == "pooled":
        found = [trial for number, one in enumerate(left) for trial in _draws(number, one, seed)]
    else:
        found = [trial for number, one in enumerate(left) for trial in trials_of(number, one)]
    if not found:
        who = {"windows": "Nobody has windows", "items": "No user has items", "pooled": "No fold has items"}[kind]
        raise TrainingError(f"{who} enough of two labels to be calibrated and scored.")
    return found


def settings(
    kind: Kind, left: Sequence[LeftOut], trials: Sequence[Trial], thinning: int
) -> tuple[HyperParameters, tuple[Evidence, ...], list[dict[str, Any]]]:
    """Choose settings of personal heads on those left out; the guard's record and figures follow, of people only."""
    if kind == "pooled":
        return _pooled(left, trials), (), []
    if kind == "items":
        start = HyperParameters(growth=1.0, window=1.0, novelty=1.0)
    else:
        start = HyperParameters(growth=1.0, window=30.0 / thinning, shrinkage=100.0)
    hyper = tune(left, trials, start)
    records, figures = evidence(left, trials, hyper, thinning, place=False)
    return hyper, records, figures


def _pooled(left: Sequence[LeftOut], trials: Sequence[Trial]) -> HyperParameters:
    """The usual settings of a pooled population, with the temperature of the least log-loss after five items."""
    hyper = HyperParameters.model_validate(POOLED)
    losses = np.zeros(len(TEMPERATURES))
    for trial in trials:
        if trial.shot == SHOTS["pooled"]["5 items"]:
            one = left[trial.person]
            logits = fit_map(trial.stats, with_settings(one.prior, hyper)).logits(one.z[trial.scored])
            losses += [float(log_loss(logits / t, one.y[trial.scored]).mean()) for t in TEMPERATURES]
    return hyper.model_copy(update={"temperature": TEMPERATURES[int(losses.argmin())]})


def _draws(number: int, fold: LeftOut, seed: int) -> list[Trial]:
    rng, found = np.random.default_rng((seed, number)), []
    for _ in range(DRAWS):
        order = rng.permutation(len(fold.y))
        for shot in SHOTS["pooled"].values():
            shown = np.zeros(len(fold.y), bool)
            for c in np.unique(fold.y):
                own = order[fold.y[order] == c]
                shown[own[: min(shot[0], max(1, len(own) // 2))]] = True
            scored = np.flatnonzero(~shown)
            if len(scored) and len(np.unique(fold.y[shown])) > 1:
                one = np.zeros(int(shown.sum()), np.int64)
                stats = Statistics.of(fold.z[shown], fold.y[shown], one, fold.prior.classes)
                found.append(Trial(number, shot, stats, scored))
    return found
