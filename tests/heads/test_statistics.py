"""Statistics add: streamed = batch, merges commute, a part can be left out, storage loses little."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.heads import statistics
from models.heads.statistics import MAX_SEEN, MERGED, Statistics, digests, merge, minus

K, D = 3, 5


@st.composite
def samples(draw):
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = 10.0 ** draw(st.integers(-3, 3))
    return scale * rng.standard_normal((n, D)), rng.integers(0, K, n), rng.integers(0, 4, n)


def close(a: Statistics, b: Statistics, tolerance: float = 1e-9) -> bool:
    scale = max(float(np.abs(a.class_moment).max()), 1e-12)
    return (
        a.repetitions == b.repetitions
        and np.array_equal(a.count, b.count)
        and np.allclose(a.total, b.total, rtol=tolerance, atol=tolerance * scale**0.5)
        and np.allclose(a.class_moment, b.class_moment, rtol=tolerance, atol=tolerance * scale)
        and np.allclose(a.repetition_moment, b.repetition_moment, rtol=tolerance, atol=tolerance * scale)
    )


def test_digests_follow_repetitions_through_merging_storage_and_forgetting(rng):
    x, y, r = rng.standard_normal((60, 2, 4)).astype(np.float32), np.tile([0, 1, 2], 20), np.repeat(np.arange(10), 6)
    known = digests(x, y, r)
    stats = replace(Statistics.of(x[:, :, 0], y, r, K), seen_before=known)
    assert len(known) == 10
    assert set(digests(x[::-1], y[::-1], r[::-1])).isdisjoint(known)  # other windows, or another order
    merged = stats.merged_to(8)
    where = [MERGED] * 3 + list(range(3, 10))
    assert list(merged.seen_before.values()) == where
    wider = merged.padded(5)
    for same in (statistics.from_bytes(statistics.to_bytes(merged)), merged.scaled(0.5), wider, wider.trimmed(K)):
        assert same.seen_before == merged.seen_before
    assert list(merged.renumbered(20).seen_before.values()) == [MERGED] * 3 + list(range(21, 28))
    last = r == 9
    less = minus(merged, Statistics.of(x[last, :, 0], y[last], r[last], K))
    assert list(less.seen_before.values()) == where[:-1]
    assert not merged.without_class(1).seen_before
    many = merged
    for i in range(100):
        more = replace(Statistics.of(x[:6, :, 0], y[:6], np.full(6, 10 + i), K), seen_before={i: 10 + i})
        many = (many + more).merged_to(8)
    assert len(many.seen_before) == MAX_SEEN
    assert list(many.seen_before.values()) == [MERGED] * 57 + list(range(103, 110))


@settings(max_examples=60, deadline=None)
@given(samples(), st.integers(0, 40))
def test_streamed_equals_batch_and_merges_commute(data, cut):
    z, y, r = data
    whole = Statistics.of(z, y, r, K)
    first = Statistics.of(z[:cut], y[:cut], r[:cut], K)
    rest = Statistics.of(z[cut:], y[cut:], r[cut:], K)
    assert close(first + rest, whole)
    assert close(rest + first, first + rest)
    assert close(merge([Statistics.empty(K, D), first, rest]), whole)


@settings(max_examples=60, deadline=None)
@given(samples())
def test_leaving_out_a_repetition_equals_never_having_seen_it(data):
    z, y, r = data
    whole = Statistics.of(z, y, r, K)
    for out in np.unique(r):
        part = Statistics.of(z[r == out], y[r == out], r[r == out], K)
        assert close(minus(whole, part), Statistics.of(z[r != out], y[r != out], r[r != out], K), 1e-7)


@settings(max_examples=40, deadline=None)
@given(samples())
def test_storage_keeps_five_digits(data):
    whole = Statistics.of(*data, K)
    assert close(statistics.from_bytes(statistics.to_bytes(whole)), whole, 1e-5)


@settings(max_examples=40, deadline=None)
@given(samples(), st.integers(1, 4))
def test_merging_old_repetitions_keeps_the_sums(data, limit):
    whole = Statistics.of(*data, K)
    small = whole.merged_to(limit)
    assert len(small.repetitions) <= limit
    assert np.allclose(small.means, whole.means)
    assert np.array_equal(small.n, whole.n)
    assert np.allclose(small.repetition_moment.sum(0), whole.repetition_moment.sum(0))


def test_scatter_is_that_of_the_samples_within_class_and_repetition(rng):
    z, y, r = rng.standard_normal((60, D)), rng.integers(0, K, 60), rng.integers(0, 3, 60)
    expected = np.zeros((D, D))
    for c in range(K):
        for k in range(3):
            block = z[(y == c) & (r == k)]
            expected += (block - block.mean(0)).T @ (block - block.mean(0))
    assert np.allclose(Statistics.of(z, y, r, K).scatter(), expected)


def test_size_at_rest_of_the_semg_bundle(rng):
    z, y, r = rng.standard_normal((5320, 64)), np.arange(5320) % 7, np.arange(5320) // 1330
    assert len(statistics.to_bytes(Statistics.of(z, y, r, 7))) <= 128 * 1024


def test_different_spaces_are_refused(rng):
    with pytest.raises(ValueError, match="cannot be merged"):
        Statistics.empty(2, 3) + Statistics.empty(2, 4)
    with pytest.raises(ValueError, match="not a user's statistics"):
        statistics.from_bytes(b"nonsense")


def test_what_was_left_out_is_stored_as_it_is(rng):
    whole = Statistics.of(rng.standard_normal((60, 4)), np.repeat([0, 1, 2], 20), np.arange(60) % 3, 3)
    for stats in (
        whole.without_class(1),
        minus(whole, Statistics.of(np.ones((1, 4)), np.array([0]), np.array([0]), 3)),
    ):
        again = statistics.from_bytes(statistics.to_bytes(stats))
        assert np.array_equal(again.count, stats.count)
        assert np.allclose(again.total, stats.total, atol=1e-5)
