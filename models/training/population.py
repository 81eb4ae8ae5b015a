"""The population's statistics: from everyone's features to a projection and a prior, at every placement."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from models.backbones.signal import SignalEncoder
from models.data.augmentation import rotated
from models.heads.prior import HyperParameters, Placements, Prior
from models.training.people import People

__all__ = ["Moments", "Placement", "gain_directions", "handmade_moments", "population_prior", "set_placements"]

Array = NDArray[np.float64]
UNLIKELY = 30.0
"""Nats that the usual placement is ahead of any other: no turn is assumed on weak evidence."""
COMPONENT_THINNING = 4


@dataclass(frozen=True, slots=True)
class Placement:
    """One way of wearing a ring: turned by `electrodes`, `flipped` or not; `log_weight` in the generic mixture."""

    electrodes: float
    flipped: bool
    log_weight: float


@dataclass(frozen=True, eq=False)
class Moments:
    """One person's hand-made features at one placement.

    `means (K, d)` over repetitions and `seen (K,)`; `scatter (d, d)` around (class, repetition) means with its degrees
    of freedom `windows`; `jitter (d, d)` of repetition means around class means with its `repetitions`.
    """

    means: Array
    seen: NDArray[np.bool_]
    scatter: Array
    windows: float
    jitter: Array
    repetitions: float


def ring_placements(channels: int) -> tuple[Placement, ...]:
    """Placements of a ring: every electrode and the half steps nearest to the usual place, either way round."""
    turns = sorted({0.0, 0.5, 1.5, channels - 1.5, channels - 0.5, *map(float, range(channels))})
    if len(turns) > 16:  # a dense array: whole turns near the usual place only
        turns = [t for t in turns if min(t, channels - t) <= 3.5]

    def weight(turn: float, flipped: bool) -> float:
        """Log weight of a placement: the farther turned the rarer, and flipped the rarest."""
        away = min(turn, channels - turn)
        if flipped:
            return -3.5
        return 0.0 if away == 0 else -1.0 if away <= 0.5 else -1.5 if away <= 1 else -3.0

    return tuple(Placement(t, f, weight(t, f)) for f in (False, True) for t in turns)


def moments(h: Array, y: NDArray[np.int64], repetition: NDArray[np.int64], classes: int) -> Moments:
    """Summarise features `h (n, d)` with labels and repetition ids `(n,)`."""
    d = h.shape[1]
    means, seen = np.zeros((classes, d)), np.zeros(classes, bool)
    scatter, jitter, windows, repetitions = np.zeros((d, d)), np.zeros((d, d)), 0.0, 0.0
    for c in np.unique(y):
        own = []
        for r in np.unique(repetition[y == c]):
            z = h[(y == c) & (repetition == r)]
            own.append(z.mean(0))
            z = z - own[-1]
            scatter += z.T @ z
            windows += len(z) - 1
        stack = np.stack(own)
        means[c], seen[c] = stack.mean(0), True
        stack = stack - means[c]
        jitter += stack.T @ stack
        repetitions += len(stack) - 1
    return Moments(means, seen, scatter, windows, jitter, repetitions)


@torch.no_grad()
def handmade_moments(
    encoder: SignalEncoder, people: People, placement: Placement | None = None
) -> tuple[list[NDArray[np.float32]], list[Moments]]:
    """Everyone's hand-made features `(n, count)` and their moments, as worn or (thinned out) at a placement."""
    features, found = [], []
    for m in people.members:
        keep = slice(None, None, COMPONENT_THINNING if placement and len(m.y) > 1000 else 1)
        parts = []
        for x in torch.split(m.x[keep], 2048):
            x = rotated(x, placement.electrodes, flipped=placement.flipped) if placement else x
            parts.append(encoder.handmade(encoder.scaled(x)))
        h = torch.cat(parts).numpy()
        features.append(h)
        found.append(moments(h.astype(np.float64), m.y[keep], m.repetition[keep], len(people.labels)))
    return features, found


@torch.no_grad()
def gain_directions(encoder: SignalEncoder, people: People) -> list[Array]:
    """What the logarithm of the signal's gain adds to each person's hand-made features `(count,)`, on average."""
    found = []
    for m in people.members:
        x = encoder.scaled(m.x[:: COMPONENT_THINNING * 2])
        moved = encoder.handmade(x * 2**0.5) - encoder.handmade(x / 2**0.5)
        found.append(moved.mean(0).numpy().astype(np.float64) / np.log(2))
    return found


@dataclass(frozen=True, eq=False)
class Covariances:
    """Class means `(K, d)` and covariances `(d, d)` of a population."""

    means: Array
    within: Array
    between: Array
    repetition: Array


def covariances(found: Sequence[Moments]) -> Covariances:
    """Pool people: every person counts the same in the means; classes share each covariance."""
    seen = np.stack([m.seen for m in found])
    own = np.stack([m.means for m in found])
    count = np.maximum(seen.sum(0), 1)
    means = (own * seen[..., None]).sum(0) / count[:, None]
    away = (own - means)[seen]
    degrees = max(float(seen.sum() - (seen.sum(0) > 0).sum()), 1.0)
    within = sum(m.scatter for m in found) / max(sum(m.windows for m in found), 1.0)
    repetitions = sum(m.repetitions for m in found)
    jitter = sum(m.jitter for m in found) / max(repetitions, 1.0)
    between = away.T @ away / degrees
    if not repetitions:  # one repetition each: its spread cannot be told from the people's
        jitter = 0.3 * between
    d = own.shape[2]
    floor = 1e-6 * max(float(np.trace(within)) / d, 1e-9)
    return Covariances(means, np.asarray(within) + floor * np.eye(d), between, np.asarray(jitter))


def projection_of(c: Covariances, features: int) -> tuple[Array, Array]:
    """Return the centre `(d,)` and the projection `(d, p)` that keep what tells classes and people apart.

    Generalised eigenvectors of (between classes + between people) against within: the projected covariance within is I.
    """
    centre = c.means.mean(0)
    spread = c.means - centre
    signal = c.between + spread.T @ spread / max(len(spread) - 1, 1)
    # Scale to unit deviations first, so that tiny features are not lost in the ridge.
    unit = 1 / np.sqrt(np.diag(c.within))
    lower = np.linalg.cholesky(c.within * unit * unit[:, None] + 1e-4 * np.eye(len(unit)))
    inverse = np.linalg.inv(lower) * unit
    values, vectors = np.linalg.eigh(inverse @ signal @ inverse.T)
    order = np.argsort(values)[::-1][:features]
    return centre, inverse.T @ vectors[:, order]


def projected(c: Covariances, centre: Array, a: Array, people: int) -> Covariances:
    """The population in projected features, `between` shrunk towards a multiple of I the more, the fewer the people."""
    p = a.shape[1]
    between = a.T @ c.between @ a
    rho = 1 / (1 + people / 2)
    between = (1 - rho) * between + rho * float(np.trace(between)) / p * np.eye(p)
    return Covariances((c.means - centre) @ a, a.T @ c.within @ a, between, a.T @ c.repetition @ a)


def correlation_of(found: Sequence[Moments], means: Array, a: Array) -> Array:
    """Correlation `(K, K)` of what people do differently in one class and in another, in projected features.

    They are in units of the covariance within, so that directions count by how far people differ in them. A class that
    a person has not shown tells nothing; shrunk towards none the more, the fewer the people.
    """
    away = np.stack([np.where(m.seen[:, None], m.means - means, 0.0) @ a for m in found])
    together = np.einsum("ucp,uep->ce", away, away)
    deviation = np.sqrt(np.maximum(np.diag(together), 1e-12))
    rho = 1 / (1 + len(found) / 2)
    correlation = (1 - rho) * together / deviation / deviation[:, None]
    np.fill_diagonal(correlation, 1.0)
    return np.asarray(correlation)


def population_prior(
    found: Sequence[Sequence[Moments]],
    who: Sequence[int],
    labels: tuple[str, ...],
    personal: int,
    extra: int = 0,
    hyper: HyperParameters | None = None,
) -> tuple[Prior, Array, Array]:
    """Make the prior of some people, the centre `(d,)` and the projection `(d, p)` of the features that it is in.

    `found[m][u]`: moments of person u at placement m. The generic head is the population's linear discriminant over the
    projected features, and ignores `extra` further ones.
    """
    base = covariances([found[0][u] for u in who])
    centre, a = projection_of(base, personal)
    placed = [projected(covariances([at[u] for u in who]), centre, a, len(who)) for at in found]
    c = placed[0]
    weight = np.linalg.solve(c.within + c.repetition + c.between, c.means.T).T
    bias = -0.5 * (weight * c.means).sum(1)
    log_weight = np.full(len(placed), -UNLIKELY)
    log_weight[0] = 0.0
    values, vectors = np.linalg.eigh(c.within)
    prior = Prior(
        labels=labels,
        generic_weight=np.pad(weight, ((0, 0), (0, extra))),
        generic_bias=bias,
        means=c.means,
        within=c.within,
        between=c.between,
        repetition=c.repetition,
        whitening=(vectors / np.sqrt(np.maximum(values, 1e-12))).T,
        hyper=hyper or HyperParameters(),
        correlation=correlation_of([found[0][u] for u in who], base.means, a),
        placements=Placements(
            means=np.stack([q.means for q in placed]),
            within=np.stack([q.within for q in placed]),
            between=np.stack([q.between for q in placed]),
            repetition=np.stack([q.repetition for q in placed]),
            log_weight=log_weight,
        )
        if len(placed) > 1
        else None,
    )
    return prior, centre, a


def set_placements(encoder: SignalEncoder, prior: Prior, placements: Sequence[Placement]) -> None:
    """Write the population's mixture over placements into the encoder's graph."""
    placed = prior.placements
    count = 1 if placed is None else len(placed)
    mixture = encoder.placements
    for m in range(count):
        at = replace(prior.at(m), placements=None)
        covariance = at.within + at.repetition + at.between
        lower = np.linalg.cholesky(covariance)
        inverse = np.linalg.inv(lower)
        linear = (at.means @ inverse.T) @ inverse
        p, k = at.personal, at.classes
        log_det = np.log(np.diag(lower)).sum()
        weight = (placements[m].log_weight if count > 1 else 0.0) / mixture.tempering
        mixture.weight[:, m * p : (m + 1) * p] = torch.from_numpy(inverse.T.astype(np.float32))
        mixture.linear[:, m * k : (m + 1) * k] = torch.from_numpy(linear.T.astype(np.float32))
        mixture.bias[m] = torch.from_numpy((weight - log_det - 0.5 * (linear * at.means).sum(1)).astype(np.float32))
