"""Adaptation without labels: a calibrated head's class means follow the windows that come, under the population prior.

A session differs from the calibration by an offset that all classes share, b ~ N(0, B), and by what each class does of
its own, e_c ~ N(0, E): the posterior covariance of the labelled mean and what a repetition varies by. A stream's class
mean v_c is seen with noise N_c, of the repetitions and the effective number of windows behind it. Then in closed form

    b = (B⁻¹ + Σ G_c)⁻¹ Σ G_c (v_c − M̃_c),   e_c = E G_c (v_c − M̃_c − b),   G_c = (E + N_c)⁻¹,

and expectation–maximisation alternates this with the responsibilities. Every fit begins at the calibrated head, so the
adapted one is a function of the labelled statistics and the passages alone: it cannot wander off step by step.
Sources: Dempster, Laird & Rubin 1977; incremental EM on sufficient statistics, Neal & Hinton 1998, Cappé & Moulines
2009; hierarchical prior as in `models.heads.fit`; Vidovic et al. 2016 (adaptation of myoelectric LDA).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.heads.fit import blended_covariance, gaussian_head, map_means, placed
from models.heads.head import NEVER, Head, softmax
from models.heads.prior import Prior
from models.heads.sums import Sums

Array = NDArray[np.float64]

GAINS_KEPT = 48
"""Inverses `(p, p)` that an anchor remembers."""

__all__ = ["Anchor", "Moved", "Passages", "Settings", "cut", "longest_passage"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of an adaptation, chosen by leave-one-user-out on the population (docs/adaptation.md).

    `sharpness` multiplies a passage's logits in the responsibilities; `own` and `offset` scale the repetitions'
    covariance in E and B; `rounds` of expectation–maximisation; every class must have `independent` effective windows
    and `share` of the windows of the class with most; `cap` bounds a class's move, in standard deviations per feature;
    `passages` are kept at most.
    """

    sharpness: float = 0.7
    own: float = 0.5
    offset: float = 0.5
    rounds: int = 4
    independent: float = 2.0
    share: float = 0.3
    cap: float = 2.0
    passages: int = 400


@dataclass(frozen=True, eq=False)
class Passages:
    """Stretches of consecutive windows that were decided alike: sufficient statistics of a stream.

    `count (g,)` windows and `mean (g, d)` features of each.
    """

    count: Array
    mean: Array

    def __len__(self) -> int:
        """Number of passages g."""
        return len(self.count)

    def part(self, which: slice) -> Passages:
        """Some of them."""
        return Passages(self.count[which], self.mean[which])


def longest_passage(prior: Prior) -> int:
    """Windows after which a passage ends even if the decision stays: a third of those that tell as much as one."""
    return max(1, round(prior.hyper.window / 3))


def cut(z: NDArray[np.floating], head: Head, longest: int) -> Passages:
    """Cut features `(n, d)` in time order into passages of at most `longest` windows that `head` decides alike."""
    z = np.asarray(z, np.float64)
    if not len(z):
        return Passages(np.zeros(0), np.zeros((0, z.shape[1])))
    decided = head.logits(z).argmax(1)
    begins = np.flatnonzero(np.concatenate([[True], decided[1:] != decided[:-1]]))
    lengths = np.diff(np.append(begins, len(z)))
    starts = np.concatenate([np.arange(b, b + n, longest) for b, n in zip(begins, lengths, strict=True)])
    count = np.diff(np.append(starts, len(z))).astype(np.float64)
    return Passages(count, np.add.reduceat(z, starts, axis=0) / count[:, None])


@dataclass(frozen=True, eq=False)
class Moved:
    """Class means after an adaptation.

    Attributes:
        means: `(K, p)`.
        head: the calibrated head with its class means there.
        windows: windows that count for each class, `(K,)`: sums of responsibilities.
        drift: how far the class that moved most did, in standard deviations of E + B per feature.
        complete: whether the stream showed every class, none of them too rarely: else nothing may be moved, for what is
            taken for an absent or rare class is mostly another one's errors, which a moved mean multiplies.
    """

    means: Array
    head: Head
    windows: Array
    drift: float
    complete: bool


class Anchor:
    """A calibrated head with the statistics it was fitted from: what an adaptation begins at, and is judged by.

    Args:
        prior: the bundle's population prior.
        stats: the user's labelled statistics; empty ones for a user who has none.
        head: the calibrated head, or the shared one for a user without statistics. Of any method: class means move it
            as much as they move the default head of these statistics, scaled to this head's size.

    Attributes:
        kind: classes of the same number have the same covariances, `(K,)`.
        answerable: which classes the head may answer, `(K,)`.
        labelled_accuracy: `expected_accuracy` of the calibrated class means.
        discriminant: the discriminant at the posterior class means, which moves are measured from.
    """

    def __init__(self, prior: Prior, stats: Sums, head: Head, settings: Settings | None = None) -> None:
        self.settings = s = settings or Settings()
        self.prior = prior = placed(stats, prior)
        self.head, self.stats = Head(np.asarray(head.weight, np.float64), np.asarray(head.bias, np.float64)), stats
        self.longest = longest_passage(prior)
        self.answerable = self.head.bias > NEVER / 2
        self.means = map_means(stats, prior)
        self.covariance = blended_covariance(stats, prior)
        ridge = 1e-9 * float(np.trace(self.covariance)) / prior.personal
        self._precision = np.linalg.inv(self.covariance + ridge * _eye(prior))
        self._white = np.linalg.cholesky(self._precision)
        self.own = _uncertainty(stats, prior) + s.own * prior.repetition
        self.offset = s.offset * prior.repetition
        self._spread = np.linalg.inv(self.own + self.offset)
        self._repetition_windows = _repetition_windows(prior)
        self.kind = np.unique(np.stack([stats.n, stats.repetitions_seen]), axis=1, return_inverse=True)[1].reshape(-1)
        self._gains: dict[tuple[int, int], Array] = {}
        self.discriminant = gaussian_head(self.means, self.covariance, prior.hyper.temperature, prior.dim)
        self._scale = self._size() if stats.n.any() else 1.0
        self.labelled_accuracy = self.expected_accuracy(self.means)

    @property
    def nbytes(self) -> int:
        """Bytes that it may come to take, with the passages of a stream."""
        p = self.prior.personal
        matrices = GAINS_KEPT + 2 * self.prior.classes + 4
        return 8 * (matrices * p * p + self.settings.passages * (self.prior.dim + 1))

    def _size(self) -> float:
        """How much of the default head is in the calibrated one, by least squares: below 1 for a blend."""
        p = self.prior.personal
        parts = np.stack([h[:, :p].ravel() for h in (self.discriminant.weight, self.prior.generic_weight)], 1)
        return float(max(np.linalg.lstsq(parts, self.head.weight[:, :p].ravel(), rcond=None)[0][0], 0.0))

    def head_at(self, means: Array) -> Head:
        """The calibrated head with its class means moved to `means (K, p)`."""
        share = self._scale / self.prior.hyper.temperature
        weight = self.head.weight.copy()
        weight[:, : self.prior.personal] += share * (means - self.means) @ self._precision
        lengths = [((m @ self._precision) * m).sum(1) for m in (means, self.means)]
        return Head(weight, self.head.bias - 0.5 * share * (lengths[0] - lengths[1]))

    def cut(self, z: NDArray[np.floating]) -> Passages:
        """Cut a stream of features `(n, d)` into passages, the newest ones that are kept."""
        return cut(z, self.head, self.longest).part(slice(-self.settings.passages, None))

    def moved(self, passages: Passages) -> Moved:
        """Fit class means to passages by expectation–maximisation from the calibrated head."""
        s, z = self.settings, passages.mean[:, : self.prior.personal]
        means, head, windows = self.means, self.head, np.zeros(self.prior.classes)
        for _ in range(s.rounds if len(passages) else 0):
            share = softmax(s.sharpness * head.logits(passages.mean)) * passages.count[:, None]
            windows = share.sum(0)
            means = self._posterior(windows, share.T @ z / np.maximum(windows, 1e-9)[:, None])
            head = self.head_at(means)
        means, drift = self._capped(means)
        enough = s.independent * self.prior.hyper.window
        shown = windows[self.answerable]
        complete = bool(shown.size and shown.min() >= max(enough, s.share * shown.max()))
        return Moved(means, self.head_at(means), windows, drift, complete)

    def _posterior(self, windows: Array, seen_at: Array) -> Array:
        """Posterior class means of a stream whose classes have so many windows `(K,)` at `seen_at (K, p)`."""
        seen = np.flatnonzero(windows >= 1)
        away = seen_at - self.means
        means = self.means.copy()
        if not len(seen):
            return means
        gains = np.stack([self._gain(int(c), windows[c]) for c in seen])
        pull = (gains @ away[seen, :, None]).sum(0)[:, 0]
        offset = np.linalg.solve(_eye(self.prior) + self.offset @ gains.sum(0), self.offset @ pull)
        means += offset
        means[seen] += (self.own[seen] @ (gains @ (away[seen] - offset)[..., None]))[..., 0]
        return means

    def _gain(self, c: int, windows: float) -> Array:
        """(E + N)⁻¹ of a class with so many windows, to a seventh of their number: few are ever computed."""
        step = round(math.log(windows, 1.15))
        key = (int(self.kind[c]), step)
        if key not in self._gains:
            while len(self._gains) >= GAINS_KEPT:
                self._gains.pop(next(iter(self._gains)))
            windows, prior = 1.15**step, self.prior
            noise = prior.repetition * self._repetition_windows / windows + prior.within * prior.hyper.window / windows
            self._gains[key] = np.linalg.inv(self.own[c] + noise)
        return self._gains[key]

    def _capped(self, means: Array) -> tuple[Array, float]:
        """Bound each class's move from the calibrated mean; returns the means and the largest distance asked for."""
        away = means - self.means
        distance = np.sqrt((away * (self._spread @ away[..., None])[..., 0]).sum(1) / away.shape[1])
        shorter = np.minimum(1.0, self.settings.cap / np.maximum(distance, 1e-12))
        return self.means + shorter[:, None] * away, float(distance.max())

    def log_likelihood(self, passages: Passages, means: Array) -> Array:
        """Log-likelihood `(g,)` of passages' means under a mixture of classes at `means`, but for a constant.

        Tempered as the head is: neighbouring windows tell the same thing.
        """
        z, centres = passages.mean[:, : self.prior.personal] @ self._white, means @ self._white
        distance = ((z[:, None] - centres) ** 2).sum(2)
        score = -0.5 * distance / self.prior.hyper.temperature
        top = score.max(1)
        return np.asarray(top + np.log(np.exp(score - top[:, None]).mean(1)))

    def expected_accuracy(self, means: Array) -> float:
        """Accuracy that a discriminant at `means` is to be expected to have on the labelled windows, in closed form.

        Of each shown class the statistics give a Gaussian; the chance that another class scores higher is summed over
        the others (an upper bound on the error) and averaged over the classes.
        """
        seen = np.flatnonzero(self.stats.seen)
        if not len(seen):
            return 1.0
        shown, centres = self.stats.means[seen] @ self._white, means @ self._white
        distance = ((shown[:, None] - centres) ** 2).sum(2)
        margin = 0.5 * (distance - distance[np.arange(len(seen)), seen][:, None])
        apart = np.sqrt(((centres[seen][:, None] - centres) ** 2).sum(2))
        wrong = _below_zero(margin, apart)
        wrong[:, ~self.answerable] = 0.0
        wrong[np.arange(len(seen)), seen] = 0.0
        return 1.0 - float(np.minimum(wrong.sum(1), 1.0).mean())


def _uncertainty(stats: Sums, prior: Prior) -> Array:
    """How uncertain the calibrated class means are, `(K, p, p)`: the prior's covariance less what the windows told."""
    h = prior.hyper
    found = np.repeat(h.between * prior.between[None], stats.classes, 0)
    for c in np.flatnonzero(stats.seen):
        n, r = float(stats.n[c]), float(stats.repetitions_seen[c])
        between = h.between * r**h.growth * prior.between
        noise = h.repetition * ((1 - h.persistence) / r + h.persistence) * prior.repetition
        whole = between + noise + prior.within / max(r, n / h.window)
        found[c] = between - between @ np.linalg.solve(whole, between)
    return found


def _eye(prior: Prior) -> Array:
    return np.eye(prior.personal)


def _below_zero(mean: Array, deviation: Array) -> Array:
    """Chance that Gaussian numbers are below zero."""
    ratio = mean / (np.sqrt(2) * deviation + 1e-300)
    return 0.5 * np.array([math.erfc(r) for r in ratio.ravel()]).reshape(ratio.shape)


def _repetition_windows(prior: Prior) -> float:
    """Windows a class of one repetition, as the population's record has it."""
    single = [e.windows for e in prior.hyper.evidence if e.repetitions == 1]
    return float(max(single, default=5 * prior.hyper.window))
