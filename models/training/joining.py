"""How the features of several members become those of one model, whichever of the members are there."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from models.backbones.signal import EVIDENCE_FLOOR
from models.heads.head import Head

__all__ = ["Join", "always", "filled", "kept", "late", "log_posterior", "patterns", "rows_with", "stacked"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def patterns(members: int) -> Mask:
    """All ways in which members can be there, `(2^M, M)`; row Σ 2^m of those that are, the first of none."""
    return np.array([found[::-1] for found in product((False, True), repeat=members)])


def always(way: Mask, rows: int) -> Mask:
    """The same members there in every row: `(n, M)`."""
    return np.repeat(way[None], rows, 0)


def rows_with(present: Mask, way: Mask) -> Mask:
    """Which rows of `present (n, M)` have all members of a way, `(n,)`."""
    return np.asarray(present[:, way].all(1))


def log_posterior(logits: Array) -> Array:
    """Log posteriors `(n, K)` of logits, from below at the floor that evidence has."""
    top = logits - logits.max(1, keepdims=True)
    return np.asarray(np.maximum(top - np.log(np.exp(top).sum(1, keepdims=True)), EVIDENCE_FLOOR))


@dataclass(frozen=True, eq=False)
class Join:
    """Features `(n, p + K)` of M members' features `(n, d_m)`: what personal heads are fitted in, and evidence.

    Attributes:
        sizes: of each member, how many first features are its personal ones, p_m; P is their sum.
        heads: of each member, the generic head on all its features, its rows in the order of the joint labels.
        impute: `(P, P)` what the personal features of members that are there say of those that are missing.
        centre: `(P,)`, projection: `(P, p)`: from all members' personal features to the joint ones.
        shares: late fusion: `(2^M, M)` weight of each member's log posterior, by which members are there; or None.
        probe: concatenated fusion: linear in `[personal (P) | log posteriors (MK) | present (M)]`; or None.
    """

    sizes: tuple[int, ...]
    heads: tuple[Head, ...]
    impute: Array
    centre: Array
    projection: Array
    shares: Array | None = None
    probe: Head | None = None

    @property
    def classes(self) -> int:
        """Number of labels K."""
        return len(self.heads[0].bias)

    def features(self, members: Sequence[NDArray[np.floating]], present: Mask) -> Array:
        """Joint features; `present (n, M)` says which members' rows count."""
        z = np.concatenate([f[:, :p] for f, p in zip(members, self.sizes, strict=True)], 1)
        evidence = [log_posterior(head.logits(f)) for head, f in zip(self.heads, members, strict=True)]
        h = (filled(z, present, self.sizes, self.impute) - self.centre) @ self.projection
        if self.shares is not None:
            logits = late(evidence, present, self.shares)
        else:
            assert self.probe is not None
            logits = self.probe.logits(stacked(z, evidence, present, self.sizes))
        return np.concatenate([h, log_posterior(logits)], 1)


def kept(z: Array, present: Mask, sizes: Sequence[int]) -> Array:
    """Personal features `(n, P)` with those of missing members at 0, the middle of the population."""
    return np.where(np.repeat(present, sizes, 1), z, 0.0)


def filled(z: Array, present: Mask, sizes: Sequence[int], impute: Array) -> Array:
    """Personal features `(n, P)` with those of missing members as the others predict them."""
    there = kept(z, present, sizes)
    return np.where(np.repeat(present, sizes, 1), z, there @ impute)


def stacked(z: Array, evidence: Sequence[Array], present: Mask, sizes: Sequence[int]) -> Array:
    """What the probe of concatenated fusion sees, `(n, P + MK + M)`."""
    told = [np.where(present[:, m : m + 1], found, 0.0) for m, found in enumerate(evidence)]
    return np.concatenate([kept(z, present, sizes), *told, present], 1)


def late(evidence: Sequence[Array], present: Mask, shares: Array) -> Array:
    """Sum of the members' log posteriors, weighed by which of them are there: logits `(n, K)`."""
    weights = shares[present @ (1 << np.arange(present.shape[1]))]
    parts = [np.where(present[:, m : m + 1], weights[:, m : m + 1] * found, 0.0) for m, found in enumerate(evidence)]
    return np.asarray(sum(parts))
