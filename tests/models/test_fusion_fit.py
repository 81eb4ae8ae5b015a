"""Fusing runs on paired recordings of other rates: who is judged by what, pairing in time, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from exporters import bundle as bundles
from exporters.export import export_run, onnx_forward
from exporters.fuse import fit, fuse_recordings
from exporters.fusion import Member, write_fused
from exporters.input_spec import InputSpec
from models.data.paired import pair
from models.data.parts import fused_input, pack
from models.data.recordings import Recordings, RecordingsError, load_folder, save
from models.evaluation.personaliser import LocalPersonaliser
from models.evaluation.protocols import plan
from models.evaluation.run import GENERIC, PERSONAL, ZERO_SHOT, evaluate
from models.evaluation.tracks import evaluate_track
from models.training import TrainConfig, train
from models.training.config import TrainingError
from models.training.fusion import fit_fusion
from models.training.fusion_sources import Joined
from models.training.joining import patterns
from service.commands.conversion import run_conversion

LABELS = ("rest", "shake", "turn")
RATES = {"emg": 200.0, "imu": 50.0}


def person(name: str, number: int, kind: str, seconds: float = 3.5, repetitions: int = 2) -> Recordings:
    """Noise whose strength by channel tells the label: `emg` tells shake from the rest, `imu` turn."""
    rng = np.random.default_rng([number, kind == "imu"])
    fs, told = RATES[kind], {"emg": 1, "imu": 2}[kind]
    strength = np.ones((len(LABELS), 3))
    strength[told] = (3.0, 1.5, 0.6)
    strength = strength * np.exp(0.1 * rng.normal(size=(1, 3)))
    length = round(seconds * fs)
    parts = [rng.normal(size=(length, 3)) * strength[label] for _ in range(repetitions) for label in range(len(LABELS))]
    starts = np.arange(len(parts)) * length
    return Recordings.build(
        np.concatenate(parts).astype(np.float32),
        starts,
        starts + length,
        np.tile(np.arange(len(LABELS)), repetitions),
        np.repeat(np.arange(repetitions), len(LABELS)),
        label_names=LABELS,
        fs=fs,
        subject=name,
        modality=kind,
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Folders `emg` and `imu` of five people, and a run of each."""
    folder = tmp_path_factory.mktemp("fusion")
    for kind in RATES:
        recordings = [person(f"p{i}", i, kind) for i in range(5)]
        for rec in recordings:
            save(folder / kind / f"{rec.subject}.npz", rec)
        config = TrainConfig(recipe="handmade", channel_layout="none", windows_per_user=120, folds=2, personal=12)
        train(recordings, config, folder / "runs" / kind)
        export_run(folder / "runs" / kind, folder / "members")
    return folder


def fused(work, models, **paths):
    members = {kind: work / "runs" / kind for kind in RATES} | paths
    return bundles.load(
        fuse_recordings(members, {kind: work / kind for kind in RATES}, models, name="both", personal=12)
    )


@pytest.mark.parametrize("how", ["late", "concatenated"])
def test_two_sensors_tell_what_neither_tells_alone(work, tmp_path, how):
    members = [Member(kind, bundles.load(work / "members" / kind / "1")) for kind in RATES]
    recordings = {kind: load_folder(work / kind) for kind in RATES}
    found, people = fit(members, {kind: work / "runs" / kind for kind in RATES}, recordings, how=how, personal=12)
    rows = np.concatenate([pack(fused_input([m.part for m in members]), p.parts) for p in people])
    told = {"provenance": {}, "evaluation": found.evaluation}
    bundle = bundles.load(write_fused(members, found.join, found.prior, rows[:96], tmp_path, name="both", **told))
    table = {tuple(row["there"]): row for row in bundle.manifest.evaluation["present"]}
    both, alone = table["emg", "imu"]["generic"]["mean"], [table[kind,]["generic"]["mean"] for kind in RATES]
    assert both > max(alone) + 0.15
    assert table["emg", "imu"]["1 repetition"]["mean"] > max(table[k,]["1 repetition"]["mean"] for k in RATES) + 0.1
    assert bundle.manifest.evaluation["users"] == 5
    assert bundle.manifest.head.evidence[0].users == 5
    # A stranger's windows, one part missing or none, by the graph that is served.
    spec = bundle.manifest.input
    specs = {p.name: p for p in spec.parts}
    (stranger,), _ = pair({kind: [person("new", 9, kind)] for kind in RATES}, specs, LABELS)
    run, k = onnx_forward(bundle.backbone), len(LABELS)
    right = {}
    for names in (("emg",), ("imu",), ("emg", "imu")):
        found = run(pack(spec, {n: stranger.parts[n] for n in names}))[:, -k:]
        right[names] = (found.argmax(1) == stranger.y).mean()
    assert right["emg", "imu"] > 0.85
    assert all(right[kind,] > 0.5 for kind in RATES)


def test_windows_of_all_parts_end_at_the_same_moment():
    def ramp(kind):
        fs, seconds = RATES[kind], (4.0, 4.01)[kind == "imu"]  # the devices do not stop together
        t = np.concatenate([1 + np.arange(1, round(seconds * fs) + 1) / fs for _ in range(2)])
        length = len(t) // 2
        return Recordings.build(
            t[:, None], [0, length], [length, 2 * length], [0, 1], [0, 0], label_names=LABELS[:2], fs=fs, subject="p",
            modality=kind,
        )  # fmt: skip

    specs = {
        kind: InputSpec(name=kind, shape=(-1, 1, round(s * fs)), unit="s", sample_rate=fs, stride=round(0.1 * fs))
        for (kind, fs), s in zip(RATES.items(), (0.25, 2.0), strict=True)
    }
    (found,), thinning = pair({kind: [ramp(kind)] for kind in RATES}, specs, LABELS[:2])
    assert thinning == 1
    assert len(found) == 2 * 21
    ends = {kind: x[:, 0, -1] for kind, x in found.parts.items()}
    assert np.abs(ends["emg"] - ends["imu"]).max() <= 0.5 / 50
    np.testing.assert_allclose(np.diff(ends["emg"][:21]), 0.1, atol=1e-5)
    (few,), thinning = pair({kind: [ramp(kind)] for kind in RATES}, specs, LABELS[:2], most=15)
    assert thinning == 3
    assert len(few) == 2 * 7


def test_recordings_that_one_sensor_lacks_are_left_out_and_counted(work):
    specs = {
        kind: InputSpec(name=kind, shape=(-1, 3, 25), unit="x", sample_rate=fs, stride=25) for kind, fs in RATES.items()
    }
    short = person("p0", 0, "imu", repetitions=1)
    (found,), _ = pair({"emg": [person("p0", 0, "emg")], "imu": [short]}, specs, LABELS)
    assert found.unpaired == 3
    assert set(found.repetition) == {0}


def pair_of(**changes):
    recordings = {kind: [person("p0", 0, kind)] for kind in RATES} | changes
    specs = {
        kind: InputSpec(name=kind, shape=(-1, 3, 25), unit="x", sample_rate=fs, stride=5) for kind, fs in RATES.items()
    }
    return recordings, specs, LABELS


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"imu": [person("other", 0, "imu")]}, "files of the same names; only one of them has other"),
        ({"imu": [person("p0", 0, "emg")]}, "has 3 channels at 200 Hz; its model takes 3 at 50 Hz"),
        ({"imu": [person("p0", 0, "imu", seconds=9.0)]}, "lasts 3.50 s in 'emg', 9.00 s in 'imu'"),
        ({k: [person("p0", 0, k, seconds=0.2)] for k in RATES}, "as long as the longest window"),
    ],
)
def test_recordings_that_do_not_go_together_are_refused(changes, said):
    with pytest.raises(RecordingsError, match=said):
        pair(*pair_of(**changes))


def test_a_bundle_that_was_trained_on_the_data_is_refused_and_one_of_others_taken(work, tmp_path):
    own = work / "members" / "emg" / "1"
    with pytest.raises(TrainingError, match="give its run instead"):
        fused(work, tmp_path, emg=own)
    strange = tmp_path / "stranger"
    shutil.copytree(own, strange)
    manifest = json.loads((strange / "manifest.json").read_text())
    manifest["provenance"]["subjects"] = [{"stem": "somebody", "digest": "0" * 64}]
    (strange / "manifest.json").write_text(json.dumps(manifest))
    bundle = fused(work, tmp_path, emg=strange)
    assert bundle.manifest.provenance["members"]["emg"]["from"] == "stranger"


def test_people_who_had_no_part_in_a_run_are_named(work, tmp_path):
    for kind in RATES:
        shutil.copytree(work / kind, tmp_path / kind)
        save(tmp_path / kind / "q.npz", person("q", 7, kind))
    with pytest.raises(TrainingError, match="q had no part in the run"):
        fuse_recordings(
            {kind: work / "runs" / kind for kind in RATES},
            {kind: tmp_path / kind for kind in RATES},
            tmp_path / "models",
            name="both",
        )


class Known:
    """A member whose features are given: two personal ones, and log posteriors of two classes behind them."""

    personal = 2

    def __init__(self, z, logits):
        from models.heads.head import Head

        self.z, self.head = [np.concatenate(pair, 1) for pair in zip(z, logits, strict=True)], None
        self.head = Head(np.concatenate([np.zeros((2, 2)), np.eye(2)], 1), np.zeros(2))

    def final(self, person):
        return self.z[person]

    def without(self, left_out, person):
        return self.z[person][:, :2]

    def evidence(self, person):
        return self.head.logits(self.z[person])


def test_a_member_that_knows_nothing_gets_no_say_and_one_that_is_copied_is_made_up_for():
    rng = np.random.default_rng(0)
    people = [Joined(np.tile([0, 1], 40), np.zeros(80, int), np.repeat([0, 1], 40)) for _ in range(4)]
    z = [rng.normal(size=(80, 2)) + 3 * p.y[:, None] for p in people]
    good = [np.stack([-2 * (x[:, 0] - 1.5), 2 * (x[:, 0] - 1.5)], 1) for x in z]
    noise = [rng.normal(size=(80, 2)) * 3 for _ in people]
    found = fit_fusion([Known(z, good), Known(z, noise)], people, ("a", "b"), names=("good", "copy"))
    shares = found.join.shares
    assert shares[3, 1] <= 0.1
    assert shares[1, 0] > 0.3
    assert not shares[0].any()
    # The second member's personal features are the first's: each is told by the other.
    np.testing.assert_allclose(found.join.impute, np.kron([[0, 1], [1, 0]], np.eye(2)), atol=0.1)
    assert patterns(2).tolist() == [[False, False], [True, False], [False, True], [True, True]]


@pytest.fixture(scope="module")
def strangers(work):
    """Three people whom no run knows, in a folder a part; and a fused bundle."""
    for kind in RATES:
        for i in range(3):
            save(work / "strangers" / kind / f"s{i}.npz", person(f"s{i}", 20 + i, kind, seconds=9.0, repetitions=3))
    return work / "strangers", fused(work, work / "fused")


def test_a_fused_bundle_is_evaluated_on_recordings_of_all_parts(strangers):
    data, bundle = strangers
    found = plan("cycles", bundle.manifest, data)
    result = evaluate(LocalPersonaliser(bundle.path), found)
    assert set(result.users[GENERIC][ZERO_SHOT]) == {"s0", "s1", "s2"}
    assert result.table[GENERIC][ZERO_SHOT].mean.accuracy > 0.8
    assert set(result.table[PERSONAL]) == {"1w", "5w", "1 cycle", "2 cycles"}
    assert {name for name in result.table if name.startswith("bundle")} == {
        "bundle: NCM, population whitening",
        "bundle: own LDA",
        "bundle: map, unguarded",
    }
    assert len(result.made_of["subjects"]) == 6
    assert result.recordings_scored == 3 * 3
    personaliser = LocalPersonaliser(bundle.path)
    assert evaluate_track("causal", personaliser, found) is not None


@pytest.mark.parametrize(
    ("protocol", "folder", "said"),
    [
        ("myo", "strangers", "'myo' is of one armband's recordings"),
        ("cycles", ".", "trained on all of them"),
        ("cycles", "strangers/emg", "a folder of that name"),
    ],
)
def test_what_a_fused_bundle_cannot_be_evaluated_on_is_said(work, strangers, protocol, folder, said):
    with pytest.raises(ValueError, match=said):
        plan(protocol, strangers[1].manifest, work / folder)


def test_a_fused_bundle_is_converted_on_recordings(work, strangers, tmp_path):
    told = run_conversion(
        strangers[1].path, tmp_path, precision="fp16", data=[str(strangers[0])], subjects="*", held_out=None, seed=0
    )
    assert "recorded windows" in told
    assert bundles.load(tmp_path / "both" / "2").manifest.precision == "fp16"


def test_runs_of_pictures_are_told_to_come_with_a_table(work, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"kind": "media-1"}))
    with pytest.raises(TrainingError, match="fused on one table with a column for each member"):
        fused(work, tmp_path / "models", emg=run)
