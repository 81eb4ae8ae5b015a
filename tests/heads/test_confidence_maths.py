"""Sets of labels hold the true one as often as they say, where windows are exchangeable."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.heads.confidence import LEVELS, level_of, measure, population_floors, set_floors
from models.heads.folds import HeldOut
from models.heads.head import softmax
from models.heads.scores import calibration_error, confusion, macro_f1

K = 4


def drawn(rng, n, sharpness):
    """Windows whose labels are as likely as the probabilities say."""
    probabilities = np.asarray(softmax(sharpness * rng.standard_normal((n, K))))
    y = np.array([rng.choice(K, p=p) for p in probabilities])
    return probabilities, y


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 6.0])
def test_coverage_on_windows_not_seen(sharpness):
    rng = np.random.default_rng(4)
    floors = set_floors(*drawn(rng, 4000, sharpness))
    probabilities, y = drawn(rng, 4000, sharpness)
    for level, floor in zip(LEVELS, floors, strict=True):
        held = (probabilities[np.arange(len(y)), y] >= floor).mean()
        assert held == pytest.approx(level, abs=0.025)


def test_few_windows_promise_little():
    probabilities, y = np.eye(K)[[0, 1, 2, 3]], np.arange(K)
    floors = set_floors(probabilities, y)
    assert floors[LEVELS.index(0.8)] == 1.0  # of five windows, the next one too, four are covered
    assert floors[LEVELS.index(0.85)] == 0.0  # more cannot be told from four: every label


@given(st.integers(1, 200), st.integers(0, 2**32 - 1), st.floats(0.1, 8))
def test_floors_fall_with_coverage_and_do_not_depend_on_the_order(n, seed, sharpness):
    rng = np.random.default_rng(seed)
    probabilities, y = np.asarray(softmax(sharpness * rng.standard_normal((n, K)))), rng.integers(0, K, n)
    floors = set_floors(probabilities, y)
    assert (np.diff(floors) <= 0).all()
    order = rng.permutation(n)
    assert np.array_equal(floors, set_floors(probabilities[order], y[order]))
    population = population_floors([(probabilities, y)])
    assert (np.diff(population) <= 0).all()


@given(st.floats(0.001, LEVELS[-1]))
def test_a_coverage_takes_the_level_that_is_not_below_it(coverage):
    level = level_of(coverage)
    assert LEVELS[level] >= coverage - 1e-9
    assert level == 0 or LEVELS[level - 1] < coverage


@pytest.mark.parametrize("coverage", [0.0, -1.0, 1.0, float("nan")])
def test_coverages_beyond_the_levels_are_refused(coverage):
    with pytest.raises(ValueError, match="coverage"):
        level_of(coverage)


def held_out(rng, repetitions, n=120):
    y = rng.integers(0, K, n)
    logits = 3.0 * np.eye(K)[y] + rng.standard_normal((n, K))
    return HeldOut(y, y, 3, logits, 4 * logits, repetitions=repetitions)


def test_a_temperature_that_fits_lowers_the_calibration_error(rng):
    probabilities, y = drawn(rng, 2000, 1.5)
    logits = np.log(probabilities)
    held = HeldOut(y, y, 3, logits, logits, repetitions=3)  # the candidate's logits carry the temperature already
    found = measure(held, 4.0, 1.0)
    assert found.after < 0.05 < found.before
    assert found.after == pytest.approx(calibration_error(probabilities, y))


def test_few_repetitions_do_not_set_floors_alone(rng):
    population = tuple(np.linspace(0.5, 0.01, len(LEVELS)))
    assert measure(held_out(rng, 1), 1.0, 1.0).floors is None
    own = measure(held_out(rng, 3), 1.0, 1.0).floors
    for repetitions in (1, 2):
        floors = measure(held_out(np.random.default_rng(7), repetitions), 1.0, 1.0, population).floors
        assert (floors <= np.array(population)).all()
    assert not (own <= np.array(population)).all()
    assert measure(held_out(rng, 2), 1.0, 1.0).floors is not None


def test_scores_of_a_table_by_hand():
    y, said = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    assert confusion(said, y, 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert macro_f1(said, y) == pytest.approx((2 / 3 + 2 / 4 + 0) / 3)
    assert calibration_error(np.eye(3)[said], y) == pytest.approx(0.5)
