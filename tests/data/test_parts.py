"""Packed rows: what goes in comes out, whatever the parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from exporters.input_spec import InputSpec, Padding
from models.data.parts import fused_input, pack, present, signals, unpack

NAMES = ("emg", "imu", "image", "text")


@st.composite
def some_parts(draw):
    """Specs of two to four parts, and windows of those that are there."""
    specs = []
    for name in NAMES[: draw(st.integers(2, 4))]:
        datatype = draw(st.sampled_from(["FP32", "FP16", "UINT8", "INT8", "INT16", "INT64"]))
        shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        padding = None
        if draw(st.booleans()):
            axis = draw(st.integers(1, len(shape)))
            shape[axis - 1] = -1
            padding = Padding(axis=axis, maximum=draw(st.integers(1, 5)), value=float(draw(st.integers(0, 3))))
        specs.append(InputSpec(name=name, datatype=datatype, shape=(-1, *shape), unit="x", padding=padding))
    chosen = draw(st.sets(st.sampled_from([s.name for s in specs]), min_size=1))
    rows, rng = draw(st.integers(1, 3)), np.random.default_rng(draw(st.integers(0, 2**16)))
    windows = {}
    for s in specs:
        if s.name in chosen:
            shape = s.sized(None if s.padding is None else int(rng.integers(1, s.padding.maximum + 1)))
            low, high = (0, 256) if s.datatype == "UINT8" else (-128, 128)
            high = 2**24 if s.datatype == "INT64" else high
            windows[s.name] = rng.integers(low, high, (rows, *shape)).astype(s.dtype)
    return fused_input(specs), windows, rows


@settings(max_examples=150, deadline=None)
@given(some_parts())
def test_what_is_packed_comes_out_again(drawn):
    spec, windows, rows = drawn
    x = pack(spec, windows)
    assert x.dtype == np.float32
    assert x.shape == (rows, spec.shape[1])
    assert present(spec, x).tolist() == [[s.name in windows for s in spec.parts]] * rows
    for s in spec.parts:
        found = unpack(spec, x)[s.name]
        assert found.dtype == s.dtype
        if s.name not in windows:
            assert not found.any()
            continue
        own = windows[s.name]
        inside = tuple(slice(0, size) for size in own.shape)
        np.testing.assert_array_equal(found[inside], own)
        if s.padding is not None:
            length = own.shape[s.padding.axis]
            assert (np.moveaxis(found, s.padding.axis, 0)[length:] == s.padding.value).all()
    assert {s.name for s in signals(spec, x) if s.there.all()} == set(windows)
    assert {s.name for s in signals(spec, x) if not s.there.any()} == {p.name for p in spec.parts} - set(windows)


def two() -> InputSpec:
    return fused_input(
        [
            InputSpec(name="emg", shape=(-1, 2, 3), unit="mV"),
            InputSpec(name="text", datatype="INT64", shape=(-1, -1), unit="tokens", padding=Padding(axis=1, maximum=4)),
        ]
    )


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({}, "no part is given; there are emg, text"),
        ({"imu": np.zeros((1, 2, 3))}, "there is no part 'imu'; there are emg, text"),
        ({"emg": np.zeros((1, 2, 4))}, r"part 'emg' must have shape \[rows, 2, 3\], not \[1, 2, 4\]"),
        ({"emg": np.zeros((1, 2, 3)), "text": np.zeros((2, 3), np.int64)}, "there are emg 1, text 2"),
        ({"text": np.full((1, 2), 2**24 + 1)}, "beyond"),
        ({"text": np.full((1, 2), -(2**63))}, "beyond"),
        ({"text": np.zeros((1, 5), np.int64)}, "1 to 4 long"),
    ],
)
def test_what_cannot_be_packed_is_said(parts, said):
    with pytest.raises(ValueError, match=said):
        pack(two(), parts)


@pytest.mark.parametrize(
    ("names", "changes", "said"),
    [
        (("emg", "emg"), {}, "different names"),
        (("emg",), {}, "two parts or more"),
        (("emg", "user_id"), {}, "cannot name a part"),
        (("emg", "Image"), {}, "cannot name a part"),
        (("emg", "imu"), {"shape": (-1, 13)}, r"FP32 \[-1, 14\]"),
        (("emg", "imu"), {"datatype": "FP16"}, r"FP32 \[-1, 14\]"),
        (("emg", "imu"), {"padding": Padding(axis=1, maximum=3), "shape": (-1, -1)}, "is FP32"),
    ],
)
def test_inputs_that_no_parts_make_are_refused(names, changes, said):
    parts = tuple(InputSpec(name=name, shape=(-1, 2, 3), unit="mV") for name in names)
    with pytest.raises(ValidationError, match=said):
        InputSpec.model_validate({"shape": (-1, 14), "unit": "", "parts": parts, **changes})


def test_parts_of_parts_are_refused():
    with pytest.raises(ValidationError, match="parts of its own"):
        fused_input([two().model_copy(update={"name": "pair"}), InputSpec(name="imu", shape=(-1, 2, 3), unit="g")])
