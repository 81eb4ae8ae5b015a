"""Scores, by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.evaluation.scores import VOTES, Scores, mean_scores, score, summarise, voted

LABELS = ("rest", "fist", "open")


def sure(said, p=0.9):
    out = np.full((len(said), 3), (1 - p) / 2)
    out[np.arange(len(said)), said] = p
    return out


def test_scores_of_a_few_windows():
    y = np.array([0, 0, 1, 1, 2, 2])
    said = np.array([0, 1, 1, 0, 2, 2])  # one false fist, one missed fist
    s = score(sure(said), y, np.arange(6), LABELS)
    assert s.accuracy == pytest.approx(4 / 6)
    assert s.balanced == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert s.macro_f1 == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert s.active_error == pytest.approx(1 / 6)
    assert (s.rejected, s.accepted) == (0, pytest.approx(4 / 6))
    assert s.calibration_error == pytest.approx(0.9 - 4 / 6)
    assert s.voted == s.accuracy  # every window a recording of its own


def test_unsure_windows_are_rejected():
    p = np.concatenate([sure(np.array([0, 0]), 0.9), sure(np.array([1, 1]), 0.4)])
    s = score(p, np.zeros(4, int), np.zeros(4, int), LABELS)
    assert (s.rejected, s.accepted, s.accuracy) == (0.5, 1.0, 0.5)


def test_without_a_rest_label_every_error_is_an_active_one():
    s = score(sure(np.array([0, 1])), np.array([1, 1]), np.zeros(2, int), ("a", "b", "c"))
    assert s.active_error == 0.5


def test_a_vote_looks_back_only_and_stops_at_recordings():
    said = np.array([1] * VOTES + [0] * VOTES)
    together = voted(said, np.zeros(len(said), int), 3)
    # Ten votes back: a new class wins at a tie, being the later one.
    assert list(together) == [1] * (VOTES + VOTES // 2 - 1) + [0] * (VOTES // 2 + 1)
    apart = voted(said, np.repeat([0, 1], VOTES), 3)
    np.testing.assert_array_equal(apart, said)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(1, 4))
def test_votes_are_the_majority_of_the_last_ten(said, recordings):
    said = np.array(said)
    recording = np.sort(np.arange(len(said)) % recordings)
    for i, v in enumerate(voted(said, recording, 3)):
        begin = max(int(np.argmax(recording == recording[i])), i - VOTES + 1)
        counts = np.bincount(said[begin : i + 1], minlength=3)
        assert counts[v] == counts.max()


def scores(accuracy):
    return Scores(accuracy, 0, 0, 0, 0, 0, 0, 0)


def test_a_summary_names_the_worst_and_the_harmed():
    generic = {"a": scores(0.8), "b": scores(0.9), "c": scores(0.9)}
    s = summarise({"a": scores(0.95), "b": scores(0.895), "c": scores(0.85)}, generic)
    assert (s.worst_user, s.users) == ("c", 3)
    assert s.harmed == ("b", "c")
    assert s.harmed_by_a_point == ("c",)
    assert s.mean.accuracy == pytest.approx((0.95 + 0.895 + 0.85) / 3)
    assert s.sd == pytest.approx(np.std([0.95, 0.895, 0.85], ddof=1))
    assert summarise({"a": scores(0.8)}, generic).sd == 0
    assert mean_scores([scores(0.4), scores(0.6)]).accuracy == 0.5
