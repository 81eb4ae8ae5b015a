from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.describe import describe
from models.data.recordings import Recordings, RecordingsError, load, load_folder, save

MYO = Path(__file__).parents[2] / ".." / "shared" / "data" / "myo"


def arrays(**changes):
    """A well-formed file's arrays: 2 labels × 2 repetitions of 10 samples, 3 channels; None drops a key."""
    rng = np.random.default_rng(0)
    made = {
        "emg": rng.integers(-100, 100, (40, 3)).astype(np.int16),
        "start": np.arange(0, 40, 10),
        "stop": np.arange(10, 50, 10),
        "gesture": np.array([0, 1, 0, 1]),
        "cycle": np.array([0, 0, 1, 1]),
        "session": np.zeros(4, int),
        "session_names": np.array(["monday"]),
        "gesture_names": np.array(["rest", "fist"]),
        "fs": 500.0,
        "subject": "anna",
    }
    made.update(changes)
    return {key: value for key, value in made.items() if value is not None}


def write(path, **changes):
    np.savez(path, **arrays(**changes))
    return path


def recordings(subject="anna", seed=0, labels=("rest", "fist"), **changes):
    signal = np.random.default_rng(seed).integers(-100, 100, (40, 3)).astype(np.int16)
    options = {"label_names": labels, "fs": 500.0, "subject": subject, **changes}
    return Recordings.build(signal, np.arange(0, 40, 10), np.arange(10, 50, 10), [0, 1, 0, 1], [0, 0, 1, 1], **options)


def same(a, b):
    fields = ("signal", "start", "stop", "label", "repetition", "session")
    assert all(np.array_equal(getattr(a, f), getattr(b, f)) for f in fields)
    assert a.signal.dtype == b.signal.dtype
    words = ("session_names", "label_names", "fs", "subject", "modality", "in_paper", "digest")
    assert [getattr(a, f) for f in words] == [getattr(b, f) for f in words]


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from(["int8", "int16", "float32"]),
    channels=st.integers(1, 12),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    fs=st.floats(0.5, 4000.0),
    modality=st.sampled_from(["emg", "imu"]),
    in_paper=st.booleans(),
    name=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8),
)
def test_what_is_saved_is_loaded(tmp_path_factory, dtype, channels, lengths, fs, modality, in_paper, name):
    rng = np.random.default_rng(1)
    stop = np.cumsum(lengths)
    rec = Recordings.build(
        rng.integers(-128, 127, (stop[-1], channels)).astype(dtype),
        stop - lengths,
        stop,
        np.arange(len(lengths)) % 2,
        np.arange(len(lengths)) // 2,
        label_names=[name, name + "x"],
        fs=fs,
        subject=name,
        modality=modality,
        in_paper=in_paper,
    )
    path = tmp_path_factory.mktemp("saved") / "p1.npz"
    save(path, rec)
    loaded = load(path)
    same(loaded, rec)
    assert loaded.stem == "p1"
    assert (loaded.channels, len(loaded)) == (channels, len(lengths))
    assert [p.name for p in path.parent.iterdir()] == ["p1.npz"]


def test_any_width_of_integers_and_absent_optional_keys(tmp_path):
    narrow = {key: np.asarray(arrays()[key], np.uint8) for key in ("start", "stop", "gesture", "cycle")}
    rec = load(write(tmp_path / "p.npz", **narrow, session=None, session_names=None, subject=None, fs=np.int16(500)))
    assert rec.label.dtype == rec.start.dtype == np.int64
    assert (rec.session_names, rec.subject, rec.modality, rec.in_paper) == (("session0",), "p", "emg", True)
    assert rec.fs == 500.0
    assert isinstance(rec.fs, float)


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        ("int8", "int8"),
        ("uint8", "int16"),
        ("int16", "int16"),
        ("int32", "float32"),
        ("float32", "float32"),
        ("float64", "float32"),
        (">i2", "int16"),
        (">f4", "float32"),
    ],
)
def test_the_signal_keeps_its_type_or_becomes_float32(tmp_path, stored, kept):
    values = np.arange(120).reshape(40, 3)
    rec = load(write(tmp_path / "p.npz", emg=values.astype(stored)))
    assert rec.signal.dtype == np.dtype(kept)
    assert np.array_equal(rec.signal, values)


def test_the_digest_is_of_the_content_and_not_of_the_file(tmp_path):
    plain = load(write(tmp_path / "p.npz"))
    np.savez_compressed(
        tmp_path / "q.npz", **{k: v.astype(np.int8) if k == "cycle" else v for k, v in arrays().items()}
    )
    assert load(tmp_path / "q.npz").digest == plain.digest
    changed = arrays()["emg"].copy()
    changed[7, 1] += 1
    others = [{"emg": changed}, {"cycle": np.array([0, 1, 1, 1])}, {"fs": 501.0}, {"gesture_names": ["rest", "open"]}]
    digests = {load(write(tmp_path / "r.npz", **other)).digest for other in others}
    assert len(digests | {plain.digest}) == 5


def test_what_is_loaded_cannot_be_written_to(tmp_path):
    rec = load(write(tmp_path / "p.npz"))
    with pytest.raises(ValueError, match="read-only"):
        rec.signal[0, 0] = 1
    mine = np.zeros((20, 2), np.float32)
    Recordings.build(mine, [0], [20], [0], [0], label_names=["rest"], fs=100, subject="x")
    mine[0] = 1  # the caller's own array stays writable


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"emg": None}, "lacks emg"),
        ({"gesture_names": None, "fs": None}, "lacks gesture_names, fs"),
        ({"emg": np.zeros(40)}, r"\(samples, channels\)"),
        ({"emg": np.zeros((40, 0))}, "not empty"),
        ({"emg": np.zeros((40, 3), complex)}, "integers or floats"),
        ({"emg": np.full((40, 3), np.nan)}, "finite"),
        ({"emg": np.full((40, 3), 1e300)}, "finite"),
        ({"start": np.array([0, 10, 20])}, "start 3, stop 4"),
        ({"start": np.array([0, 10, 20, 40])}, "recording 3 runs from 40 to 40"),
        ({"start": np.array([-1, 10, 20, 30])}, "recording 0 runs from -1"),
        ({"stop": np.array([10, 20, 30, 41])}, "within 0 to 40"),
        ({"stop": np.array([10.0, 20, 30, 40])}, "row of integers"),
        ({"gesture": np.array([0, 1, 2, 1])}, "recording 2 has gesture 2"),
        ({"gesture": np.array([0, 1, -1, 1])}, "recording 2 has gesture -1"),
        ({"session": np.array([0, 0, 0, 1])}, "recording 3 has session 1"),
        ({"cycle": np.array([0, 0, -1, 1])}, "cycle counts"),
        ({"gesture_names": np.array(["rest", "rest"])}, "must differ"),
        ({"gesture_names": np.array([1, 2])}, "row of names"),
        ({"fs": 0.0}, "above 0 Hz"),
        ({"fs": np.nan}, "above 0 Hz"),
        ({"fs": np.array([200, 200])}, "one value"),
        ({"fs": "fast"}, "above 0 Hz"),
        ({"modality": "eeg"}, "emg, imu"),
        ({key: np.zeros(0, int) for key in ("start", "stop", "gesture", "cycle", "session")}, "one entry"),
    ],
)
def test_a_malformed_file_is_a_sentence_naming_it(tmp_path, changes, sentence):
    path = write(tmp_path / "bad.npz", **changes)
    with pytest.raises(RecordingsError, match=sentence) as caught:
        load(path)
    assert "bad.npz" in str(caught.value)


def test_what_is_no_archive_is_a_sentence(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    with (tmp_path / "bare.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    np.savez(tmp_path / "pickle.npz", **arrays(gesture_names=np.array(["rest", None], object)))
    whole = write(tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.npz").write_bytes(whole.replace(whole[200:210], bytes(10)))
    for stem in ("text", "empty", "bare", "pickle", "cut", "flipped", "absent"):
        with pytest.raises(RecordingsError, match=stem):
            load(tmp_path / f"{stem}.npz")


@settings(max_examples=150, deadline=None)
@given(where=st.floats(0, 0.9999), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_file_is_a_sentence_or_reads_whole(tmp_path_factory, where, byte, cut):
    path = write(tmp_path_factory.getbasetemp() / "damaged.npz")
    content = bytearray(path.read_bytes())
    at = int(where * len(content))
    content[at] = byte
    path.write_bytes(content[:at] if cut else content)
    try:
        load(path)
    except RecordingsError as error:
        assert "damaged.npz" in str(error)


def test_saving_over_a_file_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "new" / "p.npz"
    save(path, recordings(seed=1))
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="no space"):
        save(path, recordings(seed=2))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(RecordingsError, match=r"\.npz"):
        save(tmp_path / "p.mat", recordings())


@pytest.fixture
def folder(tmp_path):
    for i, stem in enumerate(["eval_M10", "eval_M2", "eval_F0", "pretrain_M1"]):
        save(tmp_path / f"{stem}.npz", recordings(stem, seed=i))
    return tmp_path


@pytest.mark.parametrize(
    ("subjects", "stems"),
    [
        ("*", ["eval_F0", "eval_M2", "eval_M10", "pretrain_M1"]),
        ("eval_*,!eval_M2", ["eval_F0", "eval_M10"]),
        ("!eval_*", ["pretrain_M1"]),
        (" pretrain_* , eval_F0 ", ["eval_F0", "pretrain_M1"]),
        ("eval_M?", ["eval_M2"]),
    ],
)
def test_subjects_are_chosen_by_globs_in_natural_order(folder, subjects, stems):
    assert [rec.stem for rec in load_folder(folder, subjects)] == stems


def test_a_choice_of_nothing_says_what_is_there(folder, tmp_path):
    for subjects in ("nobody", "eval_*,nobody", "*,!*"):
        with pytest.raises(RecordingsError, match="eval_F0, eval_M2, eval_M10, pretrain_M1"):
            load_folder(folder, subjects)
    with pytest.raises(RecordingsError, match="no folder"):
        load_folder(tmp_path / "nowhere")
    (tmp_path / "void").mkdir()
    with pytest.raises(RecordingsError, match=r"no \.npz file"):
        load_folder(tmp_path / "void")


def test_labels_are_reconciled_by_name(folder):
    save(folder / "zoe.npz", recordings("zoe", labels=("fist", "rest")))
    first, zoe = load_folder(folder, "eval_F0,zoe")
    assert zoe.label_names == first.label_names == ("rest", "fist")
    assert zoe.label.tolist() == [1, 0, 1, 0]
    assert zoe.digest == load(folder / "zoe.npz").digest


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (recordings("zoe", labels=("rest", "pinch")), "zoe has labels that eval_F0 does not name: pinch"),
        (recordings("zoe", fs=200), "eval_F0 has Hz 500, zoe has 200"),
        (recordings("zoe", modality="imu"), "eval_F0 has modality emg, zoe has imu"),
    ],
)
def test_files_that_do_not_go_together_are_refused(folder, other, sentence):
    save(folder / "zoe.npz", other)
    with pytest.raises(RecordingsError, match=sentence):
        load_folder(folder)
    assert len(load_folder(folder, "*,!zoe")) == 4


def test_describe_goes_on_where_loading_would_stop(folder):
    write(folder / "a_broken.npz", fs=-1)
    copy = recordings("copy", seed=0)  # eval_M10's samples under another name
    save(folder / "x_copy.npz", copy)
    write(folder / "x_odd.npz", emg=np.zeros((40, 3)), start=np.array([0, 5, 20, 30]), gesture=np.array([0, 0, 0, 0]))
    told = {row["file"]: row for row in describe(folder)}
    assert next(iter(told)) == "a_broken.npz"
    assert told["a_broken.npz"]["problems"][0].count("above 0 Hz") == 1
    good = told["eval_F0.npz"]
    assert (good["channels"], good["fs"], good["labels"], good["sessions"]) == (
        3,
        500.0,
        ["rest", "fist"],
        ["session0"],
    )
    assert (good["repetitions"], good["recordings"], good["seconds"]) == (2, 4, 0.08)
    # These toy recordings are shorter than 260 ms, which is a problem worth saying; no other.
    assert [p for p in good["problems"] if "shorter than one window" not in p] == []
    assert any("4 recordings are copies of eval_M10" in p for p in told["x_copy.npz"]["problems"])
    odd = " ".join(told["x_odd.npz"]["problems"])
    for sentence in ("never change: 0, 1, 2", "recording 1 shares samples", "session monday has no recording of: fist"):
        assert sentence in odd


@pytest.mark.skipif(not MYO.is_dir(), reason="the Myo recordings are not in ../shared/data/myo")
def test_the_real_recordings_load():
    recs = load_folder(MYO, "*,!onesubject")
    assert len(recs) == 37
    assert [rec.stem for rec in recs[:4]] == ["eval_F0", "eval_F1", "eval_M0", "eval_M1"]
    assert sum(rec.in_paper for rec in recs) == 36
    assert {(rec.channels, rec.fs, len(rec.label_names), rec.signal.dtype.name) for rec in recs} == {
        (8, 200.0, 7, "int8")
    }
    assert [row["file"] for row in describe(MYO) if row["problems"]] == ["onesubject.npz"]
