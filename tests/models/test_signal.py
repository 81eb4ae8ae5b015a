"""The signal encoder's own promises: features that mean what they say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.backbones.handmade import HandMade, log_polynomial
from models.backbones.signal import Placements, SignalConfig, SignalEncoder
from models.data.augmentation import Augmentation, rotated


def noise(n, channels=8, length=52, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, channels, length), dtype=np.float32))


def test_variance_feature_follows_the_gain():
    hand, x = HandMade(8, 52, 200.0), noise(4)
    louder = hand(10 * x)[:, :8] - hand(x)[:, :8]
    assert torch.allclose(louder, torch.full_like(louder, np.log(100)), atol=0.05)


def test_matrix_logarithm_is_close_to_the_eigenvalue_one():
    hand, x = HandMade(8, 52, 200.0), noise(20)
    x = x + 0.8 * x.roll(1, 1)
    got = hand(x)[:, 40:68].numpy()
    centred = (x - x.mean(-1, keepdim=True)).numpy()
    cov = centred @ centred.transpose(0, 2, 1) / 52
    deviation = np.sqrt(np.einsum("nii->ni", cov) + 0.01)
    corr = 0.9 * cov / deviation[:, :, None] / deviation[:, None]
    corr[:, range(8), range(8)] = 1
    values, vectors = np.linalg.eigh(corr)
    log = (vectors * np.log(values)[:, None]) @ vectors.transpose(0, 2, 1)
    rows, cols = np.triu_indices(8, 1)
    assert np.abs(got - log[:, rows, cols]).max() < 0.06


@pytest.mark.parametrize("channels", [2, 8, 16])
def test_polynomial_error_is_small_on_its_interval(channels):
    assert log_polynomial(channels)[3] < 0.12


@given(seed=st.integers(0, 50), offset=st.floats(-100, 100))
@settings(max_examples=20, deadline=None)
def test_emg_features_ignore_a_constant_offset(seed, offset):
    hand, x = HandMade(4, 52, 200.0), noise(2, 4, seed=seed)
    assert torch.allclose(hand(x + offset), hand(x), atol=2e-2)


def test_imu_features_see_the_posture():
    hand, x = HandMade(6, 100, 50.0, "imu"), noise(1, 6, 100)
    assert torch.allclose(hand(x + 2)[:, -6:] - hand(x)[:, -6:], torch.full((1, 6), 2.0), atol=1e-4)


def test_one_placement_is_the_linear_discriminant():
    rng = np.random.default_rng(0)
    means = rng.standard_normal((3, 5)).astype(np.float32)
    mixture = Placements(1, 3, 5, tempering=1.0)
    mixture.weight.copy_(torch.eye(5))
    mixture.linear.copy_(torch.from_numpy(means.T))
    mixture.bias.copy_(torch.from_numpy(-0.5 * (means**2).sum(1))[None])
    z = torch.from_numpy(rng.standard_normal((10, 5)).astype(np.float32))
    expected = torch.log_softmax(z @ torch.from_numpy(means.T) - 0.5 * torch.from_numpy(means**2).sum(1), 1)
    assert torch.allclose(torch.log_softmax(mixture(z), 1), expected, atol=1e-5)


def test_personal_features_never_exceed_what_there_is():
    encoder = SignalEncoder(SignalConfig(channels=2, length=40, fs=100.0, classes=2, personal=64))
    assert encoder.default_cfg.personal == encoder.handmade.count
    assert encoder.num_features == encoder.handmade.count + 4


def test_rotation_is_a_permutation_at_whole_electrodes_and_a_mean_at_halves():
    x = noise(2)
    assert torch.equal(rotated(x, 3), x.roll(3, 1))
    assert torch.equal(rotated(x, 8), x)
    assert torch.equal(rotated(x, 0, flipped=True), x.flip(1))
    assert torch.allclose(rotated(x, 0.5), (x + x.roll(1, 1)) / 2)


def test_augmentation_is_told_by_its_generator():
    x, scale = noise(3), torch.ones(8, 1)
    first, again = (Augmentation(jitter=3)(x, scale, np.random.default_rng(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, Augmentation(jitter=3)(x, scale, np.random.default_rng(2)))
    still = Augmentation(ring=False, gain=0, channel_gain=0, noise=0)(x, scale, np.random.default_rng(1))
    assert torch.allclose(still, x)
