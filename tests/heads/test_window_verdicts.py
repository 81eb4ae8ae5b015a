"""Verdicts on windows: what is flat, clipped, not finite or unlike the population, and in which channels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.heads.inputs import KINDS, Sensor, inspect
from tests.tiny import DIM, LABELS, tiny_prior

C, T = 8, 52


def usual(rng, n=20):
    x = np.clip(np.round(20 * rng.standard_normal((n, C, T))), -128, 127).astype(np.float32)
    z = tiny_prior().means[np.arange(n) % len(LABELS)] + 0.5 * rng.standard_normal((n, DIM))
    return x, z


def kinds(x, z):
    return [v.verdict for v in inspect(x, z, tiny_prior()).verdicts]


def test_usual_windows_are_accepted_without_a_word(rng):
    found = inspect(*usual(rng), tiny_prior())
    assert all(v.accepted and v.channels == () for v in found.verdicts)
    assert found.accepted.all()
    assert found.warnings == ()


def test_a_flat_channel_is_named(rng):
    x, z = usual(rng)
    x[:, 3] = 7
    found = inspect(x, z, tiny_prior())
    assert {(v.verdict, v.channels) for v in found.verdicts} == {("flat", (3,))}
    assert found.warnings[0].startswith("channel 3 is flat")


def test_channels_of_several_sensors_are_numbered_through(rng):
    x, z = usual(rng)
    watch = rng.standard_normal((len(x), 3, 20)).astype(np.float32)
    x[4, 2], watch[4, 1], watch[5, 2] = 7, 1, 0
    pictures = np.zeros((len(x), 4, 4, 3), np.uint8)  # have no channels that could be flat
    everywhere = np.ones(len(x), bool)
    sensors = [Sensor("arm", x, everywhere), Sensor("eye", pictures, everywhere), Sensor("watch", watch, everywhere)]
    found = inspect(sensors, z, tiny_prior())
    told = {i: (v.verdict, v.channels) for i, v in enumerate(found.verdicts) if not v.accepted}
    assert told == {4: ("flat", (2, C + 1)), 5: ("flat", (C + 2,))}


def test_what_a_window_lacks_is_not_flat_and_counts_for_no_share(rng):
    x, z = usual(rng)
    watch = rng.standard_normal((len(x), 3, 20)).astype(np.float32)
    there = np.arange(len(x)) % 2 == 0
    watch[~there], watch[there, 1] = 0, 7
    for sensors, number in (
        ([Sensor("arm", x, np.ones(len(x), bool)), Sensor("watch", watch, there)], C + 1),
        ([Sensor("arm", 0 * x, np.zeros(len(x), bool)), Sensor("watch", watch, there)], C + 1),
    ):
        found = inspect(sensors, z, tiny_prior())
        assert {i for i, v in enumerate(found.verdicts) if v.verdict == "flat"} == set(np.flatnonzero(there))
        assert found.warnings[0].startswith(f"channel {number} (1 of watch) is flat: ")


def test_clipped_channels_are_named(rng):
    x, z = usual(rng)
    x[:, [1, 6]] = np.clip(8 * x[:, [1, 6]], -128, 127)
    found = inspect(x, z, tiny_prior())
    assert {(v.verdict, v.channels) for v in found.verdicts} == {("clipped", (1, 6))}
    assert found.warnings[0].startswith("channels 1 and 6 are clipped")


def test_a_coarse_signal_is_not_clipped(rng):
    x, z = usual(rng)
    assert set(kinds(np.sign(x), z)) == {"accepted"}


def test_numbers_that_are_not_finite_come_first(rng):
    x, z = usual(rng)
    x[2, 5, 7], x[2, 1], z[4, 0] = np.nan, 0, np.inf
    found = inspect(x, z, tiny_prior())
    assert (found.verdicts[2].verdict, found.verdicts[2].channels) == ("non_finite", (5,))
    assert found.verdicts[4].verdict == "non_finite"
    assert found.accepted.sum() == len(x) - 2
    assert "channel 5 is in 5% of the windows not finite" in found.warnings


def test_windows_unlike_any_class_are_told(rng):
    x, z = usual(rng)
    z[:10] = z[:10] * 30 + 50
    found = inspect(x, z, tiny_prior())
    assert [v.verdict for v in found.verdicts] == ["off_distribution"] * 10 + ["accepted"] * 10
    assert "50% of the windows are unlike any class" in found.warnings[0]


@pytest.mark.parametrize("x", [None, np.zeros((6, 3, 8, 8), np.uint8), np.zeros((6, 2, 4), np.float32)])
def test_what_is_no_signal_is_judged_by_its_features(x, rng):
    z = usual(rng, 6)[1]
    assert set(kinds(x, z)) == {"accepted"}


def test_no_windows():
    found = inspect(np.empty((0, C, T), np.float32), np.empty((0, DIM)), tiny_prior())
    assert (found.verdicts, found.warnings) == ([], ())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.sampled_from([1e-30, 1e-3, 1.0, 1e6, 3e38]), st.integers(0, 2**31))
def test_every_window_gets_one_verdict_and_the_order_does_not_matter(n, scale, seed):
    rng = np.random.default_rng(seed)
    x, z = usual(rng, n)
    x[rng.random(x.shape) < 0.1] = scale
    x[rng.random(x.shape[:2]) < 0.1] = 0
    x[rng.random(x.shape[:2]) < 0.05] = np.nan
    order = rng.permutation(n)
    found = inspect(x, z * scale, tiny_prior())
    assert [v.verdict for v in found.verdicts] == [KINDS[k] for k in found.kind]
    shuffled = inspect(x[order], z[order] * scale, tiny_prior()).verdicts
    assert [(v.verdict, v.channels) for v in shuffled] == [
        (found.verdicts[i].verdict, found.verdicts[i].channels) for i in order
    ]
