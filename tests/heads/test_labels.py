"""Labels that come and go, and windows that age."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.heads.calibration import calibrate, shared_head
from models.heads.fit import FITS, map_means
from models.heads.folds import HeldOut
from models.heads.guard import Shots, judge_held_out
from models.heads.labels import recalls
from models.heads.shown import repeated
from models.heads.statistics import Statistics, decayed, minus
from tests.heads.test_guard import K, user
from tests.heads.test_statistics import D, close, samples
from tests.heads.test_statistics import K as SAMPLE_CLASSES
from tests.tiny import DIM, LABELS, tiny_prior

OWN = np.array([4.0, -4.0, 4.0, -4.0])


def with_a_point():
    return tiny_prior().with_own(1).named((*LABELS, "point"))


def with_a_label_of_their_own(rng, per_class=60):
    z, y, r = user(rng, per_class, offset=0.5)
    own = OWN + 0.5 * rng.standard_normal((per_class, DIM))
    return np.concatenate([z, own]), np.append(y, np.full(per_class, K)), np.append(r, np.arange(per_class) % 3)


def test_a_new_label_leaves_the_others_means_to_the_bit(rng):
    z, y, r = with_a_label_of_their_own(rng)
    prior, old = with_a_point(), y < K
    before = map_means(Statistics.of(z[old], y[old], r[old], K), tiny_prior())
    after = map_means(Statistics.of(z, y, r, K + 1), prior)
    assert np.array_equal(after[:K], before)
    assert np.linalg.norm(after[K] - z[y == K].mean(0)) < 1


@pytest.mark.parametrize("method", FITS)
def test_every_method_learns_a_new_label(method, rng):
    z, y, r = with_a_label_of_their_own(rng)
    head = FITS[method](Statistics.of(z, y, r, K + 1), with_a_point())
    assert np.mean(head.logits(z).argmax(1) == y) > 0.97


def test_a_new_label_is_promoted_beside_the_active_head(rng):
    z, y, r = with_a_label_of_their_own(rng)
    result = calibrate(with_a_point(), z, y, r, previous=shared_head(tiny_prior()))
    assert (result.verdict.outcome, result.warnings) == ("promoted", ())


def test_labels_are_not_learned_at_the_cost_of_the_known_ones():
    y = np.tile(np.arange(K + 1), 60)
    block = np.repeat(np.arange(24), 10)
    right, half = np.eye(K + 1)[y], np.eye(K + 1)[np.where((y == 1) & (np.arange(len(y)) % 3 > 0), K, y)]
    shared = np.eye(K + 1)[np.where(y == K, 1, y)]
    prior = with_a_point()
    shots = Shots(60.0, 3.0)
    assert judge_held_out(HeldOut(y, block, 3, shared, right), prior, shots).outcome == "promoted"
    worse = judge_held_out(HeldOut(y, block, 3, shared, half), prior, shots)
    assert worse.outcome == "kept"
    assert "known before would be decided worse" in worse.reason


def test_recalls_before_and_after():
    y = np.array([0, 0, 1, 1, 3])
    before = np.eye(3)[[0, 1, 1, 1, 2]]
    after = np.eye(4)[[0, 0, 1, 0, 3]]
    found = recalls(before, after, y, ["a", "b", "c", "d"])
    assert [(r.windows, r.before, r.after) for r in found] == [
        (2, 0.5, 1.0),
        (2, 1.0, 0.5),
        (0, None, None),
        (1, 0.0, 1.0),
    ]


@settings(max_examples=60, deadline=None)
@given(samples(), st.integers(0, SAMPLE_CLASSES - 1))
def test_a_forgotten_class_was_never_there(data, gone):
    z, y, r = data
    left = y != gone
    found = Statistics.of(z, y, r, SAMPLE_CLASSES).without_class(gone)
    fresh = Statistics.of(z[left], y[left], r[left], SAMPLE_CLASSES)
    assert found.repetitions == fresh.repetitions
    assert np.array_equal(found.count, fresh.count)
    assert np.array_equal(found.total, fresh.total)
    assert np.array_equal(found.class_moment, fresh.class_moment)
    scale = max(float(np.abs(z).max()) ** 2 * len(z), 1e-12)
    if len(np.unique(r[left])) == len(np.unique(r)):
        assert np.allclose(found.repetition_moment.sum(0), fresh.repetition_moment.sum(0), atol=1e-9 * scale)
    if len(np.unique(r)) == 1:
        assert np.allclose(found.repetition_moment, fresh.repetition_moment, atol=1e-9 * scale)


@settings(max_examples=60, deadline=None)
@given(samples(), samples(), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(1.0, 1e6))
def test_ageing_in_steps_is_ageing_at_once_and_commutes_with_merging(first, second, a, b, half_life):
    one, two = (Statistics.of(*data, SAMPLE_CLASSES) for data in (first, second))
    steps = decayed(decayed(one, a, half_life), b, half_life)
    at_once = decayed(one, a + b, half_life)
    assert np.allclose(steps.count, at_once.count, rtol=1e-9, atol=1e-12)
    assert np.allclose(steps.class_moment, at_once.class_moment, rtol=1e-9, atol=1e-12)
    together, apart = decayed(one + two, a, half_life), decayed(one, a, half_life) + decayed(two, a, half_life)
    assert np.allclose(together.count, apart.count, rtol=1e-12)
    assert np.allclose(together.total, apart.total, rtol=1e-9, atol=1e-9 * max(np.abs(together.total).max(), 1e-9))


@settings(max_examples=30, deadline=None)
@given(samples())
def test_a_half_life_halves_and_no_time_changes_nothing(data):
    whole = Statistics.of(*data, SAMPLE_CLASSES)
    assert np.array_equal(decayed(whole, 60.0, 60.0).count, whole.count / 2)
    assert close(decayed(whole, 0.0, 60.0), whole)
    assert np.allclose(decayed(whole, 60.0, 60.0).means, whole.means)


def test_ageing_refuses_nonsense():
    with pytest.raises(ValueError, match="half_life"):
        decayed(Statistics.empty(2, D), 1.0, 0.0)
    with pytest.raises(ValueError, match="half_life"):
        decayed(Statistics.empty(2, D), -1.0, 60.0)


def test_a_repetition_that_has_aged_is_known_again_and_counts_once(rng):
    z, y, r = user(rng)
    first = calibrate(tiny_prior(), z, y, r)
    aged = decayed(first.statistics, 90.0, 60.0)
    assert repeated(aged, Statistics.of(z, y, r, K)) == {0: 0, 1: 1, 2: 2}
    again = calibrate(tiny_prior(), z, y, r, before=aged)
    assert np.allclose(again.statistics.n, first.statistics.n)
    assert minus(aged, aged).n.sum() == 0
