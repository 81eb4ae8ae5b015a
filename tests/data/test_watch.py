import io
import pickle
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

import numpy as np
import pytest

from models.data import watch
from models.data.recordings import load, load_folder
from models.data.splits import assert_disjoint
from models.data.watch import WatchError, convert_watch, watch_recordings
from models.data.windows import WindowSpec, first_windows, windows

needs_seglearn = pytest.mark.skipif(find_spec("seglearn") is None, reason="the package seglearn is not installed")


def pretend_installed(monkeypatch, tmp_path, content):
    """Put a package in seglearn's place whose data file pickles `content`."""
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "watch_dataset.npy").open("wb") as file:
        np.save(file, np.array(content, dtype=object), allow_pickle=True)
    spec = ModuleSpec("seglearn", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(watch, "find_spec", lambda _name: spec)


def small(**changes):
    rng = np.random.default_rng(0)
    data = {
        "X": [rng.normal(size=(n, 6)) for n in (401, 402, 403)],
        "y": np.array([1, 0, 1]),
        "side": np.array([1.0, 1.0, 0.0]),
        "subject": np.array([3, 3, 4]),
        "y_labels": ["PEN", "NEW"],
        "X_labels": list("abcdef"),
    }
    return {**data, **changes}


@needs_seglearn
def test_the_people_exercises_and_arms_are_all_there(tmp_path):
    paths = convert_watch(tmp_path / "watch")
    apart = convert_watch(tmp_path / "apart", apart=True)
    assert {p.parent.name for p in apart} == {"accelerometer", "gyroscope"}
    whole, turns = load(paths[0]), load(tmp_path / "apart" / "gyroscope" / paths[0].name)
    assert (turns.signal == whole.signal[:, 3:]).all()
    assert (turns.repetition == whole.repetition).all()
    assert [path.stem for path in paths] == [f"watch_{i}" for i in range(1, 11)]
    assert (tmp_path / "watch" / "LICENCE.txt").read_text().startswith("Smartwatch recordings")
    people = load_folder(tmp_path / "watch")
    assert [rec.stem for rec in people] == [path.stem for path in paths]
    for rec in people:
        assert (rec.channels, rec.fs, rec.modality, rec.session_names) == (6, 50.0, "imu", ("left", "right"))
        assert len(rec.label_names) == 7
        # Each exercise once an arm, in four blocks.
        counts = np.zeros((2, 4, 7), int)
        np.add.at(counts, (rec.session, rec.repetition, rec.label), 1)
        assert (counts == 1).all()
        assert (rec.stop - rec.start).min() >= 4.5 * rec.fs
    assert sum(len(rec.signal) for rec in people) / 50 == pytest.approx(sum_of_seconds(), abs=1e-6)
    assert_disjoint(people[:5], people[5:])


def sum_of_seconds():
    data = watch._read(watch._path())
    return sum(len(x) for x in data["X"]) / 50


@needs_seglearn
def test_windows_of_two_blocks_share_no_sample():
    rec = watch_recordings()[0]
    spec = WindowSpec.for_signal(rec.fs, rec.modality)
    cut = windows(rec, spec)
    touched = np.zeros((4, len(rec.signal)), bool)
    for repetition in range(4):
        begins = cut.start[cut.repetition == repetition]
        touched[repetition, begins[:, None] + np.arange(spec.length)] = True
    assert touched.any(axis=1).all()
    assert touched.sum(axis=0).max() == 1
    assert len(first_windows(rec, spec, 5)) == 35


@needs_seglearn
def test_neither_the_package_nor_what_it_needs_is_imported():
    before = set(sys.modules)
    watch_recordings()
    new = {name.split(".")[0] for name in set(sys.modules) - before}
    assert not new & {"seglearn", "sklearn", "pandas", "scipy"}


def test_missing_arms_and_exercises_and_new_labels_are_taken_as_they_are(monkeypatch, tmp_path):
    pretend_installed(monkeypatch, tmp_path, small())
    third, fourth = watch_recordings(blocks=4)
    assert third.label_names == ("pendulum", "NEW")
    assert third.subject == "watch_3"
    assert third.session.tolist() == [1] * 8
    assert third.label.tolist() == [0] * 4 + [1] * 4
    assert third.repetition.tolist() == [0, 1, 2, 3] * 2
    assert third.start[0] == 0
    assert third.stop[-1] == len(third.signal) == 803
    assert np.array_equal(third.start[1:], third.stop[:-1])
    assert fourth.session.tolist() == [0] * 4


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(watch, "find_spec", lambda _name: None)
    with pytest.raises(WatchError, match="pip install seglearn"):
        convert_watch(tmp_path / "watch")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_kind_is_refused(monkeypatch, tmp_path):
    pretend_installed(monkeypatch, tmp_path, {"X": []})
    with pytest.raises(WatchError, match=r"1\.2\.5"):
        watch_recordings()
    (tmp_path / "data" / "watch_dataset.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(WatchError, match="cannot be read"):
        watch_recordings()
    (tmp_path / "data" / "watch_dataset.npy").unlink()
    with pytest.raises(WatchError, match=r"has no watch_dataset\.npy"):
        watch_recordings()
    with pytest.raises(WatchError, match="at least 1 block"):
        watch_recordings(blocks=0)


class Evil:
    def __reduce__(self):
        return (io.open, ("/dev/null", "w"))


def test_a_pickle_that_would_run_something_is_refused(monkeypatch, tmp_path):
    pretend_installed(monkeypatch, tmp_path, small(extra=Evil()))
    with pytest.raises(WatchError, match="is not an array"):
        watch_recordings()
    assert issubclass(watch._Arrays, pickle.Unpickler)
