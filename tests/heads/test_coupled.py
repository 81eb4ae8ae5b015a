"""Classes that a person moves together: posterior means of all of them from what was shown of some."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.heads import prior as priors
from models.heads.fit import map_means
from models.heads.statistics import Statistics
from tests.tiny import DIM, LABELS, tiny_prior

K = len(LABELS)


def coupled(strength: float = 0.5, **settings):
    prior = tiny_prior()
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(3, DIM, DIM))
    within, between, repetition = (m @ m.T / DIM + 0.1 * np.eye(DIM) for m in mix)
    return replace(
        prior,
        within=within,
        between=between,
        repetition=0.1 * repetition,
        hyper=prior.hyper.model_copy(update={"window": 3.0, "growth": 1.0, "between": 2.0, **settings}),
        correlation=strength * np.ones((K, K)) + (1 - strength) * np.eye(K),
    )


def windows(rng, counts):
    """Windows `counts[c][r]` of each class and repetition: features, labels, repetitions."""
    y = np.concatenate([np.full(sum(row), c, np.int64) for c, row in enumerate(counts)])
    r = np.concatenate([np.repeat(np.arange(len(row)), row) for row in counts])
    return rng.normal(size=(len(y), DIM)) + y[:, None], y, r


def shown(rng, counts):
    return Statistics.of(*windows(rng, counts), K)


def by_hand(stats, prior):
    """The posterior means as one system over all classes."""
    h, dim, seen = prior.hyper, prior.personal, np.flatnonzero(stats.seen)
    r = stats.repetitions_seen[seen]
    growth = np.full(K, np.sqrt(r**h.growth).mean())
    growth[seen] = np.sqrt(r**h.growth)
    whole = np.kron(prior.correlation * growth[:, None] * growth, h.between * prior.between)
    rows = (seen[:, None] * dim + np.arange(dim)).ravel()
    data = whole[np.ix_(rows, rows)]
    for i, c in enumerate(seen):
        own = slice(i * dim, (i + 1) * dim)
        windows = max(r[i], stats.n[c] / h.window)
        data[own, own] += h.repetition / r[i] * prior.repetition + prior.within / windows
    away = (stats.means[seen] - prior.means[seen]).ravel()
    return prior.means + (whole[:, rows] @ np.linalg.solve(data, away)).reshape(K, dim)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.lists(st.integers(0, 400), min_size=1, max_size=4), min_size=K, max_size=K))
def test_they_are_the_posterior_of_one_gaussian_over_all_classes(seed, counts):
    if not any(map(sum, counts)):
        counts[0] = [1]
    stats, prior = shown(np.random.default_rng(seed), counts), coupled()
    assert np.allclose(map_means(stats, prior), by_hand(stats, prior), rtol=0, atol=1e-8)


def test_classes_that_move_as_one_are_solved_however_unequal_their_counts(rng):
    """Then the system is as ill-conditioned as it gets, and has many unknowns."""
    dim = 64
    prior = replace(
        coupled(1.0, window=30.0, between=1.0),
        means=np.zeros((K, dim)),
        within=np.eye(dim),
        between=np.diag(np.logspace(-1, 2, dim)),
        repetition=np.diag(np.logspace(1, -1, dim)),
    )
    y, r = np.concatenate([np.zeros(1200, np.int64), [1, 2]]), np.concatenate([np.repeat(np.arange(40), 30), [0, 0]])
    stats = Statistics.of(rng.normal(size=(len(y), dim)) + y[:, None], y, r, K)
    wanted = by_hand(stats, prior)
    assert np.allclose(map_means(stats, prior), wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_unrelated_classes_are_estimated_as_without_a_correlation(rng):
    stats, prior = shown(rng, [[5, 9], [3], [40, 1]]), coupled(0.0)
    assert np.allclose(map_means(stats, prior), map_means(stats, replace(prior, correlation=None)), atol=1e-9)


def test_a_class_not_shown_follows_those_that_were_as_far_as_they_are_alike(rng):
    stats = shown(rng, [[50], [50], []])
    moves = [np.linalg.norm((map_means(stats, coupled(s)) - coupled(s).means)[2]) for s in (0.0, 0.3, 0.8)]
    assert moves[0] == 0
    assert moves[0] < moves[1] < moves[2]


def test_people_whose_classes_move_together_are_known_from_fewer_windows(rng):
    prior = coupled(0.9, window=1.0, growth=0.0, between=1.0)
    root = np.linalg.cholesky(np.kron(prior.correlation, prior.between))
    errors = []
    for _ in range(40):
        truth = prior.means + (root @ rng.normal(size=K * DIM)).reshape(K, DIM)
        z = truth + rng.normal(size=(K, DIM)) @ np.linalg.cholesky(prior.within).T
        stats = Statistics.of(z, np.arange(K), np.zeros(K, np.int64), K)
        found = [map_means(stats, p) for p in (prior, replace(prior, correlation=None))]
        errors.append([np.square(m - truth).mean() for m in found])
    assert np.mean(errors, 0)[0] < 0.8 * np.mean(errors, 0)[1]


def test_labels_of_the_users_own_change_nothing_of_the_others(rng):
    prior, (z, y, r) = coupled(), windows(rng, [[5, 9], [3], [], [4]])
    before = map_means(Statistics.of(z[y < K], y[y < K], r[y < K], K), prior)
    after = map_means(Statistics.of(z, y, r, K + 1), prior.with_own(1))
    assert np.array_equal(before, after[:K])
    assert np.linalg.norm(after[K] - prior.means.mean(0)) > 0.1


def test_a_prior_keeps_its_correlation_in_a_file():
    prior = coupled()
    again = priors.from_bytes(priors.to_bytes(prior), prior.labels, prior.hyper)
    assert np.array_equal(again.correlation, prior.correlation)
    assert priors.from_bytes(priors.to_bytes(tiny_prior()), LABELS, prior.hyper).correlation is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.eye(2), "shape"),
        (2 * np.eye(K), "symmetric, 1 on the diagonal"),
        (np.array([[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]]), "no eigenvalue below 0"),
        (np.full((K, K), np.nan), "not finite"),
    ],
)
def test_what_is_no_correlation_is_refused(wrong, said):
    prior = replace(coupled(), correlation=wrong)
    with pytest.raises(ValueError, match=said):
        priors.from_bytes(priors.to_bytes(prior), prior.labels, prior.hyper)
