"""The smartwatch example runs on the real recordings, and its tables add up."""

import re

import pytest

pytest.importorskip("seglearn", reason="the recordings come with the package seglearn")

from examples.smartwatch import ALWAYS, GENERIC, LDA, OTHER, SAME, SERVED, run, show
from models.data.watch import watch_recordings
from models.training import TrainConfig


@pytest.mark.slow
def test_people_left_out_are_personalised_within_a_recording_and_across_arms(tmp_path, capsys):
    people = watch_recordings()[:6]
    scores = run(tmp_path, people, 2, TrainConfig.model_validate({**TrainConfig.QUICK, "recipe": "handmade"}))
    half = "half of each recording"
    for column in (SAME, OTHER):
        assert all(len(scores.people(half, method, column)) == 6 for method in (LDA, SERVED, ALWAYS))
    assert scores.people(half, ALWAYS, SAME).mean() > scores.people("none", GENERIC, SAME).mean() + 0.02
    # One's own discriminant knows the arm, not the exercise.
    assert scores.people(half, LDA, OTHER).mean() < scores.people(half, LDA, SAME).mean() - 0.1
    assert SAME not in scores.found["the whole recordings", SERVED]
    assert all(len(said) == 12 for said in scores.served.values())
    capsys.readouterr()
    show(scores)
    printed = capsys.readouterr().out
    assert printed.count("Balanced accuracy on") == 2
    for line in re.findall(r".*guard off.*", printed):
        mean, worst = (float(v) for v in re.findall(r"([\d.]+)%", line))
        assert worst <= mean
