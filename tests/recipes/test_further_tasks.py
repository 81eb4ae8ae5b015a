"""Further tasks of recordings: read beside their labels, fitted on what was trained, and served side by side."""

import hashlib

import numpy as np
import pytest
from typer.testing import CliRunner

from exporters import bundle as bundles
from models.data.asked import asks
from models.data.collections import CollectionError
from models.data.further import further
from models.data.recordings import load_folder, save
from models.data.synthetic import synthesise
from models.data.windows import WindowSpec, windows
from service.cli import app

SPEC = WindowSpec(52, 26)


def headway(*arguments):
    """Run a command; what it prints, or the exception that it ends in."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def write(folder, **changed):
    """Four people with an effort at each sample, a grade of each recording, and a posture that some did not note."""
    people = synthesise(4, channels=4, fs=200.0, labels=3, repetitions=3, sessions=1, seconds=1.0, seed=5)
    for rec in people:
        save(folder / f"{rec.subject}.npz", rec)
        with np.load(folder / f"{rec.subject}.npz") as archive:
            arrays = dict(archive)
        posture = np.array(["still", "moving", "moving"])[rec.label]
        posture[rec.repetition == 2] = ""
        effort = np.convolve(np.abs(rec.signal.astype(float)).mean(1), np.ones(40) / 40, "same")
        effort[rec.start[-1] :] = np.nan
        arrays |= {"effort": effort, "posture": posture, "grade": rec.label + 1.5, "code": (rec.label > 0) - 0}
        np.savez(folder / f"{rec.subject}.npz", **(arrays | {k: v for k, v in changed.items() if v is not None}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    said = headway(
        "train", "--data", data, "--out", folder / "arm", "--recipe", "handmade", "--set", "personal=16",
        "--task", "move=gesture", "--task", "effort", "--task", "posture",
    )  # fmt: skip
    headway("train", "--data", data, "--out", folder / "alone", "--recipe", "handmade", "--set", "personal=16")
    for name in ("arm", "alone"):
        headway("export", folder / name, "--models", folder / "models", "--name", name)
    return folder, said


def test_a_target_at_each_sample_is_a_windows_mean_and_holes_are_not_known(data):
    (rec, *_) = recordings = load_folder(data)
    found, w = further(data, recordings, asks(["effort"])[0]), windows(rec, SPEC)
    known, t = found.of(0, w)
    with np.load(data / f"{rec.stem}.npz") as archive:
        effort = archive["effort"]
    means = np.array([effort[s : s + SPEC.length].mean() for s in w.start])
    assert np.array_equal(known, np.isfinite(means))
    assert 0 < known.sum() < len(w)
    assert np.allclose(t[:, 0], means[known])


def test_words_and_numbers_of_recordings_are_those_of_their_windows(data):
    recordings = load_folder(data)
    w = windows(recordings[0], SPEC)
    known, y = further(data, recordings, asks(["posture"])[0]).of(0, w)
    assert np.array_equal(known, w.repetition != 2)
    assert np.array_equal(y == 0, w.y[known] > 0), "moving, still"
    known, t = further(data, recordings, asks(["grade"])[0]).of(0, w)
    assert known.all()
    assert np.array_equal(t[:, 0], w.y + 1.5)
    as_labels = further(data, recordings, asks(["code:classification"])[0])
    assert as_labels.labels == ("0", "1")
    assert np.array_equal(as_labels.of(0, w)[1], (w.y > 0) - 0)


def test_indices_are_read_by_their_names_and_a_person_without_the_array_is_not_known(tmp_path):
    folder = write(tmp_path, code=None, code_names=np.array(["rest", "act"]))
    recordings = load_folder(folder)
    first = folder / f"{recordings[0].stem}.npz"
    with np.load(first) as archive:
        kept = {k: v for k, v in archive.items() if k != "code"}
    np.savez(first, **kept)
    found = further(folder, recordings, asks(["code"])[0])
    assert found.labels == ("act", "rest")
    assert not found.of(0, windows(recordings[0], SPEC))[0].any()
    assert found.of(1, windows(recordings[1], SPEC))[0].all()


@pytest.mark.parametrize(
    ("asked", "changed", "says"),
    [
        ("torque", {}, "no file has an array 'torque'; .* has .*effort"),
        ("posture:regression", {}, "holds words, and a regression needs numbers"),
        ("odd", {"odd": np.zeros(5)}, "'odd' is float64 \\(5,\\); words or numbers for each of 9 recordings"),
        ("flat", {"flat": np.ones(9)}, "is the same in every recording"),
        ("none", {"none": np.full(9, np.nan)}, "is known of no recording"),
        ("effort:classification", {}, "labels are one a recording"),
        ("word", {"word": np.array(["a"] * 9)}, "has one label only"),
        ("far", {"far": np.array([1.0, np.inf] + [0.0] * 7)}, "'far' holds inf, beyond"),
        ("both=a,b", {"a": [0, 1, *[np.nan] * 7], "b": [*[np.nan] * 7, 1, 2.0]}, "is known of 0 people"),
    ],
)
def test_what_is_not_there_or_says_nothing_is_refused(tmp_path, asked, changed, says):
    folder = write(tmp_path, **changed)
    with pytest.raises(CollectionError, match=says):
        further(folder, load_folder(folder), asks([asked])[0])


def test_a_wrong_task_is_refused_before_anything_is_trained(data, tmp_path):
    with pytest.raises(CollectionError, match="no file has an array 'torque'"):
        headway("train", "--data", data, "--out", tmp_path / "run", "--task", "torque")
    with pytest.raises(CollectionError, match="give the other task another name"):
        headway("train", "--data", data, "--out", tmp_path / "run", "--task", "gesture=effort")
    assert not (tmp_path / "run").exists()


def test_the_outputs_lie_side_by_side_and_say_what_they_are_worth(made):
    folder, said = made
    assert "effort, left out: effort wrong by" in said
    assert "posture, left out: shared head" in said
    bundle = bundles.load(folder / "models" / "arm" / "1")
    assert bundle.manifest.names == ("move", "effort", "posture")
    assert [o.population.dim for o in bundle.outputs] == [16 + 3, 16, 16]
    effort, posture = (o.manifest.evaluation["left_out_people"] for o in bundle.outputs[1:])
    assert effort["r2"]["effort"] > 0.5
    assert posture["accuracy"] > 0.8
    assert "Output `posture`" in (bundle.path / "MODEL_CARD.md").read_text()


def test_the_run_without_its_further_tasks_is_what_it_would_be_alone(made):
    folder, _ = made
    files = ("weights.safetensors", "prior.safetensors", "parity.npz")
    digests = [[hashlib.sha256((folder / n / f).read_bytes()).hexdigest() for f in files] for n in ("arm", "alone")]
    assert digests[0] == digests[1]
    several, alone = (bundles.load(folder / "models" / name / "1") for name in ("arm", "alone"))
    assert several.backbone == alone.backbone
    assert several.manifest.feature_space == alone.manifest.feature_space, "users' heads are valid in both"
    assert several.outputs[0].prior.hyper == alone.prior.hyper


def test_an_output_is_added_to_a_bundle_of_recordings(made, data):
    folder, _ = made
    said = headway(
        "bundle", "add-task", folder / "models" / "alone", "--data", data, "--task", "effort", "--called", "move"
    )
    assert "effort: shared head on left-out people: effort wrong by" in said
    assert bundles.load(folder / "models" / "alone" / "2").manifest.names == ("move", "effort")
    with pytest.raises(ValueError, match="has no name yet: say how it is called"):
        headway("bundle", "add-task", folder / "models" / "alone" / "1", "--data", data, "--task", "effort")
    with pytest.raises(ValueError, match="'My move' cannot be the name of an output: lower-case letters"):
        headway(
            "bundle", "add-task", folder / "models" / "alone" / "1", "--data", data, "--task", "effort",
            "--called", "My move",
        )  # fmt: skip


def test_a_damaged_record_of_tasks_is_a_sentence(made, tmp_path):
    folder, _ = made
    file = folder / "arm" / "tasks.json"
    whole = file.read_text()
    file.write_text(whole.replace('"called"', '"cold"'))
    with pytest.raises(ValueError, match=r"The tasks of the run in .* are damaged"):
        headway("export", folder / "arm", "--models", tmp_path)
    file.write_text(whole)


def test_what_two_people_tell_is_refused_before_anything_is_trained(tmp_path):
    folder = write(tmp_path)
    for file in sorted(folder.glob("*.npz"))[:2]:
        with np.load(file) as archive:
            arrays = {k: v for k, v in archive.items() if k not in ("effort", "posture")}
        np.savez(file, **arrays)
    for task in ("effort", "posture"):
        with pytest.raises(CollectionError, match="is known of 2 people; it is learned from 3 or more"):
            further(folder, load_folder(folder), asks([task])[0])


def test_labels_that_are_numbers_keep_all_their_digits(tmp_path):
    folder = write(tmp_path, serial=1e6 + np.arange(9.0) // 3)
    found = further(folder, load_folder(folder), asks(["serial:classification"])[0])
    assert found.labels == ("1000000", "1000001", "1000002")


def _interrupted(*_):
    raise InterruptedError


def test_a_run_killed_before_its_tasks_are_fitted_is_no_model_without_them(data, tmp_path, monkeypatch):
    asked = ("train", "--data", data, "--out", tmp_path / "arm", "--recipe", "handmade", "--set", "personal=16")
    tasks = ("--task", "effort", "--task", "posture")
    with monkeypatch.context() as killed:
        killed.setattr("service.commands.training.learn_further", _interrupted)
        with pytest.raises(InterruptedError):
            headway(*asked, *tasks)
    with pytest.raises(ValueError, match=r"no fit of its tasks effort, posture: .*--resume fits them"):
        headway("export", tmp_path / "arm", "--models", tmp_path / "models")
    headway(*asked, *tasks, "--resume")
    headway("export", tmp_path / "arm", "--models", tmp_path / "models")
    assert bundles.load(tmp_path / "models" / "arm" / "1").manifest.names == ("gesture", "effort", "posture")
