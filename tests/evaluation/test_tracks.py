"""The causal and the batch track on synthetic people."""

import json

import numpy as np
import pytest

from models.data.recordings import load_folder
from models.data.windows import WindowSpec, windows
from models.evaluation.personaliser import LocalPersonaliser
from models.evaluation.protocols import plan
from models.evaluation.run import made_of
from models.evaluation.streams import STREAMS, StreamKind, chosen
from models.evaluation.track_tables import log_track, to_json, to_markdown
from models.evaluation.tracks import ANEW, CONTINUING, NEXT, NONE, TRACKS, TRANSDUCTIVE, evaluate_track

BALANCED, IMBALANCED, FEW = STREAMS


@pytest.fixture(scope="module")
def recorded(people):
    return windows(load_folder(people)[6], WindowSpec(52, 20))


@pytest.fixture(scope="module")
def tables(people, bundle):
    model = LocalPersonaliser(bundle)
    protocol = plan("cycles", model.manifest, people)
    kinds = (BALANCED, StreamKind(IMBALANCED.name, 2), StreamKind(FEW.name, 2))
    found = {}
    for track in TRACKS:
        found[track] = evaluate_track(track, model, protocol, conditions=("0-shot", "5w"), kinds=kinds, every=20)
        found[track].made_of = made_of(model, protocol, "test", 0.0)
    return found


def test_a_balanced_stream_is_the_recording(recorded):
    np.testing.assert_array_equal(chosen(BALANCED, 0, recorded, 4, 0), np.arange(len(recorded)))


@pytest.mark.parametrize("draw", range(5))
def test_three_classes_are_three_and_all_of_them(recorded, draw):
    kept = chosen(FEW, draw, recorded, 4, 0)
    shown = np.unique(recorded.y[kept])
    assert len(shown) == 3
    np.testing.assert_array_equal(kept, np.flatnonzero(np.isin(recorded.y, shown)))


@pytest.mark.parametrize("draw", range(4))
def test_ten_to_one_leaves_one_class_whole_and_a_stretch_of_each_other_recording(recorded, draw):
    kept = chosen(IMBALANCED, draw, recorded, 4, 0)
    assert (np.diff(kept) > 0).all()
    for r in np.unique(recorded.recording):
        own = np.flatnonzero(recorded.recording == r)
        left = np.intersect1d(own, kept)
        if recorded.y[own[0]] == draw:
            assert len(left) == len(own)
        else:
            assert len(left) == max(1, len(own) // 10)
            assert (np.diff(left) == 1).all()


def test_draws_repeat_by_the_seed(recorded):
    np.testing.assert_array_equal(chosen(FEW, 1, recorded, 4, 5), chosen(FEW, 1, recorded, 4, 5))
    draws = {tuple(np.unique(recorded.y[chosen(FEW, d, recorded, 4, 0)])) for d in range(8)}
    assert len(draws) > 1


def test_every_stream_and_method_is_scored_on_the_same_users(tables):
    causal = tables["causal"].runs
    assert set(causal) == {k.name for k in STREAMS}
    users = set(causal["balanced"][NONE]["5w"])
    assert len(users) == 3
    for methods in causal.values():
        for row in methods.values():
            assert all(set(by_user) == users for by_user in row.values())
    assert all(len(draws) == 2 for draws in causal["10:1"][CONTINUING]["5w"].values())
    assert {NONE, TRANSDUCTIVE} <= set(tables["batch"].runs["balanced"])


def test_streams_of_some_classes_leave_the_calibrated_head(tables):
    for stream in ("3 classes", "10:1"):
        cell = tables["causal"].cell(stream, CONTINUING, "5w")
        assert cell.worst_draw == 0.0
        assert set(tables["causal"].outcomes[stream]["5w"]) == {"insufficient"}


def test_one_test_has_no_next_one(tables):
    """The synthetic people have one further session: there is nothing to go on to."""
    assert ANEW not in tables["causal"].runs["balanced"]
    assert NEXT not in tables["batch"].runs["balanced"]


def test_the_unadapted_row_is_the_inductive_evaluations(people, bundle, tables):
    from models.evaluation.run import PERSONAL, evaluate

    model = LocalPersonaliser(bundle)
    inductive = evaluate(model, plan("cycles", model.manifest, people), with_baselines=False)
    for user, scores in inductive.users[PERSONAL]["5w"].items():
        assert tables["causal"].runs["balanced"][NONE]["5w"][user][0] == pytest.approx(scores.accuracy, abs=1e-3)


@pytest.mark.parametrize("track", TRACKS)
def test_tables_say_what_they_are(tables, track, tmp_path):
    text = to_markdown(tables[track])
    assert f"{track} track" in text
    assert "**3 classes**" in text
    document = json.loads(to_json(tables[track]))
    assert document["table"]["balanced"][NONE]["5w"]["users"] == 3
    assert log_track(tmp_path / "runs.jsonl", tables[track]) == 1
    assert log_track(tmp_path / "runs.jsonl", tables[track]) == 2
    assert json.loads((tmp_path / "runs.jsonl").read_text().splitlines()[0])["track"] == track
