"""The example of two outputs does what it says."""

import pytest

from examples.gesture_and_angle import run


@pytest.mark.slow
def test_each_output_is_calibrated_apart(tmp_path):
    shared, gesture, elbow = run(tmp_path, people=8, strangers=3).mean(0)
    assert gesture[0] > shared[0]
    assert gesture[1] == shared[1]
    assert elbow[0] == gesture[0]
    assert elbow[1] < 0.7 * shared[1]
