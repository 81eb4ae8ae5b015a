"""The guard: what it promotes, what it refuses, and why."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.heads.calibration import calibrate, shared_head
from models.heads.doubts import swapped_labels
from models.heads.folds import plan_folds
from models.heads.head import Head
from models.heads.statistics import Statistics
from tests.tiny import DIM, LABELS, tiny_prior

K = len(LABELS)
OFFSET = np.array([3.0, 3.0, 0.0, 0.0])


def user(rng, per_class=60, offset=OFFSET, noise=0.5, repetitions=3):
    y = np.repeat(np.arange(K), per_class)
    return (
        tiny_prior().means[y] + offset + noise * rng.standard_normal((len(y), DIM)),
        y,
        np.arange(len(y)) % repetitions,
    )


def test_a_user_who_differs_is_promoted_on_held_out_repetitions(rng):
    verdict = calibrate(tiny_prior(), *user(rng)).verdict
    assert (verdict.outcome, verdict.evidence, verdict.weight) == ("promoted", "held_out", 1.0)
    assert verdict.candidate.accuracy > verdict.shared.accuracy
    assert verdict.candidate.folds == 3
    assert "held-out windows" in verdict.reason


@pytest.mark.parametrize("seed", range(10))
def test_random_labels_are_kept_out(seed):
    rng = np.random.default_rng(seed)
    z, y, r = user(rng, offset=0.0)
    result = calibrate(tiny_prior(), z, rng.integers(0, K, len(y)), r)
    assert result.verdict.outcome == "kept"
    assert result.head is None


def test_a_worse_calibration_does_not_replace_a_good_active_head(rng):
    z, y, r = user(rng)
    good = calibrate(tiny_prior(), z, y, r).head
    wrong = y.copy()
    wrong[r > 0] = rng.permutation(wrong[r > 0])
    result = calibrate(tiny_prior(), z, np.where(r == 0, y, wrong), r, previous=good)
    assert result.head is None


def test_few_windows_of_one_repetition_rest_on_the_population(rng):
    z, y, _ = user(rng, per_class=1, offset=0.3)
    verdict = calibrate(tiny_prior(), z, y, np.zeros(K, int)).verdict
    assert (verdict.outcome, verdict.evidence) == ("promoted", "population")


@pytest.mark.parametrize("method", ["ncm", "lda", "ridge", "logistic"])
def test_the_population_s_record_is_of_the_default_method(rng, method):
    z, y, _ = user(rng, per_class=1, offset=0.3)
    result = calibrate(tiny_prior(), z, y, np.zeros(K, int), method=method)
    assert (result.verdict.outcome, result.head) == ("insufficient", None)
    assert f"of method 'map' only, not of '{method}'" in result.verdict.reason
    held = calibrate(tiny_prior(), *user(rng), method=method).verdict
    assert (held.outcome, held.evidence) == ("promoted", "held_out")


def test_without_a_population_record_few_windows_are_insufficient(rng):
    prior = tiny_prior()
    from dataclasses import replace

    bare = replace(prior, hyper=prior.hyper.model_copy(update={"evidence": ()}))
    z, y, _ = user(rng, per_class=1, offset=0.3)
    result = calibrate(bare, z, y, np.zeros(K, int))
    assert result.verdict.outcome == "insufficient"
    assert result.head is None


def test_a_consistent_swap_is_named(rng):
    z, y, r = user(rng, offset=0.5)
    swapped = np.choose(y, [1, 0, 2])
    assert swapped_labels(Statistics.of(z, swapped, r, K), tiny_prior()) == [("rest", "fist")]
    assert swapped_labels(Statistics.of(z, y, r, K), tiny_prior()) == []
    warnings = calibrate(tiny_prior(), z, swapped, r).warnings
    assert "'rest'" in warnings[0]
    assert "'fist'" in warnings[0]


def test_a_cycle_of_labels_is_named(rng):
    z, y, r = user(rng, offset=0.5)
    turned = np.choose(y, [1, 2, 0])
    assert swapped_labels(Statistics.of(z, turned, r, K), tiny_prior()) == [("rest", "open", "fist")]
    assert any("mixed up" in w for w in calibrate(tiny_prior(), z, turned, r).warnings)


def test_another_sensor_or_scale_is_warned_of(rng):
    z, y, r = user(rng)
    assert any("sensor" in w for w in calibrate(tiny_prior(), z * 20 + 30, y, r).warnings)
    assert not calibrate(tiny_prior(), *user(rng, offset=0.5)).warnings


def test_a_population_decision_is_not_taken_against_a_warning(rng):
    z, y, _ = user(rng, per_class=2, offset=0.2)
    result = calibrate(tiny_prior(), z * 20 + 30, y, np.zeros(len(y), int))
    assert result.verdict.outcome == "insufficient"


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(1, 7), st.integers(0, 12), st.integers(0, 2**31))
def test_folds_never_score_a_window_that_shares_samples_with_the_fit(per_class, repetitions, overlap, seed):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(K), per_class)
    r = np.sort(rng.integers(0, repetitions, len(y)))
    folds = plan_folds(y, r, overlap)
    for fold in folds:
        assert not (fold.scored & ~fold.removed).any()
        assert fold.scored.any()
        assert not fold.removed.all()
        if len(np.unique(r)) > 1:
            assert not set(r[fold.removed]) & set(r[~fold.removed])
        else:
            for c in range(K):
                where = np.flatnonzero(y == c)
                held, kept = np.flatnonzero(fold.scored[where]), np.flatnonzero(~fold.removed[where])
                assert np.abs(held[:, None] - kept[None]).min() > overlap


def test_no_folds_from_a_few_overlapping_windows():
    y = np.repeat(np.arange(K), 5)
    assert plan_folds(y, np.zeros(len(y), int), overlap=10) == []


def test_the_shared_head_is_the_bundles():
    head = shared_head(tiny_prior())
    assert isinstance(head, Head)
    assert np.array_equal(head.weight, tiny_prior().generic_weight)
