"""Calibrations that showed some of the labels only: refused, or a cautious blend where a record allows."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.heads.calibration import calibrate, shared_head
from models.heads.fit import map_means
from models.heads.prior import Partial
from models.heads.statistics import Statistics
from tests.heads.test_guard import K, user
from tests.tiny import tiny_prior

RULE = Partial(
    weight=0.3, lean=0.2, shown=2, repetitions=3, users=19, gain_shown=0.05, gain_unseen=0.03, worst_unseen=0.001
)


def with_rule():
    prior = tiny_prior()
    return replace(prior, hyper=prior.hyper.model_copy(update={"partial": RULE}))


def some(rng, *missing, **kwargs):
    z, y, r = user(rng, **kwargs)
    keep = ~np.isin(y, missing)
    return z[keep], y[keep], r[keep]


def test_without_a_record_nothing_is_promoted_before_every_label_was_shown(rng):
    result = calibrate(tiny_prior(), *some(rng, 2))
    assert (result.head, result.verdict.outcome) == (None, "insufficient")
    assert "no windows yet of open" in result.verdict.reason


def test_with_a_record_a_cautious_blend_leans_to_what_was_not_shown(rng):
    prior = with_rule()
    result = calibrate(prior, *some(rng, 2, offset=np.array([2.5, 2.5, 0.0, 0.0])))
    assert (result.verdict.outcome, result.verdict.evidence) == ("blended", "population")
    assert (result.verdict.weight, result.verdict.lean) == (RULE.weight, RULE.lean)
    shared = shared_head(prior)
    expected = (1 - RULE.weight) * shared.bias + RULE.weight * result.candidate.bias + RULE.lean * np.array([0, 0, 1])
    assert np.allclose(result.head.bias, expected)
    assert np.allclose(result.head.weight, 0.7 * shared.weight + 0.3 * result.candidate.weight)
    assert "+3.0% on average" in result.verdict.reason


def test_fewer_repetitions_or_labels_than_the_record_has_are_refused(rng):
    prior = with_rule()
    z, y, r = some(rng, 2, offset=np.array([2.5, 2.5, 0.0, 0.0]))
    two = calibrate(prior, z, y, np.minimum(r, 1))
    assert (two.head, two.verdict.outcome) == (None, "insufficient")
    more = prior.hyper.partial.model_copy(update={"shown": 3})
    strict = replace(prior, hyper=prior.hyper.model_copy(update={"partial": more}))
    assert calibrate(strict, z, y, r).head is None


def test_no_gain_on_the_labels_shown_is_no_blend(rng):
    result = calibrate(with_rule(), *some(rng, 2, offset=0.0, noise=0.1))
    assert (result.head, result.verdict.outcome) == (None, "insufficient")


def test_an_active_head_is_not_given_up_for_a_part(rng):
    prior = with_rule()
    whole = calibrate(prior, *user(rng))
    result = calibrate(prior, *some(rng, 2), previous=whole.head)
    assert (result.head, result.verdict.outcome) == (None, "insufficient")


def test_two_labels_shown_one_after_the_other_make_a_whole(rng):
    prior = with_rule()
    first = calibrate(prior, *some(rng, 2))
    second = calibrate(prior, *user(rng), before=first.statistics, previous=first.head)
    assert second.verdict.outcome == "promoted"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(0,), (1,), (2,), (0, 2)]))
def test_a_class_shown_moves_the_others_no_bit(seed, missing):
    """What the posterior mean of a class is does not depend on which other classes were shown."""
    rng = np.random.default_rng(seed)
    z, y, r = user(rng, per_class=int(rng.integers(1, 20)))
    part = ~np.isin(y, missing)
    whole = map_means(Statistics.of(z, y, r, K), tiny_prior())
    some_of_it = map_means(Statistics.of(z[part], y[part], r[part], K), tiny_prior())
    shown = [c for c in range(K) if c not in missing]
    assert np.array_equal(whole[shown], some_of_it[shown])


def test_records_refuse_nonsense():
    with pytest.raises(ValueError, match="weight"):
        Partial(
            weight=0.0,
            lean=0.2,
            shown=2,
            repetitions=3,
            users=19,
            gain_shown=0.05,
            gain_unseen=0.03,
            worst_unseen=0.001,
        )
