import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.recordings import Recordings
from models.data.windows import WindowError, Windows, WindowSpec, first_windows, shared_samples, windows


def build(lengths, labels, repetitions, sessions=None, gap=0):
    """Recordings whose sample i holds the value i in channel 0, so that a window shows where it was cut."""
    stop = np.cumsum([length + gap for length in lengths]) - gap
    signal = np.stack([np.arange(stop[-1]), -np.arange(stop[-1])], axis=1).astype(np.float32)
    sessions = [0] * len(lengths) if sessions is None else sessions
    return Recordings.build(
        signal,
        stop - lengths,
        stop,
        labels,
        repetitions,
        label_names=[f"g{i}" for i in range(max(labels) + 1)],
        fs=200.0,
        subject="p",
        session=sessions,
        session_names=[f"s{i}" for i in range(max(sessions) + 1)],
    )


def test_the_usual_windows_of_a_modality():
    assert WindowSpec.for_signal(200, "emg") == WindowSpec(52, 5)
    assert WindowSpec.for_signal(1000.0) == WindowSpec(260, 25)
    assert WindowSpec.for_signal(50, "imu") == WindowSpec(100, 25)
    with pytest.raises(WindowError, match="emg, imu"):
        WindowSpec.for_signal(200, "eeg")
    for bad in ((0, 1), (1, 0)):
        with pytest.raises(WindowError, match="at least 1 sample"):
            WindowSpec(*bad)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    length=st.integers(1, 20),
    stride=st.integers(1, 9),
    gap=st.integers(0, 3),
)
def test_windows_are_all_there_and_cross_no_border(lengths, length, stride, gap):
    rec = build(lengths, [i % 3 for i in range(len(lengths))], [i // 3 for i in range(len(lengths))], gap=gap)
    cut = windows(rec, WindowSpec(length, stride))
    wanted = [
        (i, begin) for i in range(len(rec)) for begin in range(int(rec.start[i]), int(rec.stop[i]) - length + 1, stride)
    ]
    assert list(zip(cut.recording.tolist(), cut.start.tolist(), strict=True)) == wanted
    assert cut.x.shape == (len(wanted), 2, length)
    assert cut.x.dtype == np.float32
    assert np.array_equal(cut.x[:, 0], cut.start[:, None] + np.arange(length)[None, :])
    assert np.array_equal(cut.y, rec.label[cut.recording])
    assert np.array_equal(cut.repetition, rec.repetition[cut.recording])
    assert np.array_equal(cut.session, rec.session[cut.recording])


def test_recordings_are_taken_in_time_order_whatever_their_order_in_the_file():
    rec = build([10, 10], [0, 1], [0, 0])
    swapped = Recordings.build(
        rec.signal, [10, 0], [20, 10], [1, 0], [0, 0], label_names=rec.label_names, fs=200, subject="p"
    )
    cut = windows(swapped, WindowSpec(5, 5))
    assert cut.start.tolist() == [0, 5, 10, 15]
    assert cut.y.tolist() == [0, 0, 1, 1]
    assert cut.recording.tolist() == [1, 1, 0, 0]


def test_sessions_and_repetitions_are_chosen():
    rec = build([10] * 8, [0, 1] * 4, [0, 0, 1, 1] * 2, [0] * 4 + [1] * 4)
    spec = WindowSpec(10, 1)
    assert windows(rec, spec).recording.tolist() == list(range(8))
    assert windows(rec, spec, sessions=["s1"]).recording.tolist() == [4, 5, 6, 7]
    assert windows(rec, spec, repetitions=range(1, 2)).recording.tolist() == [2, 3, 6, 7]
    assert windows(rec, spec, sessions={"s0"}, repetitions={0}).recording.tolist() == [0, 1]
    none = windows(rec, spec, sessions=[])
    assert none.x.shape == (0, 2, 10)
    assert len(none) == 0
    with pytest.raises(WindowError, match="no session 'friday'; it has s0, s1"):
        windows(rec, spec, sessions=["friday"])


def test_recordings_shorter_than_a_window_give_none():
    assert len(windows(build([4, 4], [0, 1], [0, 0]), WindowSpec(5, 1))) == 0
    assert len(windows(build([4], [0], [0]), WindowSpec(50, 1))) == 0


def test_first_windows_follow_the_middle_of_each_class_first_recording():
    rec = build([100] * 6, [0, 1, 2] * 2, [0] * 3 + [1] * 3)
    few = first_windows(rec, WindowSpec(10, 4), 3)
    assert few.y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert few.start.tolist() == [52, 56, 60, 152, 156, 160, 252, 256, 260]
    assert set(few.repetition.tolist()) == {0}
    every = windows(rec, WindowSpec(10, 4))
    assert set(few.start.tolist()) <= set(every.start.tolist())


def test_first_windows_move_forward_where_the_second_half_is_too_short():
    rec = build([30, 30], [0, 1], [0, 0])
    assert first_windows(rec, WindowSpec(10, 5), 3).start.tolist() == [10, 15, 20, 40, 45, 50]
    with pytest.raises(WindowError, match="'g0' holds 5 windows of 10 samples; 6 were asked for"):
        first_windows(rec, WindowSpec(10, 5), 6)
    with pytest.raises(WindowError, match="At least 1 window"):
        first_windows(rec, WindowSpec(10, 5), 0)


def test_first_windows_stay_in_one_session():
    rec = build([40] * 4, [0, 1, 0, 1], [0] * 4, [0, 0, 1, 1])
    assert set(first_windows(rec, WindowSpec(10, 5), 2).session.tolist()) == {0}
    assert set(first_windows(rec, WindowSpec(10, 5), 2, session="s1").session.tolist()) == {1}
    with pytest.raises(WindowError, match="no session"):
        first_windows(rec, WindowSpec(10, 5), 2, session="s9")


def test_select_and_concat():
    cut = windows(build([20, 20], [0, 1], [0, 0]), WindowSpec(10, 5))
    back = Windows.concat([cut.select(cut.y == 0), cut.select(np.flatnonzero(cut.y == 1)), cut.select(slice(0, 0))])
    for field in ("x", "y", "repetition", "session", "recording", "start"):
        assert np.array_equal(getattr(back, field), getattr(cut, field))
    with pytest.raises(WindowError, match="empty"):
        Windows.concat([])
    with pytest.raises(WindowError, match="one shape"):
        Windows.concat([cut, windows(build([20], [0], [0]), WindowSpec(9, 5))])


@pytest.mark.parametrize(("stride", "shared"), [(1, 19), (5, 3), (7, 2), (10, 1), (19, 1), (20, 0), (25, 0)])
def test_shared_samples_are_told_from_the_windows(stride, shared):
    signal = np.random.default_rng(0).standard_normal((3, 200)).astype(np.float32)
    x = np.stack([signal[:, at : at + 20] for at in range(0, 180, stride)])
    assert shared_samples(x) == shared
    assert shared_samples(x[:1]) == 0
    assert shared_samples(np.zeros((4, 3, 20), np.float32)) == 0
