"""Evidence of several members in one: weights of their posteriors, or a probe on all that they say."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.heads.head import Head, log_loss
from models.training.fusion_sources import Joined, Source, Tick
from models.training.joining import always, log_posterior, rows_with, stacked
from models.training.probe_fit import fit_probe

__all__ = ["fit_modal_probe", "fit_shares", "left_out_probes"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2)
"""Weights of a member's log posterior that are tried."""
PULLS = (1e-3, 1e-2, 1e-1)
ROWS = 6000
"""Rows that one probe is fitted on, at most: evenly of all people."""


def fit_shares(told: Sequence[Sequence[Array]], people: Sequence[Joined], ways: Mask) -> Array:
    """Weights `(2^M, M)` of the members by which are there, of the least log-loss: each in turn until none moves.

    Those of a set are chosen on the rows that have all of it; of one that no row has, they are equal.
    """
    present = np.concatenate([p.there(ways.shape[1]) for p in people])
    y = np.concatenate([p.y for p in people])
    weight = np.concatenate([np.full(len(p.y), 1 / len(p.y)) for p in people])
    parts = [np.concatenate([e[m] for e in told]) for m in range(ways.shape[1])]
    shares = np.zeros((len(ways) + 1, ways.shape[1]))
    for row, way in enumerate(ways, start=1):
        there = np.flatnonzero(way)
        shares[row, there] = 1 / len(there)
        rows = rows_with(present, way)
        if not rows.any():
            continue
        some, known, counts = [part[rows] for part in parts], y[rows], weight[rows]
        for _ in range(10):
            before = shares[row].copy()
            for m in there:
                rest = sum(shares[row, o] * some[o] for o in there if o != m)
                losses = [float(counts @ log_loss(rest + w * some[m], known)) for w in WEIGHTS]
                shares[row, m] = WEIGHTS[int(np.argmin(losses))]
            if np.array_equal(before, shares[row]):
                break
    return shares


def left_out_probes(
    sources: Sequence[Source],
    people: Sequence[Joined],
    told: Sequence[Sequence[Array]],
    ways: Mask,
    classes: int,
    tick: Tick,
) -> tuple[float, list[list[Array]]]:
    """Choose the probe's pull; return it and each person's left-out log posteriors by way of presence.

    The last ones are with the members that are there.
    """
    sizes = [s.personal for s in sources]
    losses = np.zeros(len(PULLS))
    logits: list[list[list[Array]]] = [[[] for _ in PULLS] for _ in people]
    for u, person in enumerate(people):
        tick("probe", u, len(people))
        z = [np.concatenate([s.without(u, v) for s in sources], 1) for v in range(len(people))]
        others = [v for v in range(len(people)) if v != u]
        for i, pull in enumerate(PULLS):
            probe = fit_modal_probe(
                [z[v] for v in others],
                [told[v] for v in others],
                [people[v] for v in others],
                ways,
                sizes,
                classes,
                pull,
            )
            there = person.there(len(sources))
            sets = [*(always(way, len(z[u])) for way in ways), there]
            found = [probe.logits(stacked(z[u], told[u], some, sizes)) for some in sets]
            for f, way in zip(found[:-1], ways, strict=True):
                if (rows := rows_with(there, way)).any():
                    losses[i] += float(log_loss(f[rows], person.y[rows]).mean())
            logits[u][i] = [log_posterior(f) for f in found]
    best = int(losses.argmin())
    tick("probe", len(people), len(people))
    return PULLS[best], [own[best] for own in logits]


def fit_modal_probe(
    z: Sequence[Array],
    told: Sequence[Sequence[Array]],
    people: Sequence[Joined],
    ways: Mask,
    sizes: Sequence[int],
    classes: int,
    pull: float,
) -> Head:
    """Fit a probe on windows of some people, each of them with every set of the members that are there."""
    step = max(1, sum(map(len, z)) * len(ways) // ROWS)
    seen, labels = [], []
    for own, parts, person in zip(z, told, people, strict=True):
        for at, way in enumerate(ways):
            rows = np.flatnonzero(rows_with(person.there(ways.shape[1]), way))[at % step :: step]
            some = own[rows]
            seen.append(stacked(some, [p[rows] for p in parts], always(way, len(some)), sizes))
            labels.append(person.y[rows])
    return Head(*fit_probe(np.concatenate(seen), np.concatenate(labels), classes, pull))
