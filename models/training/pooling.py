"""The population in an encoder's features: a space for personal heads, and a prior with users or without.

Features of length 1 (what they point at tells more than how long they are) and their principal directions, which unlike
discriminants hold for labels that no one has thought of yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.collections import Collection
from models.heads.fit import fit_map
from models.heads.head import log_loss
from models.heads.prior import HyperParameters, Prior
from models.heads.statistics import Statistics
from models.training.population import covariances, moments

__all__ = ["Space", "pooled_temperature", "probe_prior", "space_of"]

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
WIDEST = 256
"""Principal directions that the linear probe sees."""
TOWARDS_ROUND = 0.9
"""Share of a multiple of I in the covariance within: strangers' labels vary in other directions than known ones. Chosen
beside 0.5 on draws of people other than those of docs/benchmarks.md, among the same labels."""
SHOWN = 5
TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)


@dataclass(frozen=True, eq=False)
class Space:
    """Where features are looked at: `centre (d,)`, for the probe `basis (d, q)`, for heads `projection (d, p)`."""

    centre: Array
    basis: Array
    projection: Array

    def reduced(self, z: Array) -> Array:
        """Features `(n, q)` that the probe sees."""
        return np.asarray((z - self.centre) @ self.basis)

    def personal(self, z: Array) -> Array:
        """Features `(n, p)` that personal heads are fitted in."""
        return np.asarray((z - self.centre) @ self.projection)


def space_of(z: Array, y: Labels, personal: int) -> Space:
    """Principal directions of features `z (n, d)`; the personal ones are scaled to mean variance 1 within classes.

    Rows of class -1, which is not known, have no part in the scale.
    """
    centre = z.mean(0)
    _, values, rows = np.linalg.svd(z - centre, full_matrices=False)
    kept = max(2, int((values > 1e-6 * values[0]).sum()))
    # A direction's sign is arbitrary: fixed, so that another LAPACK gives the same model.
    rows = rows * np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(1)])[:, None]
    basis = rows[: min(WIDEST, kept)].T
    p = min(personal, basis.shape[1])
    h, y = ((z - centre) @ basis[:, :p])[y >= 0], y[y >= 0]
    residual = h - np.stack([h[y == c].mean(0) if (y == c).any() else np.zeros(p) for c in range(int(y.max()) + 1)])[y]
    scale = float(np.sqrt((residual**2).sum() / max(residual.size - p * len(np.unique(y)), 1))) or 1.0
    return Space(centre, basis, basis[:, :p] / scale)


def probe_prior(
    z: Array, y: Labels, user: Labels, repetition: Labels, labels: Sequence[str], hyper: HyperParameters
) -> Prior:
    """Make the prior of personal features `z (n, p)`; one user only is a pooled population.

    The generic head reads the K posteriors that follow the p features. Pooled, the spread of the classes stands for
    what is between users: a user's label may mean anything that the population's labels mean.
    """
    people = np.unique(user)
    found = [moments(z[user == u], y[user == u], repetition[user == u], len(labels)) for u in people]
    c = covariances(found)
    p, k = z.shape[1], len(labels)
    eye = np.eye(p)
    within = (1 - TOWARDS_ROUND) * c.within + TOWARDS_ROUND * float(np.trace(c.within)) / p * eye
    if len(people) > 1:
        between, count = c.between, float(len(people))
    else:
        away = c.means - c.means.mean(0)
        between, count = away.T @ away / max(k - 1, 1), 0.0
    # Few classes span few directions, which says nothing of the others: pooled, all count alike.
    rho = 1 / (1 + count / 2)
    between = (1 - rho) * between + rho * float(np.trace(between)) / p * eye
    values, vectors = np.linalg.eigh(within)
    return Prior(
        labels=tuple(labels),
        generic_weight=np.concatenate([np.zeros((k, p)), np.eye(k)], 1),
        generic_bias=np.zeros(k),
        means=c.means,
        within=within,
        between=between,
        repetition=_repetition(z, y, repetition, c.repetition, within),
        whitening=(vectors / np.sqrt(np.maximum(values, 1e-12))).T,
        hyper=hyper,
    )


def _repetition(z: Array, y: Labels, repetition: Labels, jitter: Array, within: Array) -> Array:
    """What repetitions differ by beyond the few items that each has: about nothing where they were dealt at random."""
    pairs = np.unique(np.stack([repetition, y]), axis=1, return_counts=True)[1]
    values, vectors = np.linalg.eigh(jitter - within * float((1 / pairs).mean()))
    return np.asarray((vectors * np.maximum(values, 1e-6)) @ vectors.T)


def pooled_temperature(
    seen: Sequence[tuple[Array, NDArray[np.bool_]]], collection: Collection, hyper: HyperParameters, seed: int
) -> HyperParameters:
    """Choose the temperature of personal heads: five items a class are shown, others scored.

    `seen`: personal features `(n, p)` of everything, and which examples `(n,)` are strangers to what made them: those
    are shown and scored, under the prior of all others.
    """
    rng, y, k = np.random.default_rng(seed), collection.y, len(collection.labels)
    losses = np.zeros(len(TEMPERATURES))
    for z, out in seen:
        for _ in range(4):
            shown = np.zeros(len(y), bool)
            for c in np.unique(y[out]):
                where = rng.permutation(np.flatnonzero(out & (y == c)))
                shown[where[: min(SHOWN, max(1, len(where) // 2))]] = True
            scored = out & ~shown
            known = scored if out.all() else ~out
            if not scored.any():
                continue
            one = np.zeros(len(y), np.int64)
            prior = probe_prior(z[known], y[known], one[known], collection.repetition[known], collection.labels, hyper)
            statistics = Statistics.of(z[shown], y[shown], one[shown], k)
            features = np.concatenate([z[scored], np.zeros((int(scored.sum()), k))], 1)
            logits = fit_map(statistics, prior).logits(features)
            losses += [float(log_loss(logits / t, y[scored]).mean()) for t in TEMPERATURES]
    return hyper.model_copy(update={"temperature": TEMPERATURES[int(losses.argmin())]})
