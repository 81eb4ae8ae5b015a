"""Adaptation without labels: what it follows, what it leaves alone, and what the guard refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.heads.adaptation import Anchor, Passages, Settings, cut
from models.heads.calibration import shared_head
from models.heads.fit import fit_map
from models.heads.head import Head, blend
from models.heads.moments import MomentAligner
from models.heads.statistics import Statistics
from models.heads.unlabelled import Stream, adapt
from tests.tiny import DIM, LABELS, tiny_prior

K = len(LABELS)
SHIFT = np.array([1.5, -1.0, 1.5, -1.0])


def windows(rng, per_class=60, offset=0.0, noise=0.4, classes=range(K)):
    y = np.repeat(list(classes), per_class)
    return tiny_prior().means[y] + offset + noise * rng.standard_normal((len(y), DIM)), y


def calibrated(rng, per_class=5, offset=0.0):
    z, y = windows(rng, per_class, offset)
    stats = Statistics.of(z, y, np.zeros(len(y), int), K)
    return stats, fit_map(stats, tiny_prior())


def accuracy(head, z, y):
    return float((head.logits(z).argmax(1) == y).mean())


def test_a_common_offset_is_followed(rng):
    stats, head = calibrated(rng)
    anchor = Anchor(tiny_prior(), stats, head)
    z, y = windows(rng, offset=SHIFT)
    result = adapt(anchor, z)
    assert result.outcome == "promoted"
    moved = anchor.moved(anchor.cut(z)).means - anchor.means
    assert np.abs(moved - SHIFT).max() < np.abs(SHIFT).max()
    assert np.linalg.norm(moved - SHIFT) < np.linalg.norm(np.broadcast_to(SHIFT, moved.shape))
    assert accuracy(result.head, z, y) >= accuracy(head, z, y)


def test_without_windows_nothing_moves(rng):
    stats, head = calibrated(rng)
    anchor = Anchor(tiny_prior(), stats, head)
    moved = anchor.moved(anchor.cut(np.zeros((0, DIM))))
    np.testing.assert_array_equal(moved.means, anchor.means)
    assert not moved.complete


def test_unmoved_means_give_the_calibrated_head_back(rng):
    stats, head = calibrated(rng)
    for known in (head, blend(shared_head(tiny_prior()), head, 0.5), head.scaled(3.0)):
        anchor = Anchor(tiny_prior(), stats, known)
        again = anchor.head_at(anchor.means)
        np.testing.assert_allclose(again.weight, known.weight, atol=1e-12)
        np.testing.assert_allclose(again.bias, known.bias, atol=1e-12)


def test_a_head_of_half_the_size_moves_half_as_far(rng):
    stats, head = calibrated(rng)
    prior = tiny_prior()
    means = tiny_prior().means + SHIFT
    whole, half = Anchor(prior, stats, head), Anchor(prior, stats, head.scaled(2.0))
    np.testing.assert_allclose(
        half.head_at(means).weight - half.head.weight, (whole.head_at(means).weight - whole.head.weight) / 2, atol=1e-9
    )


@pytest.mark.parametrize("absent", range(K))
def test_an_absent_class_keeps_the_calibrated_head(rng, absent):
    stats, head = calibrated(rng)
    z, _ = windows(rng, offset=SHIFT, classes=[c for c in range(K) if c != absent])
    result = adapt(Anchor(tiny_prior(), stats, head), z)
    assert (result.outcome, result.head) == ("insufficient", None)
    assert LABELS[absent] in result.reason


def test_an_imbalanced_stream_keeps_the_calibrated_head(rng):
    stats, head = calibrated(rng)
    z, y = windows(rng, per_class=300, offset=SHIFT)
    rare = np.flatnonzero(y > 0).reshape(2, 300)[:, :30].ravel()
    result = adapt(Anchor(tiny_prior(), stats, head), z[np.concatenate([np.flatnonzero(y == 0), rare])])
    assert result.head is None


def test_a_stream_that_contradicts_the_labelled_windows_is_refused(rng):
    stats, head = calibrated(rng, per_class=40)
    # Every class lies where the labelled windows of another are nearly as likely.
    z, _ = windows(rng, per_class=120, offset=np.array([1.8, 1.8, 0.0, 0.0]))
    result = adapt(Anchor(tiny_prior(), stats, head, Settings(own=3.0, offset=30.0, cap=99.0)), z)
    assert result.outcome == "kept"
    assert "labelled" in result.reason


@given(st.floats(0.1, 3.0), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_no_class_moves_beyond_the_cap(cap, seed):
    rng = np.random.default_rng(seed)
    stats, head = calibrated(rng)
    anchor = Anchor(tiny_prior(), stats, head, Settings(cap=cap))
    away = anchor.moved(anchor.cut(10 * rng.standard_normal((200, DIM)))).means - anchor.means
    spread = anchor.own + anchor.offset
    distance = np.sqrt(np.einsum("ki,ki->k", away, np.linalg.solve(spread, away[..., None])[..., 0]) / DIM)
    assert distance.max() <= cap * (1 + 1e-9)


@given(st.lists(st.integers(0, K - 1), min_size=1, max_size=60), st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_passages_hold_every_window_once_and_are_decided_alike(decided, longest):
    z = np.eye(K)[decided] + np.arange(len(decided))[:, None] * 1e-6
    head = Head(np.eye(K), np.zeros(K))
    found = cut(z, head, longest)
    assert found.count.sum() == len(z)
    assert found.count.max() <= longest
    np.testing.assert_allclose((found.count[:, None] * found.mean).sum(0), z.sum(0))
    edges = np.cumsum(found.count).astype(int)
    for begin, end in zip([0, *edges[:-1]], edges, strict=True):
        assert len(set(decided[begin:end])) == 1


def test_a_stream_learns_only_from_what_it_has_seen(rng):
    """The head that scores a window must not depend on that window or on later ones."""
    stats, head = calibrated(rng)
    z, _ = windows(rng, per_class=100, offset=SHIFT)
    z = z[rng.permutation(len(z))]
    other = z.copy()
    other[150:] = rng.standard_normal((len(z) - 150, DIM)) * 5
    heads = []
    for stream_of in (z, other):
        stream = Stream(Anchor(tiny_prior(), stats, head), every=30)
        heads.append([])
        for at in range(0, len(z), 30):
            heads[-1].append(stream.head)
            stream.observe(stream_of[at : at + 30])
    for a, b in zip(heads[0][:6], heads[1][:6], strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)
    assert any((a.weight != b.weight).any() for a, b in zip(heads[0][6:], heads[1][6:], strict=True))


def test_a_stream_serves_the_calibrated_head_again_when_the_session_ends(rng):
    """Windows that are likelier under the calibrated head roll the adapted one back, without being asked."""
    stats, head = calibrated(rng, per_class=40)
    stream = Stream(Anchor(tiny_prior(), stats, head), every=30)
    moved, back = (windows(rng, per_class=300, offset=o)[0][rng.permutation(900)] for o in (SHIFT, 0.0))
    for at in range(0, 900, 30):
        stream.observe(moved[at : at + 30])
    assert stream.head is not stream.anchor.head
    served = []
    for at in range(0, 300, 30):
        stream.observe(back[at : at + 30])
        served.append(stream.head is stream.anchor.head)
    assert any(served)
    assert stream.adaptation is not None


def test_memory_of_a_stream_is_bounded(rng):
    stats, head = calibrated(rng)
    stream = Stream(Anchor(tiny_prior(), stats, head, Settings(passages=50)), every=20)
    for _ in range(60):
        stream.observe(windows(rng, per_class=10)[0])
    assert stream.kept < 50 + 30


def test_expected_accuracy_agrees_with_sampled_windows(rng):
    stats, head = calibrated(rng, per_class=200)
    anchor = Anchor(tiny_prior(), stats, head)
    near = anchor.means + np.array([1.6, 1.6, 0.0, 0.0])
    z = np.concatenate([rng.multivariate_normal(m, anchor.covariance, 20000) for m in stats.means])
    y = np.repeat(np.arange(K), 20000)
    measured = accuracy(anchor.head_at(near), z, y)
    assert anchor.expected_accuracy(near) <= measured + 0.005, "the sum over other classes bounds the error"
    assert anchor.expected_accuracy(near) == pytest.approx(measured, abs=0.03)
    assert anchor.expected_accuracy(anchor.means) > anchor.expected_accuracy(near)


def test_without_labels_the_population_is_the_anchor(rng):
    prior = tiny_prior()
    anchor = Anchor(prior, Statistics.empty(K, DIM), shared_head(prior))
    z, y = windows(rng, offset=SHIFT)
    result = adapt(anchor, z)
    assert accuracy(result.candidate, z, y) >= accuracy(shared_head(prior), z, y)


def test_moments_follow_the_mean_of_a_balanced_stream(rng):
    stats, head = calibrated(rng)
    aligner = MomentAligner(Anchor(tiny_prior(), stats, head))
    z, _ = windows(rng, per_class=2000, offset=SHIFT)
    np.testing.assert_array_equal(aligner.aligned(z), z)
    aligner.observe(z)
    np.testing.assert_allclose(aligner.aligned(z).mean(0), Anchor(tiny_prior(), stats, head).means.mean(0), atol=0.01)


def test_second_moments_are_aligned_too_if_asked(rng):
    stats, head = calibrated(rng)
    anchor = Anchor(tiny_prior(), stats, head)
    z, _ = windows(rng, per_class=4000, offset=SHIFT)
    z = z.copy()
    z[:, :DIM] *= np.linspace(0.7, 1.5, DIM)
    aligner = MomentAligner(anchor, second=True)
    aligner.observe(z)
    found = np.cov(aligner.aligned(z)[:, :DIM].T)
    means = anchor.means - anchor.means.mean(0)
    np.testing.assert_allclose(found, anchor.covariance + means.T @ means / K, atol=0.05)


def test_a_part_of_passages_is_those_passages():
    passages = Passages(np.arange(4.0), np.arange(8.0).reshape(4, 2))
    assert len(passages.part(slice(1, 3))) == 2
    np.testing.assert_array_equal(passages.part(slice(1, 3)).count, [1, 2])
