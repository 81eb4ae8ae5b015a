"""What a regression head must hold: shapes, order, few windows, scales, and sums that add."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.heads.head import Head
from models.heads.regression import RegressionStatistics, fit_regression

D, T = 5, 3


def population(rng, n=4000):
    z = rng.standard_normal((n, D)) @ np.diag([1.0, 2.0, 0.5, 1.0, 3.0]) + 1.0
    x = np.concatenate([z, np.ones((n, 1))], 1)
    return Head(rng.standard_normal((T, D)), rng.standard_normal(T)), x.T @ x / n


def person(rng, generic, n=200, noise=0.1):
    own = Head(generic.weight + 0.5 * rng.standard_normal((T, D)), generic.bias + rng.standard_normal(T))
    z = rng.standard_normal((n, D)) + 1.0
    return z, own.logits(z) + noise * rng.standard_normal((n, T)), own


def test_a_person_who_differs_is_learned(rng):
    generic, second = population(rng)
    z, t, own = person(rng, generic)
    head = fit_regression(RegressionStatistics.of(z, t), generic, second, windows=1.0)
    assert head.weight.shape == (T, D)
    assert head.bias.shape == (T,)
    fresh = rng.standard_normal((500, D)) + 1.0
    error = lambda h: np.mean((h.logits(fresh) - own.logits(fresh)) ** 2)  # noqa: E731
    assert error(head) < 0.05 * error(generic)


def test_without_windows_it_is_the_generic_head(rng):
    generic, second = population(rng)
    head = fit_regression(RegressionStatistics.empty(D, T), generic, second)
    assert np.allclose(head.weight, generic.weight)
    assert np.allclose(head.bias, generic.bias)


def test_one_window_moves_it_a_little_and_only_towards_the_target(rng):
    generic, second = population(rng)
    z, t, _ = person(rng, generic, 1)
    head = fit_regression(RegressionStatistics.of(z, t), generic, second, windows=30.0)
    before, after = np.abs(generic.logits(z) - t), np.abs(head.logits(z) - t)
    assert (after < before).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(2, 5))
def test_streamed_is_batch_and_targets_are_only_an_order(seed, n, parts):
    rng = np.random.default_rng(seed)
    generic, second = population(rng, 200)
    z, t, _ = person(rng, generic, n)
    whole = RegressionStatistics.of(z, t)
    part = rng.integers(0, parts, n)
    stream = RegressionStatistics.empty(D, T)
    for p in rng.permutation(parts):
        stream = stream + RegressionStatistics.of(z[part == p], t[part == p])
    one, two = fit_regression(whole, generic, second), fit_regression(stream, generic, second)
    assert np.allclose(one.weight, two.weight, atol=1e-8)
    left = whole - RegressionStatistics.of(z[part == 0], t[part == 0])
    assert np.allclose(left.moment, RegressionStatistics.of(z[part > 0], t[part > 0]).moment, atol=1e-8)
    order = rng.permutation(T)
    turned = Head(generic.weight[order], generic.bias[order])
    other = fit_regression(RegressionStatistics.of(z, t[:, order]), turned, second)
    assert np.allclose(other.weight, one.weight[order], atol=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_features_and_targets_changes_nothing_else(scale, rng):
    generic, second = population(rng)
    z, t, _ = person(rng, generic, 50)
    plain = fit_regression(RegressionStatistics.of(z, t), generic, second).logits(z)
    s = np.append(np.full(D, scale), 1.0)
    scaled = fit_regression(
        RegressionStatistics.of(z * scale, t), Head(generic.weight / scale, generic.bias), second * s * s[:, None]
    )
    assert np.allclose(scaled.logits(z * scale), plain, rtol=1e-5, atol=1e-5)
    targets = fit_regression(
        RegressionStatistics.of(z, t * scale), Head(generic.weight * scale, generic.bias * scale), second
    )
    assert np.allclose(targets.logits(z), plain * scale, rtol=1e-6, atol=1e-6 * scale)


def test_duplicates_and_collinear_features_are_finite(rng):
    generic, second = population(rng)
    z, t, _ = person(rng, generic, 20)
    z[:, 1] = z[:, 0]
    z, t = np.concatenate([z, z]), np.concatenate([t, t])
    assert np.isfinite(fit_regression(RegressionStatistics.of(z, t), generic, second).weight).all()


def test_refusals_name_what_is_wrong(rng):
    generic, second = population(rng)
    with pytest.raises(ValueError, match="one row a window"):
        RegressionStatistics.of(np.zeros((3, D)), np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        RegressionStatistics.of(np.full((3, D), np.nan), np.zeros((3, T)))
    with pytest.raises(ValueError, match="cannot be merged"):
        RegressionStatistics.empty(D, T) + RegressionStatistics.empty(D, T + 1)
    with pytest.raises(ValueError, match="were expected"):
        fit_regression(RegressionStatistics.empty(D, T + 1), generic, second)
    with pytest.raises(ValueError, match="above 0"):
        fit_regression(RegressionStatistics.empty(D, T), generic, second, windows=0.0)
