"""Views of windows: the window first, the same for ever, of the window's own type and range."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from exporters.input_spec import InputSpec, Padding, Views
from models.data.views import averaged, usual, views

EMG = InputSpec(shape=(-1, 4, 20), unit="mV", sample_rate=200.0)
SOUND = InputSpec(shape=(-1, 800), unit="full scale", sample_rate=800.0, modality="audio", media={"kind": "audio"})
PICTURE = InputSpec(
    datatype="UINT8", shape=(-1, 40, 50, 3), unit="levels", modality="image", media={"kind": "image", "resize": 40}
)
TOKENS = InputSpec(datatype="INT64", shape=(-1, -1), unit="tokens", modality="text", padding=Padding(axis=1, maximum=8))
SPECS = [EMG, SOUND, PICTURE, EMG.model_copy(update={"datatype": "INT16"})]


def windows(spec, n=3, seed=0):
    rng = np.random.default_rng(seed)
    x = 40 * rng.standard_normal((n, *spec.window_shape))
    return np.abs(x).astype(spec.dtype) if spec.dtype.kind == "u" else x.astype(spec.dtype)


@pytest.mark.parametrize("spec", SPECS, ids=["emg", "sound", "picture", "int16"])
def test_views_are_near_their_window_and_the_first_is_it(spec):
    x = windows(spec)
    made = views(x, spec, 6)
    assert made.shape == (18, *x.shape[1:])
    assert made.dtype == x.dtype
    by_window = made.reshape(3, 6, *x.shape[1:])
    np.testing.assert_array_equal(by_window[:, 0], x)
    assert len({view.tobytes() for view in by_window[0]}) > 4  # a shift by whole steps may come twice
    spread = by_window.astype(float).std(axis=tuple(range(2, by_window.ndim)))
    assert (np.abs(spread / spread[:, :1] - 1) < 0.9).all()


@pytest.mark.parametrize("spec", SPECS, ids=["emg", "sound", "picture", "int16"])
def test_a_window_has_the_same_views_whoever_is_beside_it(spec):
    x = windows(spec, 5)
    together = views(x, spec, 4).reshape(5, 4, *x.shape[1:])
    np.testing.assert_array_equal(views(x[3:4], spec, 4), together[3])
    np.testing.assert_array_equal(views(x, spec, 2).reshape(5, 2, *x.shape[1:]), together[:, :2])


@given(arrays(np.uint8, (2, 7, 9, 3)), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_a_picture_moved_and_mirrored_has_only_its_own_colours(x, count):
    made = views(x, PICTURE.model_copy(update={"shape": (-1, 7, 9, 3)}), count)
    for i, picture in enumerate(x):
        own = set(map(tuple, picture.reshape(-1, 3)))
        assert set(map(tuple, made[i * count : (i + 1) * count].reshape(-1, 3))) <= own


def test_what_a_bundle_says_counts():
    still = EMG.model_copy(update={"views": Views()})
    x = windows(still)
    np.testing.assert_array_equal(views(x, still, 3), np.repeat(x, 3, 0))
    moved = EMG.model_copy(update={"views": Views(shift=0.5)})
    made = views(x, moved, 8).reshape(3, 8, 4, 20)
    assert all(set(made[0, k, 0]) <= set(x[0, 0]) for k in range(8))


def test_values_stay_in_the_range_of_their_type():
    loud = EMG.model_copy(update={"datatype": "INT16", "views": Views(gain=1.0, noise=1.0)})
    x = np.full((2, 4, 20), 32_000, np.int16)
    x[:, :, ::2] = -32_000
    assert set(np.sign(views(x, loud, 8)[1:, :, 0]).ravel()) <= {-1, 0, 1}


def test_views_of_finite_windows_are_finite():
    for datatype, size in (("FP32", 3e38), ("FP16", 6e4)):
        spec = EMG.model_copy(update={"datatype": datatype, "views": Views(gain=0.5, noise=0.5)})
        x = np.full((2, 4, 20), size).astype(spec.dtype)
        x[:, :, ::2] *= -1
        assert np.isfinite(views(x, spec, 8)).all()


def test_tokens_have_none():
    assert usual(TOKENS) is None
    with pytest.raises(ValueError, match="no views"):
        views(np.ones((2, 4), np.int64), TOKENS, 2)
    with pytest.raises(ValueError, match="no views"):
        InputSpec.model_validate({**TOKENS.model_dump(), "views": {"gain": 0.1}})


def test_averages_are_of_each_window(rng):
    values = rng.standard_normal((12, 5)).astype(np.float32)
    np.testing.assert_allclose(averaged(values, 4), values.reshape(3, 4, 5).mean(1), atol=1e-6)
    assert averaged(values, 1) is values
