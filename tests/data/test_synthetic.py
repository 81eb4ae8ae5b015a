import numpy as np
import pytest

from models.data.recordings import RecordingsError, load_folder
from models.data.splits import assert_disjoint
from models.data.synthetic import Design, SyntheticError, synthesise, write_folder
from models.data.windows import WindowSpec, windows


def features(cut):
    return np.log(cut.x.var(axis=2) + 1)


def class_means(x, y, labels):
    return np.stack([x[y == label].mean(axis=0) for label in range(labels)])


def accuracy(means, x, y):
    return float((((x[:, None] - means[None]) ** 2).sum(axis=2).argmin(axis=1) == y).mean())


def own_and_population(people, spec, labels):
    """Nearest class mean on the second session: with the person's own first session, and with the others'."""
    first = [windows(rec, spec, sessions=["session0"]) for rec in people]
    second = [windows(rec, spec, sessions=["session1"]) for rec in people]
    means = np.stack([class_means(features(cut), cut.y, labels) for cut in first])
    own = [accuracy(means[i], features(cut), cut.y) for i, cut in enumerate(second)]
    shared = [accuracy(np.delete(means, i, axis=0).mean(axis=0), features(cut), cut.y) for i, cut in enumerate(second)]
    return np.mean(own), np.mean(shared)


def test_the_correlation_knob_turns_what_a_person_gains_from_others():
    spec = WindowSpec(52, 26)
    told = [
        own_and_population(synthesise(8, correlation=c, rotation=0, repetitions=2, seconds=2, seed=0), spec, 7)
        for c in (0.0, 0.5, 0.75, 0.9, 1.0)
    ]
    own, shared = zip(*told, strict=True)
    assert list(shared) == sorted(shared)
    assert min(np.diff(shared)) > 0.05
    assert shared[0] < 0.4
    assert shared[-1] > 0.9
    assert min(own) > 0.93


def test_rotation_makes_others_less_use():
    spec = WindowSpec(52, 26)
    straight, turned = (
        own_and_population(synthesise(6, correlation=1, rotation=r, repetitions=2, seconds=2, seed=0), spec, 7)
        for r in (0.0, 1.5)
    )
    assert straight[1] - turned[1] > 0.05
    assert turned[0] > 0.9


def test_a_person_depends_on_seed_and_number_alone():
    three, five = synthesise(3, seconds=1), synthesise(5, seconds=1)
    assert [rec.digest for rec in three] == [rec.digest for rec in five[:3]]
    assert three[0].digest != synthesise(1, seconds=1, seed=1)[0].digest
    assert_disjoint(three, five[3:])


@pytest.mark.parametrize(("channels", "fs", "labels"), [(8, 200.0, 7), (10, 1000.0, 11), (1, 100.0, 2)])
def test_the_signal_looks_like_an_armband(channels, fs, labels):
    rec = synthesise(1, channels=channels, fs=fs, labels=labels, repetitions=3, seconds=2)[0]
    assert rec.signal.dtype == np.int16
    assert rec.signal.min() >= -128
    assert rec.signal.max() <= 127
    assert rec.signal.shape == (round(2 * fs) * labels * 3 * 2, channels)
    assert (len(rec), len(rec.label_names), rec.label_names[0], rec.fs) == (labels * 6, labels, "rest", fs)
    assert np.unique(rec.repetition).tolist() == [0, 1, 2]
    assert rec.session_names == ("session0", "session1")
    strength = [float(rec.signal[a:b].astype(float).std()) for a, b in zip(rec.start, rec.stop, strict=True)]
    rest = np.array(strength)[rec.label == 0]
    assert rest.max() < 6
    assert np.median(np.array(strength)[rec.label > 0]) > 1.5 * np.median(rest)  # one electrode sees few muscles


def test_the_signal_fills_the_band_of_emg_and_hums_when_asked():
    def spectrum(rec):
        chosen = np.flatnonzero(rec.label > 0)
        parts = np.stack([rec.signal[rec.start[i] : rec.stop[i], 0] for i in chosen]).astype(float)
        return np.fft.rfftfreq(parts.shape[1], 1 / rec.fs), (np.abs(np.fft.rfft(parts, axis=1)) ** 2).mean(axis=0)

    frequency, power = spectrum(synthesise(1, fs=1000, noise=0, seconds=2)[0])
    inside = power[(frequency > 25) & (frequency < 400)].sum()
    assert inside / power[1:].sum() > 0.9
    frequency, power = spectrum(synthesise(1, fs=1000, noise=0, seconds=2, mains=20)[0])
    assert frequency[power.argmax()] == 50.0


def test_a_folder_of_people_is_written_whole(tmp_path):
    said = []
    paths = write_folder(
        tmp_path / "synth", 11, Design(seconds=0.5, repetitions=1), progress=lambda *args: said.append(args)
    )
    people = load_folder(tmp_path / "synth")
    assert [rec.stem for rec in people] == [f"synth_{i}" for i in range(11)] == [path.stem for path in paths]
    assert said[0] == ("synth_0", 1, 11)
    assert said[-1] == ("synth_10", 11, 11)
    assert people[2].digest == synthesise(3, seconds=0.5, repetitions=1)[2].digest
    with pytest.raises(RecordingsError, match="there already"):
        write_folder(tmp_path / "synth", 1)
    with pytest.raises(SyntheticError):
        write_folder(tmp_path / "none", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["synth"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"correlation": 1.1},
        {"correlation": -0.1},
        {"channels": 0},
        {"labels": 1},
        {"fs": 50},
        {"seconds": 0.1},
        {"seconds": float("nan")},
        {"noise": -1},
        {"rotation": -1},
        {"repetitions": 0},
        {"sessions": 0},
        {"seed": -1},
    ],
)
def test_impossible_people_are_refused(wrong):
    with pytest.raises(SyntheticError, match=next(iter(wrong))):
        synthesise(1, **wrong)
