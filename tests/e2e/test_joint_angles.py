"""The example of a regression does what it says."""

import pytest

from examples.joint_angles import run


@pytest.mark.slow
def test_strangers_come_to_be_told_their_angles(tmp_path):
    shared, once, twice = run(tmp_path, people=8, strangers=3).mean((0, 2))
    assert once < 0.8 * shared
    assert twice < 0.8 * shared
