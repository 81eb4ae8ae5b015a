"""What the population tells of a calibration: gain, turned rings, exchanged labels, windows of another kind."""

from dataclasses import replace

import numpy as np
import pytest

from models.heads.calibration import calibrate
from models.heads.doubts import log_gain, swapped_labels, turn_of, unlike_earlier
from models.heads.statistics import Statistics
from tests.heads.test_guard import K, user
from tests.tiny import tiny_prior


def test_a_gain_is_told_and_estimated(rng):
    prior = replace(tiny_prior(), gain=np.array([1.0, 1.0, 1.0, 1.0]))
    z, y, r = user(rng, offset=np.log(4))
    assert log_gain(Statistics.of(z, y, r, K), prior) == pytest.approx(np.log(4), abs=0.1)
    warnings = calibrate(prior, z, y, r).warnings
    assert any("times as strong as the population" in w for w in warnings)
    assert not any("strong" in w for w in calibrate(prior, *user(rng, offset=0.2)).warnings)


@pytest.mark.parametrize(
    ("placement", "channels", "turn"),
    [(0, 8, (0.0, False)), (2, 8, (1.0, False)), (10, 8, (-1.0, False)), (6, 8, (4.0, False)), (12, 8, (0.0, True)),
     (14, 8, (1.0, True)), (1, 4, (0.5, False)), (7, 4, (-0.5, False))],
)  # fmt: skip
def test_turns_of_a_ring(placement, channels, turn):
    assert turn_of(placement, 2 * (channels + 4)) == turn


def test_turns_are_those_that_training_writes():
    population = pytest.importorskip("models.training.population")
    for channels in (4, 8, 12, 16, 40):
        made = population.ring_placements(channels)
        for i, placement in enumerate(made):
            turn = placement.electrodes if placement.electrodes <= channels / 2 else placement.electrodes - channels
            assert turn_of(i, len(made)) == (turn, placement.flipped)


def test_the_shared_head_is_a_second_witness_of_a_swap(rng):
    prior = tiny_prior()
    z, y, r = user(rng, 5, offset=0.0)
    swapped = Statistics.of(z, np.choose(y, [1, 0, 2]), r, K)
    weak = replace(prior, between=40 * prior.between)  # people differ so much that prototypes say little
    assert swapped_labels(swapped, weak) == []
    odds = np.array([[0.0, 9.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    assert swapped_labels(swapped, weak, odds) == [("rest", "fist")]
    silent = np.full((K, K), np.nan)
    assert swapped_labels(swapped, weak, silent) == []


def test_windows_unlike_the_users_earlier_ones_are_told(rng):
    z, y, r = user(rng)
    first = calibrate(tiny_prior(), z, y, r)
    again = {"before": first.statistics, "previous": first.head}
    assert not any("same person" in w for w in calibrate(tiny_prior(), *user(rng), **again).warnings)
    z, y, r = user(rng, offset=np.array([0.0, 0.0, 3.0, -3.0]))
    assert any("same person" in w for w in calibrate(tiny_prior(), z, y, r, **again).warnings)
    assert unlike_earlier(Statistics.empty(K, 4), first.statistics, tiny_prior()) is None


def test_dead_channels_are_told_beside_a_calibration(rng):
    z, y, r = user(rng)
    x = rng.standard_normal((len(y), 2, 20)).astype(np.float32)
    x[:, 1] = 0
    assert any(w.startswith("channel 1 is flat") for w in calibrate(tiny_prior(), z, y, r, x=x).warnings)
