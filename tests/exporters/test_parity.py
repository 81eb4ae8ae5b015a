"""The parity gate, by itself."""

import numpy as np
import pytest

from exporters.parity import ParityError, check_parity


def features(x):
    return x.reshape(len(x), -1)[:, :3].astype(np.float32)


@pytest.fixture
def windows(rng):
    return rng.standard_normal((80, 2, 6)).astype(np.float32)


def test_equal_forwards_pass_and_the_figures_are_told(windows):
    report = check_parity(features, features, windows)
    assert report["max_error"] == 0
    assert report["min_cosine"] == pytest.approx(1, abs=1e-6)
    assert report["batches"] == [1, 2, 7, 64]
    assert report["windows"] == 80


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x: features(x) + 1e-3, "differ from torch's by up to 1.0"),
        (lambda x: features(x)[:, :2], "shape"),
        (lambda x: features(x) * np.nan, "not finite"),
        (lambda x: features(x) if len(x) != 7 else features(x)[::-1], "differ"),
    ],
)
def test_anything_else_is_a_typed_error(windows, broken, message):
    with pytest.raises(ParityError, match=message):
        check_parity(features, broken, windows)


def test_too_few_real_windows(windows):
    with pytest.raises(ParityError, match="needs 64 real windows"):
        check_parity(features, features, windows[:10])
