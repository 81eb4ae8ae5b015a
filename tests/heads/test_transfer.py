"""Every calibration is classified, with an interval; fewer repetitions make a smaller claim."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.heads.calibration import calibrate
from models.heads.folds import HeldOut
from models.heads.prior import Evidence
from models.heads.transfer import expected, measured
from tests.heads.test_guard import K, user
from tests.tiny import tiny_prior


def held(shared_right, candidate_right, blocks, repetitions=4):
    y = np.zeros(len(shared_right), int)
    logits = lambda right: np.stack([np.where(right, 1.0, -1.0), np.zeros(len(right))], 1)  # noqa: E731
    return HeldOut(y, blocks, 4, logits(shared_right), logits(candidate_right), None, repetitions)


def test_a_gain_in_every_block_is_positive_and_a_loss_negative():
    blocks = np.repeat(np.arange(20), 10)
    worse = np.tile(np.arange(10) < 5, 20)
    better = np.tile(np.arange(10) < 9, 20)
    up, down = measured(held(worse, better, blocks)), measured(held(better, worse, blocks))
    assert (up.verdict, down.verdict) == ("positive", "negative")
    assert up.gain == pytest.approx(0.4)
    assert down.gain == pytest.approx(-0.4)


def test_one_block_is_never_enough():
    found = measured(held(np.zeros(50, bool), np.ones(50, bool), np.zeros(50, int)))
    assert found.verdict == "neutral"
    assert (found.low, found.high) == (-1.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(1, 9), st.integers(0, 2**31))
def test_the_interval_holds_the_gain_and_the_word_follows_it(blocks, size, seed):
    rng = np.random.default_rng(seed)
    n = blocks * size
    found = measured(held(rng.random(n) < 0.6, rng.random(n) < 0.7, np.repeat(np.arange(blocks), size)))
    assert -1 <= found.low <= found.gain <= found.high <= 1
    assert found.verdict == ("positive" if found.low > 0 else "negative" if found.high < 0 else "neutral")


def test_intervals_hold_the_truth_about_as_often_as_they_say(rng):
    hits = 0
    for _ in range(400):
        block = rng.normal(0.1, 0.1, 12)  # blocks err as one
        p = np.clip(0.5 + np.repeat(block, 30), 0, 1)
        found = measured(held(rng.random(360) < 0.5, rng.random(360) < p, np.repeat(np.arange(12), 30)))
        hits += found.low <= 0.1 <= found.high
    assert 0.90 <= hits / 400 <= 0.99


def test_one_repetition_makes_a_smaller_claim(rng):
    z, y, _ = user(rng)
    one = calibrate(tiny_prior(), z, y, np.zeros(len(y), int)).verdict.transfer
    three = calibrate(tiny_prior(), z, y, np.arange(len(y)) % 3).verdict.transfer
    assert "within one repetition only" in one.claim
    assert "left-out repetitions, 3 in all" in three.claim


def test_nothing_held_out_claims_what_others_gained(rng):
    z, y, _ = user(rng, per_class=1, offset=0.3)
    found = calibrate(tiny_prior(), z, y, np.zeros(K, int)).verdict.transfer
    assert "expected from 10 other people, not measured on this one" in found.claim
    assert "two-sided 95 %" in found.claim
    assert found.low < found.gain < found.high


def test_the_bound_in_the_reason_is_named_for_what_it_is(rng):
    z, y, _ = user(rng, per_class=1, offset=0.3)
    verdict = calibrate(tiny_prior(), z, y, np.zeros(K, int)).verdict
    assert "gained +10.0% (at least +5.0%, a one-sided 95 % bound) for 10 left-out users" in verdict.reason
    assert verdict.transfer.low < 0.05


def test_the_interval_of_the_population_is_students():
    # Ten people: one-sided 95 % at 1.833 standard errors, two-sided at 2.262 (tables of Student's t, 9 degrees).
    found = expected(Evidence(windows=1, repetitions=1, users=10, gain=0.2, lower=0.2 - 0.01833, floor=0.8))
    assert found.low == pytest.approx(0.2 - 0.02262, abs=1e-4)
    assert found.high == pytest.approx(0.2 + 0.02262, abs=1e-4)
