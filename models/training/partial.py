"""What to do with people who showed some of the labels only: a rule that harms nobody, by leave-one-user-out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.heads.fit import fit_map, shared_share
from models.heads.prior import HyperParameters, Partial
from models.heads.statistics import Statistics
from models.heads.tuning import LeftOut, with_settings

__all__ = ["partial_rule"]

WEIGHTS = (0.03, 0.06, 0.1, 0.15)
LEANS = (0.0, 0.1, 0.2, 0.3, 0.4)
DRAWS, ROUNDS = 12, 4
"""Sets of labels shown by each person and round; a round leaves out another repetition."""
FEWEST_PEOPLE = 10
"""A rule that harmed none of fewer people says little about the next."""


def partial_rule(people: Sequence[LeftOut], hyper: HyperParameters, seed: int) -> Partial | None:
    """Choose the rule for labels not shown, or None where each one left somebody below the generic head.

    Everyone shows 3 of 7 labels (as a share, at least 2) in all repetitions but one, and is scored on that one.
    """
    classes = people[0].prior.classes
    shown = max(2, round(classes * 3 / 7))
    if len(people) < FEWEST_PEOPLE or shown >= classes:
        return None
    gains = np.array(
        [_gains(person, hyper, shown, np.random.default_rng([seed, u])) for u, person in enumerate(people)]
    )
    # (people, weights, leans, shown or not)
    safe = (gains > 0).all((0, 3))
    if not safe.any():
        return None
    mean = np.where(safe, gains.mean(0).mean(2), -np.inf)
    w, b = (int(i) for i in np.unravel_index(mean.argmax(), mean.shape))
    chosen = gains[:, w, b]
    return Partial(
        weight=WEIGHTS[w],
        lean=LEANS[b],
        shown=shown,
        repetitions=min(len(np.unique(p.repetition)) for p in people) - 1,
        users=len(people),
        gain_shown=float(chosen[:, 0].mean()),
        gain_unseen=float(chosen[:, 1].mean()),
        worst_unseen=float(chosen[:, 1].min()),
    )


def _gains(person: LeftOut, hyper: HyperParameters, shown: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Mean gain in accuracy by weight and lean, on the labels shown and on the others: `(weights, leans, 2)`."""
    prior = with_settings(person.prior, hyper)
    ids, classes = np.unique(person.repetition), prior.classes
    found = []
    for out in ids[: min(ROUNDS, len(ids) - 1)]:
        scored = person.repetition == out
        for _ in range(DRAWS):
            labels = rng.permutation(classes)[:shown]
            mask = ~scored & np.isin(person.y, labels)
            stats = Statistics.of(person.z[mask], person.y[mask], person.repetition[mask], classes)
            y, generic = person.y[scored], person.generic[scored]
            personal = fit_map(stats, prior).logits(person.z[scored]) + shared_share(stats, hyper) * generic
            unseen, right = ~np.isin(y, labels), generic.argmax(1) == y
            if not unseen.any() or unseen.all():
                continue
            lean = ~np.isin(np.arange(classes), labels)
            gain = np.zeros((len(WEIGHTS), len(LEANS), 2))
            for i, weight in enumerate(WEIGHTS):
                mixed = (1 - weight) * generic + weight * personal
                for j, by in enumerate(LEANS):
                    better = ((mixed + by * lean).argmax(1) == y).astype(float) - right
                    gain[i, j] = better[~unseen].mean(), better[unseen].mean()
            found.append(gain)
    return np.mean(found, 0) if found else np.full((len(WEIGHTS), len(LEANS), 2), -1.0)
