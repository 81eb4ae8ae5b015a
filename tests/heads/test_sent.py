"""Windows that are sent again count once: in other repetitions, with labels that were left out, without a sensor."""

from dataclasses import replace

import numpy as np
import pytest

from models.heads import statistics
from models.heads.calibration import CalibrationError, calibrate
from models.heads.inputs import Sensor
from models.heads.sent import sort_out, window_digests
from models.heads.statistics import MERGED, MOST_SENT, Statistics
from tests.tiny import DIM, tiny_prior

K = 3


@pytest.fixture
def shown(rng):
    """Windows of one channel whose samples are the features: four repetitions of six a class."""
    prior = tiny_prior()
    y = np.tile(np.repeat(np.arange(K), 6), 4)
    z = prior.means[y] + 0.3 * rng.standard_normal((len(y), DIM))
    return z.astype(np.float32), y, np.repeat(np.arange(4), 6 * K)


def calibrated(z, y, repetition, before=None, x=None):
    stored = None if before is None else statistics.from_bytes(statistics.to_bytes(before.statistics))
    return calibrate(tiny_prior(), z, y, repetition, before=stored, x=z[:, None] if x is None else x)


def close(one, other):
    assert one.n == pytest.approx(other.n)
    np.testing.assert_allclose(one.class_moment, other.class_moment, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(one.total.sum(1), other.total.sum(1), rtol=1e-4, atol=1e-3)


def test_the_same_windows_in_other_repetitions_count_once(shown, rng):
    z, y, repetition = shown
    first = calibrated(z, y, repetition)
    for others in (repetition + 7, repetition // 2, rng.integers(0, 3, len(y)), np.zeros(len(y), int)):
        again = calibrated(z, y, others, first)
        close(again.statistics, first.statistics)
        assert f"{len(np.unique(others))} of the repetitions were sent before" in " ".join(again.warnings)


def test_some_of_a_repetition_sent_again_beside_new_windows_adds_the_new_ones_alone(shown):
    z, y, repetition = shown
    first = calibrated(z[:36], y[:36], repetition[:36])
    mixed = np.r_[np.arange(24, 72)]  # six of the second repetition's windows of each class are old
    again = calibrated(z[mixed], y[mixed], repetition[mixed], first)
    assert again.statistics.n.sum() == pytest.approx(72)
    close(again.statistics, calibrated(z, y, repetition).statistics)


def test_nothing_new_is_said_and_other_labels_are_new(shown):
    z, y, repetition = shown
    first = calibrated(z, y, repetition)
    few = np.arange(3, 60)  # of no repetition all but one
    part = few[repetition[few] != 1][::2]
    with pytest.raises(CalibrationError, match="none is new"):
        calibrated(z[part], y[part], repetition[part], first)
    relabelled = calibrated(z, (y + 1) % K, repetition, first)
    assert relabelled.statistics.n.sum() == pytest.approx(len(y))


@pytest.mark.parametrize("age", [1.0, 0.3])
def test_a_corrected_label_replaces_the_wrong_one(shown, rng, age):
    z, y, repetition = shown
    wrong = y.copy()
    few = rng.permutation(len(y))[:4]
    wrong[few] = (y[few] + 1) % K
    first = calibrated(z, wrong, repetition)
    first = replace(first, statistics=first.statistics.scaled(age))
    right = calibrated(z, y, repetition).statistics
    whole = calibrated(z, y, repetition // 2, first)
    close(whole.statistics, right)
    assert whole.held is not None
    alone = calibrated(z[few], y[few], np.zeros(4), first)
    assert alone.statistics.n.sum() == pytest.approx(age * (len(y) - 4) + 4)
    if age == 1:
        close(alone.statistics, right)
    back = calibrated(z[few], wrong[few], np.zeros(4), alone)
    assert back.statistics.n.sum() == pytest.approx(age * (len(y) - 4) + 4)


def test_one_window_under_two_labels_in_a_call_counts_under_both(shown):
    z, y, repetition = shown
    first = calibrated(z, y, repetition)
    both = calibrated(np.r_[z, z[:1]], np.r_[y, (y[:1] + 1) % K], np.r_[repetition, 0], first)
    assert both.statistics.n.sum() == pytest.approx(len(y) + 1)


def test_a_label_corrected_to_the_last_of_its_kind_leaves_nothing_of_it(shown):
    z, y, repetition = shown
    wrong = np.where(y == 2, 0, y)
    wrong[5] = 2
    first = calibrated(z, wrong, repetition)
    corrected = calibrated(z[5:6], np.array([0]), np.zeros(1), replace(first, statistics=first.statistics.scaled(0.3)))
    assert not corrected.statistics.seen[2]
    assert not corrected.statistics.total[2].any()
    assert not corrected.statistics.class_moment[2].any()


@pytest.mark.parametrize("repetitions", [1, 5, 20])
def test_more_windows_than_are_known_one_by_one_count_once_in_the_same_repetitions(rng, repetitions, monkeypatch):
    monkeypatch.setattr(statistics, "MOST_SENT", 100)
    prior = tiny_prior()
    y = np.tile(np.arange(K), 100)
    z = (prior.means[y] + 0.3 * rng.standard_normal((len(y), DIM))).astype(np.float32)
    repetition = np.repeat(np.arange(repetitions), len(y) // repetitions)
    first = calibrated(z, y, repetition)
    close(calibrated(z, y, repetition, first).statistics, first.statistics)
    one = repetition == 0
    if repetitions > 10:
        with pytest.raises(CalibrationError, match="none is new"):
            calibrated(z[one], y[one], repetition[one], first)


def test_a_call_whose_wrong_labels_were_left_out_counts_once_when_sent_again(shown, rng):
    z, y, repetition = shown
    wrong = rng.permutation(len(y))[: len(y) // 5]
    y = y.copy()
    y[wrong] = (y[wrong] + 1) % K
    first = calibrated(z, y, repetition)
    assert "contradict" in " ".join(first.warnings)
    assert first.statistics.n.sum() < len(y)
    for others in (repetition, repetition // 2):
        again = calibrated(z, y, others, first)
        close(again.statistics, first.statistics)


def test_merged_repetitions_are_known_by_their_windows(rng):
    prior, call = tiny_prior(), None
    calls = []
    for i in range(12):
        y = np.repeat(np.arange(K), 5)
        z = (prior.means[y] + 0.3 * rng.standard_normal((len(y), DIM))).astype(np.float32)
        calls.append((z, y))
        call = calibrated(z, y, np.full(len(y), i), call)
    assert MERGED in call.statistics.sent.values()
    z, y = calls[0]
    with pytest.raises(CalibrationError, match="none is new"):
        calibrated(z, y, np.arange(len(y)) % 2, call)
    close(calibrated(*calls[-1], np.zeros(len(y)), call).statistics, call.statistics)


def sensors(z, y, there):
    return [Sensor("arm", z[:, None], np.ones(len(y), bool)), Sensor("watch", 2 * z[:, None], there)]


def test_a_window_without_one_of_its_sensors_is_known_and_one_with_another_is_new(shown):
    z, y, repetition = shown
    everywhere, nowhere = np.ones(len(y), bool), np.zeros(len(y), bool)
    both = calibrated(z, y, repetition, x=sensors(z, y, everywhere))
    with pytest.raises(CalibrationError, match="none is new"):
        # Made-up features are others.
        calibrated(z + 0.1, y, repetition, both, x=sensors(z, y, nowhere))
    alone = calibrated(z, y, repetition, x=sensors(z, y, nowhere))
    more = calibrated(z + 0.1, y, repetition, alone, x=sensors(z, y, everywhere))
    assert more.statistics.n.sum() == 2 * len(y)


def test_a_correction_replaces_where_all_sensors_come(shown):
    z, y, repetition = shown
    everywhere, nowhere = np.ones(len(y), bool), np.zeros(len(y), bool)
    both = calibrated(z, y, repetition, x=sensors(z, y, everywhere))
    other = (y + 1) % K
    assert calibrated(z, other, repetition, both, x=sensors(z, y, everywhere)).statistics.n.sum() == len(y)
    # Their features are others than those that were summed.
    assert calibrated(z + 0.1, other, repetition, both, x=sensors(z, y, nowhere)).statistics.n.sum() == 2 * len(y)


def test_a_caption_that_others_have_too_does_not_make_a_picture_known(shown):
    z, y, repetition = shown
    words = np.array([[3, 0], [4, 0], [5, 0]])[y]
    everywhere = np.ones(len(y), bool)

    def given(pictures):
        return [Sensor("picture", pictures[:, None], everywhere), Sensor("caption", words, everywhere)]

    first = calibrated(z, y, repetition, x=given(z))
    second = calibrated(z + 0.01, y, repetition, first, x=given(z + 0.01))
    assert second.statistics.n.sum() == 2 * len(y)


def test_digests_are_kept_of_the_newest_windows_and_read_back(shown):
    z, y, repetition = shown
    stats = calibrated(z, y, repetition).statistics
    read = statistics.from_bytes(statistics.to_bytes(stats))
    assert read.sent == stats.sent
    assert len(stats.sent) == len(y)
    many = replace(stats, sent=dict.fromkeys(range(MOST_SENT + 5), 0))
    assert list(statistics.from_bytes(statistics.to_bytes(many)).sent) == list(range(5, MOST_SENT + 5))
    assert not statistics.from_bytes(statistics.to_bytes(replace(stats, sent={}))).sent


def test_aged_repetitions_are_taken_out_as_they_are(shown):
    z, y, repetition = shown
    stats = calibrated(z, y, repetition).statistics.scaled(0.25)
    found = sort_out(stats, z.astype(float), y, repetition, window_digests(z[:, None], y))
    assert found.new.all()
    assert found.again.all()
    assert not found.base.repetitions
    assert isinstance(found.base, Statistics)
