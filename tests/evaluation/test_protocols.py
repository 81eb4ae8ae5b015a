"""Protocols: who is scored on what, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from exporters import bundle as bundles
from exporters.bundle import InputSpec
from models.data.recordings import Recordings, load_folder, save
from models.data.splits import LeakageError
from models.evaluation.protocols import PROTOCOLS, ProtocolError, plan
from models.evaluation.subjects import make_subject
from tests.evaluation.conftest import CHANNELS, FS, LENGTH, PEOPLE, STRIDE, TRAINED

CYCLES = PROTOCOLS["cycles"]
GESTURES = (
    "neutral",
    "radial_deviation",
    "wrist_flexion",
    "ulnar_deviation",
    "wrist_extension",
    "hand_close",
    "hand_open",
)


@pytest.fixture
def manifest(bundle):
    return bundles.load(bundle).manifest


def spec(channels=2, length=10, stride=5, fs=100.0):
    return InputSpec(shape=(-1, channels, length), unit="counts", sample_rate=fs, stride=stride)


def recordings(labels, repetitions, sessions=None, samples=40, names=("rest", "fist"), subject="p"):
    rng = np.random.default_rng(0)
    start = np.arange(len(labels)) * samples
    stop = start + samples
    return Recordings.build(
        rng.normal(size=(len(labels) * samples, 2)).astype(np.float32), start, stop, labels, repetitions,
        session=sessions, session_names=None if sessions is None else [f"s{i}" for i in range(max(sessions) + 1)],
        label_names=names, fs=100, subject=subject,
    )  # fmt: skip


def test_other_sessions_are_scored_and_calibration_is_of_the_first(manifest, people):
    p = plan("cycles", manifest, people)
    assert [r.stem for r in p.test] == [f"synth_{i}" for i in range(TRAINED, PEOPLE)]
    assert [r.stem for r in p.population] == [f"synth_{i}" for i in range(TRAINED)]
    for s in p.subjects():
        assert list(s.tests) == ["session1"]
        assert s.recordings == {"session1": 12}
        assert [c.name for c in s.conditions] == ["1w", "5w", "1 cycle", "2 cycles", "3 cycles"]
        assert all((c.calibration.session == 0).all() for c in s.conditions)
        assert [len(np.unique(c.calibration.repetition)) for c in s.conditions] == [1, 1, 1, 2, 3]
        assert [len(c.calibration) for c in s.conditions][:2] == [4, 20]


def test_one_session_is_scored_on_repetitions_that_no_condition_calibrates_on():
    s = make_subject(recordings([0, 1] * 6, np.repeat(range(6), 2)), CYCLES, spec(), ("rest", "fist"))
    assert [c.name for c in s.conditions] == ["1w", "5w", "1 cycle", "2 cycles", "3 cycles", "4 cycles"]
    assert set(s.tests["rest"].repetition) == {4, 5}
    assert s.recordings == {"rest": 4}
    used = np.concatenate([c.calibration.recording for c in s.conditions])
    assert not set(used) & set(s.tests["rest"].recording)


def test_first_windows_never_come_from_a_scored_recording():
    # 'fist' is first shown in the last repetition, which is scored.
    rec = recordings([0, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2], names=("rest", "fist", "open"))
    s = make_subject(rec, CYCLES, spec(), ("rest", "fist", "open"))
    for c in s.conditions:
        assert not set(c.calibration.recording) & set(s.tests["rest"].recording)
        assert set(c.calibration.y) == {0, 2}


def test_labels_go_by_name_into_the_models_order():
    s = make_subject(recordings([0, 1] * 3, np.repeat(range(3), 2)), CYCLES, spec(), ("open", "fist", "rest"))
    assert set(s.tests["rest"].y) == {2, 1}
    assert s.tests["rest"].y[0] == 2


def test_short_recordings_are_counted_apart():
    rec = recordings([0, 1] * 3, np.repeat(range(3), 2))
    stop = rec.stop.copy()
    stop[-1] = rec.start[-1] + 3
    s = make_subject(replace(rec, stop=stop), CYCLES, spec(), ("rest", "fist"))
    assert (s.recordings, s.too_short) == ({"rest": 1}, {"rest": 1})


def test_conditions_that_cannot_be_had_are_noted():
    s = make_subject(recordings([0, 1] * 3, np.repeat(range(3), 2), samples=20), CYCLES, spec(), ("rest", "fist"))
    assert [c.name for c in s.conditions] == ["1w", "1 cycle", "2 cycles"]
    assert "no condition of 5 windows a class" in s.notes[0]
    s = make_subject(recordings([0, 0, 1, 0, 1], [0, 1, 1, 2, 2]), CYCLES, spec(), ("rest", "fist"))
    assert "1 cycle" not in [c.name for c in s.conditions]
    assert any("fewer than two classes" in note for note in s.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": spec(channels=3)}, "differ in channels: 2, and the model takes 3"),
        ({"spec": spec(fs=200.0)}, "differ in sampling rate: 100 Hz, and the model takes 200 Hz"),
        ({"labels": ("rest", "open")}, "recordings of fist, which the model does not know"),
        ({"rules": PROTOCOLS["myo"]}, "no session training0, Test0, Test1.*'cycles' takes any recordings"),
    ],
)
def test_recordings_of_another_kind_are_refused(changes, message):
    asked = {"rules": CYCLES, "spec": spec(), "labels": ("rest", "fist"), **changes}
    with pytest.raises(ProtocolError, match=message):
        make_subject(recordings([0, 1] * 2, [0, 0, 1, 1]), **asked)


def test_one_repetition_leaves_nothing_to_score():
    with pytest.raises(ProtocolError, match="Record a second repetition"):
        make_subject(recordings([0, 1], [0, 0]), CYCLES, spec(), ("rest", "fist"))


def test_recordings_that_share_samples_are_refused():
    rec = recordings([0, 1] * 3, np.repeat(range(3), 2))
    start, stop = rec.start.copy(), rec.stop.copy()
    start[-1], stop[-1] = start[0], stop[0]
    with pytest.raises(LeakageError):
        make_subject(replace(rec, start=start, stop=stop), CYCLES, spec(), ("rest", "fist"))


def test_people_of_the_training_are_refused_or_named(manifest, people):
    with pytest.raises(ProtocolError, match="trained on synth_1"):
        plan("cycles", manifest, people, subjects="synth_1,synth_6")
    p = plan("cycles", manifest, people, subjects="synth_1,synth_6", allow_training_subjects=True)
    assert p.trained_on == ("synth_1",)
    assert "NOT HELD OUT: the model was trained on synth_1" in p.description
    assert "synth_1" not in [r.stem for r in p.population]


def test_a_renamed_file_of_the_training_is_known_again(manifest, people, tmp_path):
    save(tmp_path / "stranger.npz", load_folder(people, "synth_0")[0])
    with pytest.raises(ProtocolError, match="trained on"):
        plan("cycles", manifest, tmp_path, subjects="stranger")


def test_population_and_test_must_not_share_people(manifest, people):
    with pytest.raises(LeakageError):
        plan("cycles", manifest, people, subjects="synth_6", population="synth_[67]")


def test_nobody_to_score_and_unknown_protocols_are_sentences(manifest, people):
    everybody = [{"stem": r.stem, "digest": r.digest} for r in load_folder(people)]
    trained = manifest.model_copy(update={"provenance": {"subjects": everybody}})
    with pytest.raises(ProtocolError, match="trained on all of them"):
        plan("cycles", trained, people)
    with pytest.raises(ProtocolError, match="there are: myo, cycles"):
        plan("random", manifest, people)


def test_the_spec_is_the_models(manifest, people):
    p = plan("cycles", manifest, people)
    assert (p.spec.length, p.spec.stride) == (LENGTH, STRIDE)
    assert (p.input.shape, p.input.sample_rate) == ((-1, CHANNELS, LENGTH), FS)


def test_myo_scores_every_recording_of_its_seventeen_people(manifest, myo):
    model = manifest.model_copy(update={"labels": GESTURES, "input": spec(8, 52, 5, 200.0), "provenance": {}})
    p = plan("myo", model, myo)
    assert (len(p.test), len(p.population)) == (17, 19)
    assert not {r.stem for r in p.test} & {"eval_M15"}
    s = next(iter(p.subjects()))
    assert s.recordings == {"Test0": 28, "Test1": 28}
    assert s.too_short == {"Test0": 0, "Test1": 0}
    names = ["1w", "5w", "1 cycle", "2 cycles", "3 cycles", "4 cycles"]
    assert [c.name for c in s.conditions] == names
    assert [len(c.calibration) for c in s.conditions][:2] == [7, 35]
