import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data import splits
from models.data.recordings import Recordings, load_folder
from models.data.splits import LeakageError, SplitError, assert_disjoint, folds, split_repetitions, split_subjects
from models.data.windows import Windows, WindowSpec, windows

MYO = Path(__file__).parents[2] / ".." / "shared" / "data" / "myo"


def person(name, seed=None, sessions=1, repetitions=2, length=30, dtype=np.int16):
    seed = sum(map(ord, name)) if seed is None else seed
    count = sessions * repetitions * 2
    index = np.arange(count)
    return Recordings.build(
        np.random.default_rng(seed).integers(-100, 100, (count * length, 4)).astype(dtype),
        index * length,
        (index + 1) * length,
        index % 2,
        index // 2 % repetitions,
        session=index // 2 // repetitions,
        session_names=[f"s{i}" for i in range(sessions)],
        label_names=["rest", "fist"],
        fs=100.0,
        subject=name,
    )


def copied_session(source, session, name, dtype=np.float32):
    """One session of a person as a file of its own: other name, offsets, cycles, labels and type, same samples."""
    chosen = np.flatnonzero(source.session == session)
    filler = np.ones((7, source.channels))
    pieces = [np.concatenate([filler, source.signal[source.start[i] : source.stop[i]]]) for i in chosen]
    stop = np.cumsum([len(piece) for piece in pieces])
    lengths = [len(piece) - 7 for piece in pieces]
    return Recordings.build(
        np.concatenate(pieces).astype(dtype),
        stop - lengths,
        stop,
        np.zeros(len(chosen), int),
        np.arange(len(chosen)),
        label_names=["anything"],
        fs=source.fs,
        subject=name,
    )


def test_the_female7_trap_is_refused():
    female0 = person("eval_F0", sessions=3)
    honest = [person("pretrain_F0"), person("pretrain_F6")]
    assert_disjoint(honest, [female0])
    for number, session in ((7, 0), (8, 1), (9, 2)):
        trap = copied_session(female0, session, f"pretrain_F{number}")
        assert trap.digest != female0.digest
        with pytest.raises(LeakageError, match=rf"pretrain_F{number} and eval_F0 share the samples"):
            assert_disjoint([*honest, trap], [female0])
        with pytest.raises(LeakageError, match=f"pretrain_F{number}"):
            split_subjects([*honest, trap, female0], 1, seed=0)
        with pytest.raises(LeakageError, match=f"pretrain_F{number}"):
            folds([*honest, trap, female0], 2, seed=0)


def test_one_shared_recording_is_enough():
    a = person("a")
    b = person("b")
    signal = b.signal.copy()
    signal[b.start[2] : b.stop[2]] = a.signal[a.start[1] : a.stop[1]]
    mixed = Recordings.build(
        signal, b.start, b.stop, b.label, b.repetition, label_names=b.label_names, fs=b.fs, subject="b"
    )
    with pytest.raises(LeakageError, match="a and b share the samples of recording 2 of the latter"):
        assert_disjoint([a], [mixed])


def test_the_same_file_stem_or_subject_on_both_sides_is_refused():
    a = person("a", seed=1)
    for other, told in (
        (replace(a, stem="b", subject="b"), "the same content"),
        (replace(person("b", seed=2), stem="a"), "the same stem"),
        (replace(person("a", seed=3), stem="a_again"), "the same subject"),
    ):
        with pytest.raises(LeakageError, match=told) as caught:
            assert_disjoint([a], [other])
        assert str(caught.value).startswith(f"a and {other.stem} ")


def test_silence_is_not_a_copy():
    def silent(name):
        return Recordings.build(
            np.zeros((20, 2), np.int16), [0], [20], [0], [0], label_names=["rest"], fs=100, subject=name
        )

    assert_disjoint([silent("a")], [silent("b")])


@settings(max_examples=25, deadline=None)
@given(count=st.integers(3, 9), seed=st.integers(0, 99), data=st.data())
def test_people_are_never_on_both_sides(count, seed, data):
    people = [person(f"p{i}", length=4) for i in range(count)]
    people.append(replace(person("second file", length=4), subject="p0"))
    held = data.draw(st.integers(1, count - 1))
    train, test = split_subjects(people, held, seed)
    assert len({rec.subject for rec in test}) == held
    assert sorted(rec.stem for rec in train + test) == sorted(rec.stem for rec in people)
    assert not {rec.subject for rec in train} & {rec.subject for rec in test}
    assert [rec.stem for rec in split_subjects(people, held, seed)[1]] == [rec.stem for rec in test]
    k = data.draw(st.integers(2, count))
    parts = folds(people, k, seed)
    assert len(parts) == k
    assert sorted(rec.stem for _, held_out in parts for rec in held_out) == sorted(rec.stem for rec in people)
    for rest, held_out in parts:
        assert len(rest) + len(held_out) == len(people)
        assert not {rec.subject for rec in rest} & {rec.subject for rec in held_out}


def test_a_share_of_the_people_is_held_out():
    people = [person(f"p{i}") for i in range(10)]
    assert len(split_subjects(people, 0.3, 0)[1]) == 3
    assert len(split_subjects(people, 0.01, 0)[1]) == 1
    chosen = {tuple(rec.stem for rec in split_subjects(people, 0.3, seed)[1]) for seed in range(10)}
    assert len(chosen) > 1


def test_impossible_splits_are_sentences():
    people = [person("a"), person("b")]
    for held_out in (0, 2, 0.0, 1.0, -1):
        with pytest.raises(SplitError):
            split_subjects(people, held_out, 0)
    for k in (1, 3):
        with pytest.raises(SplitError, match="2 to 2 folds"):
            folds(people, k, 0)


@settings(max_examples=40, deadline=None)
@given(
    sessions=st.integers(1, 3),
    repetitions=st.integers(1, 4),
    calibrate=st.integers(1, 4),
    length=st.integers(2, 20),
    stride=st.integers(1, 7),
)
def test_repetitions_are_split_with_no_sample_on_both_sides(sessions, repetitions, calibrate, length, stride):
    rec = person("p", sessions=sessions, repetitions=repetitions)
    cut = windows(rec, WindowSpec(length, stride))
    if calibrate > repetitions or (sessions == 1 and calibrate == repetitions):
        with pytest.raises(SplitError):
            split_repetitions(cut, calibrate)
        return
    mine, rest = split_repetitions(cut, calibrate)
    assert len(mine) + len(rest) == len(cut)
    assert set(mine.session.tolist()) == {0}
    assert set(mine.repetition.tolist()) == set(range(calibrate))
    assert not ((rest.session == 0) & (rest.repetition < calibrate)).any()

    def samples(part):
        return {int(start) + i for start in part.start for i in range(length)}

    assert not samples(mine) & samples(rest)


def test_overlapping_recordings_and_joined_subjects_are_refused():
    signal = np.random.default_rng(0).normal(size=(60, 2))
    overlap = Recordings.build(signal, [0, 25], [30, 60], [0, 0], [0, 1], label_names=["x"], fs=100, subject="p")
    with pytest.raises(LeakageError, match="share samples near 25"):
        split_repetitions(windows(overlap, WindowSpec(10, 5)), 1)
    spec = WindowSpec(10, 5)
    two = Windows.concat([windows(person("a"), spec), windows(person("b", repetitions=3), spec)])
    shifted = replace(two, repetition=np.where(np.arange(len(two)) < len(two) // 2, two.repetition, two.repetition + 1))
    with pytest.raises(LeakageError, match="several subjects"):
        split_repetitions(shifted, 1)


def test_a_random_split_of_windows_is_not_offered():
    # The only function that takes windows has no seed and no share: it follows repetitions.
    takes_windows = [
        name
        for name in splits.__all__
        if inspect.isfunction(getattr(splits, name)) and "Windows" in str(inspect.signature(getattr(splits, name)))
    ]
    assert takes_windows == ["split_repetitions"]
    assert list(inspect.signature(split_repetitions).parameters) == ["windows", "calibrate"]
    with pytest.raises(TypeError):
        split_repetitions(windows(person("a"), WindowSpec(10, 5)), 1, seed=0)


@pytest.mark.skipif(not MYO.is_dir(), reason="the Myo recordings are not in ../shared/data/myo")
def test_the_trap_is_found_in_the_real_recordings():
    population = load_folder(MYO, "pretrain_*")
    evaluation = load_folder(MYO, "eval_*")
    assert_disjoint(population, evaluation)
    trap = copied_session(evaluation[0], 1, "pretrain_F8")
    with pytest.raises(LeakageError, match="pretrain_F8 and eval_F0 share the samples"):
        assert_disjoint([*population, trap], evaluation)
