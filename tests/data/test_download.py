import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from models.data.download import MYO_COMMIT, MYO_NOTICE, DownloadError, convert_myo, download_myo
from models.data.recordings import RecordingsError, load, load_folder

MYO = Path(__file__).parents[2] / ".." / "shared" / "data" / "myo"
GESTURES = 7


def write_session(folder, recordings):
    folder.mkdir(parents=True)
    for index, signal in enumerate(recordings):
        signal.astype("<i2").tofile(folder / f"classe_{index}.dat")


def session(rng, low=-128, high=128):
    return [rng.integers(low, high, (int(rng.integers(40, 60)), 8)) for _ in range(4 * GESTURES)]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """A tree laid out as upstream's, with the Female7-9 trap, and beside the signals what the clone should skip."""
    root = tmp_path_factory.mktemp("upstream") / "MyoArmbandDataset"
    rng = np.random.default_rng(0)
    rounds = {name: session(rng) for name in ("training0", "Test0", "Test1")}
    people = {"Female0": rounds, "Male0": None, "Male2": None, "Male15": None}
    for name, given in people.items():
        for part in ("training0", "Test0", "Test1"):
            write_session(root / "EvaluationDataset" / name / part, (given or {}).get(part) or session(rng))
    (root / "EvaluationDataset" / "Female0" / "experiment.csv").write_text("age,23\n")
    for name in ("Female0", "Male0", "Male10"):
        write_session(root / "PreTrainingDataset" / name / "training0", session(rng))
    write_session(root / "PreTrainingDataset" / "Male12" / "training0", session(rng, high=400))
    for number, part in enumerate(("training0", "Test0", "Test1"), start=7):
        write_session(root / "PreTrainingDataset" / f"Female{number}" / "training0", rounds[part])
    (root / "README.md").write_text("upstream\n")
    (root / "weights.p").write_bytes(bytes(1000))
    return root


@pytest.fixture(scope="module")
def repository(upstream):
    names = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t"}
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("GIT_")}, **names}

    def git(*arguments):
        done = subprocess.run(["git", *arguments], cwd=upstream, env=environment, check=True, capture_output=True)
        return done.stdout.decode().strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "data")
    pinned = git("rev-parse", "HEAD")
    # A later change, which the pinned commit does not have; GitHub, too, hands out commits that are no branch's tip.
    (upstream / "PreTrainingDataset" / "Male0" / "training0" / "classe_0.dat").unlink()
    git("rm", "--quiet", "-r", "EvaluationDataset/Male0/Test0")
    git("commit", "--quiet", "-am", "later")
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    git("config", "uploadpack.allowFilter", "true")
    return upstream.as_uri(), pinned


def blob(upstream, commit, path):
    done = subprocess.run(["git", "show", f"{commit}:{path}"], cwd=upstream, check=True, capture_output=True)
    return np.frombuffer(done.stdout, "<i2").reshape(-1, 8)


def test_the_repository_is_cloned_and_converted(repository, upstream, tmp_path):
    url, commit = repository
    said = []
    paths = download_myo(tmp_path / "myo", url=url, commit=commit, progress=lambda *args: said.append(args))
    stems = ["pretrain_F0", "pretrain_M0", "pretrain_M10", "pretrain_M12", "eval_F0", "eval_M0", "eval_M2", "eval_M15"]
    assert [path.stem for path in paths] == stems
    assert all(path.is_file() for path in paths)
    assert [path.name for path in tmp_path.iterdir()] == ["myo"]
    people = {rec.stem: rec for rec in load_folder(tmp_path / "myo")}
    assert {stem for stem, rec in people.items() if not rec.in_paper} == {"eval_M15", "pretrain_M12"}
    assert said[-1] == ("eval_M15", 8, 8)

    rec = people["eval_M0"]
    assert (rec.fs, rec.channels, rec.subject, rec.modality) == (200.0, 8, "eval_M0", "emg")
    assert rec.session_names == ("training0", "Test0", "Test1")
    assert rec.label_names[0] == "neutral"
    assert rec.label_names[6] == "hand_open"
    index = 28 + 9  # classe_9 of Test0: the third gesture of the second cycle
    raw = blob(upstream, commit, "EvaluationDataset/Male0/Test0/classe_9.dat")
    assert np.array_equal(rec.signal[rec.start[index] : rec.stop[index]], raw)
    assert (rec.label[index], rec.repetition[index], rec.session[index]) == (2, 1, 1)
    assert rec.signal.dtype == np.int8
    # One person's counts do not fit eight bits: they are kept as they are.
    assert people["pretrain_M12"].signal.dtype == np.int16
    assert people["pretrain_M12"].signal.max() == 399


def test_copies_of_evaluation_people_are_left_out_and_said(repository, tmp_path):
    url, commit = repository
    said = []
    download_myo(tmp_path / "myo", url=url, commit=commit, progress=lambda what, *_: said.append(what))
    left_out = [line for line in said if "left out" in line]
    assert [line.split()[0] for line in left_out] == [f"PreTrainingDataset/Female{i}" for i in (7, 8, 9)]
    assert "28 of its 28 recordings are copies of eval_F0's training0" in left_out[0]
    notice = (tmp_path / "myo" / "LICENCE.txt").read_text()
    assert MYO_NOTICE in notice
    assert "Female9" in notice


def test_a_failed_download_is_a_sentence_and_leaves_nothing(repository, tmp_path):
    url, _ = repository
    with pytest.raises(DownloadError, match="git fetch failed"):
        download_myo(tmp_path / "myo", url=url, commit="0" * 40)
    with pytest.raises(DownloadError, match=r"git fetch failed"):
        download_myo(tmp_path / "myo", url=(tmp_path / "nowhere").as_uri(), commit=MYO_COMMIT)
    with pytest.raises(DownloadError, match=r"cannot be reached from here.*headway data synth"):
        download_myo(tmp_path / "myo", url="http://127.0.0.1:9/x")
    assert list(tmp_path.iterdir()) == []


def test_without_git_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DownloadError, match="git, which is not installed"):
        download_myo(tmp_path / "myo")


def test_a_folder_that_is_there_is_not_touched(tmp_path, repository):
    (tmp_path / "myo").mkdir()
    (tmp_path / "myo" / "mine.txt").write_text("mine")
    with pytest.raises(RecordingsError, match="there already"):
        download_myo(tmp_path / "myo", url=repository[0], commit=repository[1])
    assert (tmp_path / "myo" / "mine.txt").read_text() == "mine"


def test_a_tree_of_another_layout_is_refused(tmp_path):
    (tmp_path / "tree").mkdir()
    with pytest.raises(DownloadError, match="no folder PreTrainingDataset"):
        convert_myo(tmp_path / "tree", tmp_path / "out")
    write_session(tmp_path / "tree/PreTrainingDataset/Male0/training0", [np.zeros((0, 8))])
    (tmp_path / "tree/EvaluationDataset").mkdir()
    with pytest.raises(DownloadError, match=r"classe_0\.dat is empty"):
        convert_myo(tmp_path / "tree", tmp_path / "out")
    (tmp_path / "tree/PreTrainingDataset/Male0/training0/classe_0.dat").unlink()
    with pytest.raises(DownloadError, match="holds no recordings"):
        convert_myo(tmp_path / "tree", tmp_path / "out")


@pytest.mark.skipif(not MYO.is_dir(), reason="the Myo recordings are not in ../shared/data/myo")
def test_converting_gives_the_compact_copy_array_for_array(tmp_path):
    folders = {"pretrain": "PreTrainingDataset", "eval": "EvaluationDataset"}
    stems = ["pretrain_F2", "pretrain_M11", "eval_F0", "eval_M15"]
    for stem in stems:
        group, person = stem.split("_")
        rec = load(MYO / f"{stem}.npz")
        name = {"F": "Female", "M": "Male"}[person[0]] + person[1:]
        for index, part in enumerate(rec.session_names):
            chosen = np.flatnonzero(rec.session == index)
            signals = [rec.signal[rec.start[i] : rec.stop[i]] for i in chosen]
            write_session(tmp_path / "tree" / folders[group] / name / part, signals)
    convert_myo(tmp_path / "tree", tmp_path / "out")
    for stem in stems:
        assert load(tmp_path / "out" / f"{stem}.npz").digest == load(MYO / f"{stem}.npz").digest
