"""Timetables: which layers learn when, and how fast, as the papers have it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.training import timetable as tables

layers = st.integers(2, 12).map(lambda n: [[f"layer{i}"] for i in range(n)])
steps = st.integers(4, 2000)


def rates(table, count):
    """Rates `(steps, layers)`; zero where a layer does not learn."""
    return np.array([[x.rate(s) if x.learns(s) else 0.0 for x in table.layers] for s in range(count)])


@given(layers, steps)
def test_after_the_plateau_everything_learns_at_a_hundredth_of_the_heads_rate(names, count):
    found = rates(tables.lp_then_all(names, count, 0.02), count)
    assert found.max() <= 0.02 / 100 + 1e-15
    assert (found[: count - 1] > 0).all()


@given(layers, steps)
def test_gradual_thaws_from_the_top_and_each_layer_is_2_6_times_slower_than_the_one_above(names, count):
    table = tables.discriminative(names, count, 0.01)
    begins = [x.begin for x in table.layers]
    assert begins[-1] == 0
    assert all(a >= b for a, b in itertools.pairwise(begins))
    for below, above in zip(table.layers, table.layers[1:], strict=False):
        assert above.rate(count // 2) == pytest.approx(2.6 * below.rate(count // 2))
    learning = rates(table, count) > 0
    assert (np.diff(learning.sum(1)) >= 0).all(), "what has thawed stays so"
    if count >= 2 * len(names):
        assert learning[count // 2].all()


@given(st.integers(20, 2000))
def test_the_slanted_triangle_rises_for_a_tenth_and_its_ends_are_32_times_lower(count):
    found = [tables.slanted_triangle(count, 1.0)(s) for s in range(count + 1)]
    top = int(np.argmax(found))
    assert top == max(1, count // 10)
    assert found[top] == 1.0
    assert found[0] == pytest.approx(1 / 32)
    assert found[-1] == pytest.approx(1 / 32)
    assert (np.diff(found[: top + 1]) > 0).all()
    assert (np.diff(found[top:]) < 0).all()


@given(layers, st.integers(1000, 4000), st.sampled_from(["linear", "cubic"]), st.booleans(), st.floats(0.5, 1.0))
def test_freezeout_freezes_from_the_input_on_and_anneals_each_layer_to_zero(names, count, how, scaled, first):
    table = tables.freezing_out(names, count, 0.1, first=first, how=how, scaled=scaled)
    ends = [x.end for x in table.layers]
    assert ends == sorted(ends)
    assert ends[-1] == count
    assert ends[0] == pytest.approx((first**3 if how == "cubic" else first) * count, abs=1)
    for layer in table.layers:
        assert layer.rate(0) == pytest.approx(0.1 * (count / layer.end if scaled else 1), rel=0.1)
        assert layer.rate(layer.end) == pytest.approx(0, abs=1e-12)
        assert not layer.learns(layer.end)
    if scaled:  # the same distance for all: the integral of each rate over time
        sums = rates(table, count).sum(0)
        assert sums == pytest.approx(sums[-1], rel=0.15)
    else:
        assert rates(table, count).sum(0)[0] <= rates(table, count).sum(0)[-1] + 0.1
