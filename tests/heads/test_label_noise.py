"""Labels that contradict the others are found and left out; a calibration with too many is not used."""

import numpy as np
import pytest

from models.heads.calibration import calibrate, shared_head
from models.heads.label_noise import trusted
from models.heads.statistics import Statistics
from tests.heads.test_guard import OFFSET, K, user
from tests.tiny import tiny_prior


def mislabelled(y, share, rng):
    wrong = rng.random(len(y)) < share
    return np.where(wrong, (y + rng.integers(1, K, len(y))) % K, y)


@pytest.mark.parametrize("seed", range(5))
def test_wrong_labels_are_told_from_right_ones(seed):
    rng = np.random.default_rng(seed)
    z, y, r = user(rng)
    noisy = mislabelled(y, 0.3, rng)
    found = trusted(z, noisy, r, tiny_prior())
    assert found.noticed
    assert abs(found.wrong - np.mean(noisy != y)) < 0.08
    assert np.mean(noisy[found.kept] == y[found.kept]) > 0.97
    assert found.kept[noisy == y].mean() > 0.95


@pytest.mark.parametrize("seed", range(5))
def test_consistent_labels_are_all_kept(seed):
    z, y, r = user(np.random.default_rng(seed))
    found = trusted(z, y, r, tiny_prior())
    assert not found.noticed
    assert found.kept.all()


def test_earlier_windows_tell_which_of_the_new_labels_are_right(rng):
    z, y, r = user(rng)
    earlier = Statistics.of(z, y, r, K)
    swapped = np.choose(y, [1, 0, 2])
    assert not trusted(z, swapped, r, tiny_prior()).noticed
    found = trusted(z, swapped, r + 3, tiny_prior(), earlier)
    assert found.noticed
    assert np.array_equal(found.kept, y == 2)


@pytest.mark.parametrize("share", [0.2, 0.3])
def test_a_calibration_with_wrong_labels_is_as_good_as_without_them(share, rng):
    z, y, r = user(rng)
    result = calibrate(tiny_prior(), z, mislabelled(y, share, rng), r)
    fresh, labels, _ = user(rng, 200)
    clean = calibrate(tiny_prior(), z, y, r).head
    assert result.verdict.outcome == "promoted"
    assert any("contradict the others" in w for w in result.warnings)
    accuracy = np.mean(result.head.logits(fresh).argmax(1) == labels)
    assert accuracy >= np.mean(clean.logits(fresh).argmax(1) == labels) - 0.01
    assert accuracy > np.mean(shared_head(tiny_prior()).logits(fresh).argmax(1) == labels)
    assert result.statistics.n.sum() < len(y)


@pytest.mark.parametrize("seed", range(6))
def test_a_noisy_update_does_not_replace_a_good_active_head(seed):
    rng = np.random.default_rng(seed)
    z, y, r = user(rng)
    first = calibrate(tiny_prior(), z, y, r)
    z, y, r = user(rng)
    again = calibrate(tiny_prior(), z, mislabelled(y, 0.5, rng), r, before=first.statistics, previous=first.head)
    fresh, labels, _ = user(rng, 300, OFFSET)
    served = again.head or first.head
    assert (
        np.mean(served.logits(fresh).argmax(1) == labels)
        >= np.mean(first.head.logits(fresh).argmax(1) == labels) - 0.01
    )
