"""What every head method must hold, whatever it is."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.heads.calibration import METHODS, CalibrationError, calibrate
from models.heads.fit import FITS
from models.heads.head import softmax
from models.heads.logistic import fit_logistic
from models.heads.statistics import Statistics, merge
from tests.tiny import DIM, LABELS, tiny_prior

K = len(LABELS)


def fit(method, z, y, r=None):
    r = np.zeros(len(y), int) if r is None else r
    if method == "logistic":
        return fit_logistic(z, y, tiny_prior())
    return FITS[method](Statistics.of(z, y, r, K), tiny_prior())


def user(rng, per_class=30, offset=0.0, noise=0.5):
    y = np.repeat(np.arange(K), per_class)
    return tiny_prior().means[y] + offset + noise * rng.standard_normal((len(y), DIM)), y, np.arange(len(y)) % 3


def permuted(order):
    prior = tiny_prior()
    return replace(
        prior,
        labels=tuple(prior.labels[i] for i in order),
        generic_weight=prior.generic_weight[order],
        generic_bias=prior.generic_bias[order],
        means=prior.means[order],
    )


each_method = pytest.mark.parametrize("method", [*FITS, "logistic"])


@each_method
def test_shapes_finite_and_class_order(method, rng):
    z, y, r = user(rng)
    head = fit(method, z, y, r)
    assert head.weight.shape == (K, DIM)
    assert head.bias.shape == (K,)
    assert np.isfinite(head.weight).all()
    assert np.mean(head.logits(z).argmax(1) == y) > 0.98


@each_method
def test_deterministic_and_blind_to_the_order_of_windows(method, rng):
    z, y, r = user(rng)
    one, two = fit(method, z, y, r), fit(method, z, y, r)
    assert np.array_equal(one.weight, two.weight)
    order = rng.permutation(len(y))
    shuffled = fit(method, z[order], y[order], r[order])
    assert np.allclose(one.logits(z), shuffled.logits(z), atol=1e-4)


@each_method
def test_one_window_a_class(method, rng):
    z, y, _ = user(rng, per_class=1, noise=0.05)
    assert (fit(method, z, y).logits(z).argmax(1) == y).all()


@each_method
def test_a_single_window_in_all_is_finite(method, rng):
    z, y, _ = user(rng, per_class=1)
    head = fit(method, z[:1], y[:1])
    assert np.isfinite(head.logits(z)).all()


@each_method
def test_duplicates_and_collinear_features_are_finite(method, rng):
    z, y, _ = user(rng, per_class=5)
    z[:, 1] = z[:, 0]
    z = np.concatenate([z, z])
    head = fit(method, z, np.concatenate([y, y]))
    assert np.isfinite(head.logits(z)).all()


@each_method
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_huge_and_tiny_scales_are_finite(method, scale, rng):
    z, y, r = user(rng)
    probabilities = softmax(fit(method, z * scale, y, r).logits(z * scale))
    assert np.isfinite(probabilities).all()


@pytest.mark.parametrize("method", FITS)
def test_statistics_give_the_head_that_samples_give(method, rng):
    z, y, r = user(rng)
    streamed = Statistics.empty(K, DIM)
    for i in range(len(y)):
        streamed = streamed + Statistics.of(z[i : i + 1], y[i : i + 1], r[i : i + 1], K)
    assert np.allclose(FITS[method](streamed, tiny_prior()).logits(z), fit(method, z, y, r).logits(z), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_calibrates_a_user_who_differs(method, rng):
    offset = np.array([3.0, 3.0, 0.0, 0.0])
    z, y, r = user(rng, 40, offset)
    result = calibrate(tiny_prior(), z, y, r, method=method)
    assert result.head is not None
    fresh, labels, _ = user(rng, 200, offset)
    assert np.mean(result.head.logits(fresh).argmax(1) == labels) > 0.97


@each_method
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_order_of_classes_is_only_an_order(method, seed):
    rng = np.random.default_rng(seed)
    z, y, r = user(rng, per_class=int(rng.integers(2, 20)), offset=rng.standard_normal(DIM))
    order = rng.permutation(K)
    place = np.argsort(order)
    prior, turned = tiny_prior(), permuted(order)
    one = fit(method, z, y, r)
    two = (
        fit_logistic(z, place[y], turned)
        if method == "logistic"
        else FITS[method](Statistics.of(z, place[y], r, K), turned)
    )
    assert np.allclose(two.logits(z), one.logits(z)[:, order], atol=1e-4 * (1 + np.abs(one.logits(z)).max()))
    assert prior.labels[order[0]] == turned.labels[0]


@pytest.mark.parametrize("method", FITS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), parts=st.integers(2, 6))
def test_streams_give_the_head_of_a_batch_in_any_order(method, seed, parts):
    rng = np.random.default_rng(seed)
    z, y, r = user(rng, per_class=10)
    part = rng.integers(0, parts, len(y))
    pieces = [Statistics.of(z[part == p], y[part == p], r[part == p], K) for p in rng.permutation(parts)]
    head = FITS[method](merge(pieces), tiny_prior())
    assert np.allclose(head.logits(z), fit(method, z, y, r).logits(z), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_calibrations_are_deterministic(method, rng):
    z, y, r = user(rng, 40, np.array([3.0, 3.0, 0.0, 0.0]))
    one, two = (calibrate(tiny_prior(), z, y, r, method=method) for _ in range(2))
    assert np.array_equal(one.head.weight, two.head.weight)
    assert (one.verdict, one.warnings) == (two.verdict, two.warnings)


def test_auto_takes_logistic_only_where_all_features_are_there(rng):
    z, y, r = user(rng, 40, np.array([3.0, 3.0, 0.0, 0.0]))
    first = calibrate(tiny_prior(), z, y, r, method="auto")
    assert first.method in METHODS
    again = calibrate(tiny_prior(), *user(rng, 40), before=first.statistics, method="auto")
    assert again.method in FITS


def test_map_with_no_data_is_the_populations_own_head():
    head = FITS["map"](Statistics.empty(K, DIM), tiny_prior())
    z = tiny_prior().means
    assert (head.logits(z).argmax(1) == np.arange(K)).all()


def test_map_keeps_the_population_mean_of_a_class_never_shown(rng):
    z, y, r = user(rng)
    keep = y != 2
    head = FITS["map"](Statistics.of(z[keep], y[keep], r[keep], K), tiny_prior())
    assert head.logits(tiny_prior().means[2:]).argmax() == 2


def test_refusals_name_what_is_wrong(rng):
    z, y, r = user(rng)
    with pytest.raises(CalibrationError, match="at least two classes"):
        calibrate(tiny_prior(), z[y == 0], y[y == 0], r[y == 0])
    with pytest.raises(CalibrationError, match="the methods are"):
        calibrate(tiny_prior(), z, y, r, method="magic")
    before = Statistics.of(z + 1, y, r, K)
    with pytest.raises(CalibrationError, match="statistics were retained"):
        calibrate(tiny_prior(), z, y, r, before=before, method="logistic")
