"""Training end to end on small synthetic populations: what a run holds, that it repeats, resumes and refuses."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.data.recordings import Recordings
from models.data.synthetic import synthesise
from models.data.windows import WindowSpec, windows
from models.heads.fit import fit_lda, fit_map
from models.heads.statistics import Statistics
from models.training import RunError, TrainConfig, TrainingError, load_run, train
from models.training.episodes import Sampler
from models.training.population import ring_placements

SMALL = {"steps": 20, "folds": 2, "evaluate_every": 10, "personal": 24, "users_per_step": 3}


def people(users=4, **kw):
    design = {"channels": 4, "fs": 200.0, "labels": 3, "repetitions": 3, "sessions": 1, "seconds": 1.0, "seed": 5} | kw
    return synthesise(users, **design)


@pytest.fixture(scope="module")
def population():
    return people()


@pytest.fixture(scope="module")
def run(population, tmp_path_factory):
    return train(population, TrainConfig(**SMALL), tmp_path_factory.mktemp("runs") / "run", command="the command")


def weights(run):
    return {name: value.clone() for name, value in run.backbone().state_dict().items()}


def test_a_run_holds_all_that_an_export_needs(run, population):
    assert run.labels == population[0].label_names
    assert run.windows.shape[0] >= 71
    assert run.windows.shape[1:] == (4, 52)
    backbone = run.backbone()
    with torch.no_grad():
        z = backbone(torch.from_numpy(run.windows))
    assert z.shape == (len(run.windows), run.prior.dim)
    assert torch.isfinite(z).all()
    assert run.prior.personal == 24
    assert run.prior.dim == 24 + 2 * 3
    assert run.provenance["command"] == "the command"
    assert [s["digest"] for s in run.provenance["subjects"]] == [r.digest for r in population]
    assert {e.repetitions for e in run.prior.hyper.evidence} == {1, 2}
    assert all(e.lower <= e.gain for e in run.prior.hyper.evidence)
    assert run.evaluation["users"] == 4


def test_personal_features_are_whitened_by_the_population(run, population):
    spec = WindowSpec(run.signal.length, run.signal.stride)
    x = np.concatenate([windows(r, spec).x for r in population])
    with torch.no_grad():
        z = run.backbone()(torch.from_numpy(x)).numpy()[:, : run.prior.personal]
    assert np.abs(run.prior.means.mean(0)).max() < 1e-6
    assert np.abs(z.mean(0)).max() < 0.3 * z.std()
    assert np.allclose(np.diag(run.prior.within), 1, atol=0.15)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(run, population, tmp_path):
    again = train(population, TrainConfig(**SMALL), tmp_path / "again")
    other = train(population, TrainConfig(**SMALL, seed=1), tmp_path / "other")
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(run).items())
    assert run.prior_bytes == again.prior_bytes
    assert any(not torch.equal(v, weights(other)[k]) for k, v in weights(run).items())


def history(run):
    return json.loads((run.folder / "history.json").read_text())["networks"]


@pytest.mark.parametrize("killed_at", [1, 13, 20, 21, 37, 44])
def test_a_run_killed_at_any_step_resumes_to_the_same_weights(run, population, tmp_path, killed_at, monkeypatch):
    drawn = itertools.count()
    real = Sampler.step

    def die(sampler, rng):
        if next(drawn) == killed_at:
            raise KeyboardInterrupt
        return real(sampler, rng)

    monkeypatch.setattr(Sampler, "step", die)
    with pytest.raises(KeyboardInterrupt):
        train(population, TrainConfig(**SMALL), tmp_path / "run")
    with pytest.raises(RunError, match="no finished training run"):
        load_run(tmp_path / "run")
    monkeypatch.setattr(Sampler, "step", real)
    resumed = train(population, TrainConfig(**SMALL), tmp_path / "run", resume=True)
    assert all(torch.equal(v, weights(resumed)[k]) for k, v in weights(run).items())
    assert run.prior_bytes == resumed.prior_bytes
    assert history(run) == history(resumed)


def test_a_damaged_checkpoint_is_a_sentence(population, tmp_path, monkeypatch):
    real = Sampler.step
    drawn = itertools.count()

    def die(sampler, rng):
        if next(drawn) == 15:
            raise KeyboardInterrupt
        return real(sampler, rng)

    monkeypatch.setattr(Sampler, "step", die)
    with pytest.raises(KeyboardInterrupt):
        train(population, TrainConfig(**SMALL), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "fold0.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match=r"fold0\.safetensors cannot be resumed from"):
        train(population, TrainConfig(**SMALL), tmp_path / "run", resume=True)


def test_a_run_keeps_its_curves_and_the_seconds_of_its_stages(run):
    folds = [n for n in history(run) if n["held_out"]]
    assert [n["network"] for n in history(run)] == ["fold 1 of 2", "fold 2 of 2", "network"]
    assert sorted(name for n in folds for name in n["held_out"]) == [s["subject"] for s in run.provenance["subjects"]]
    for network, stage in zip(folds, run.provenance["stages"], strict=False):
        assert [step for step, _ in network["loss"]] == [10, 20]
        assert all(np.isfinite(loss) for _, loss in network["loss"])
        best = min(network["validation"], key=lambda point: point[1])
        assert best[0] == stage["best_step"]
        assert best[1] == pytest.approx(stage["log_loss"], abs=1e-6)
        assert all(0 <= accuracy <= 1 for _, _, accuracy in network["validation"])
    assert set(run.provenance["timings"]) == {
        "windows", "hand-made features", "fold 1 of 2", "fold 2 of 2", "leave one out", "network",
    }  # fmt: skip


def test_resuming_other_work_is_refused(run, population):
    with pytest.raises(TrainingError, match="other settings or recordings"):
        train(population, TrainConfig(**SMALL, seed=3), run.folder, resume=True)
    with pytest.raises(TrainingError, match="not empty"):
        train(population, TrainConfig(**SMALL), run.folder)


def test_nothing_to_resume_is_said(population, tmp_path):
    with pytest.raises(TrainingError, match="nothing to resume"):
        train(population, TrainConfig(**SMALL), tmp_path / "none", resume=True)


def test_too_few_people_are_refused(population, tmp_path):
    with pytest.raises(TrainingError, match="at least 3 people; here there are 2"):
        train(population[:2], TrainConfig(**SMALL), tmp_path / "run")


def test_an_unknown_recipe_lists_the_known_ones(population, tmp_path):
    with pytest.raises(TrainingError, match="episodic, handmade"):
        train(population, TrainConfig(recipe="magic"), tmp_path / "run")


def test_copied_recordings_are_refused(population, tmp_path):
    first = population[0]
    copy = Recordings.build(
        first.signal,
        first.start,
        first.stop,
        first.label,
        first.repetition,
        label_names=first.label_names,
        fs=first.fs,
        subject="somebody_else",
    )
    with pytest.raises(ValueError, match="share"):
        train([*population, copy], TrainConfig(**SMALL), tmp_path / "run")


def without(rec, label):
    keep = rec.label != label
    return Recordings.build(
        rec.signal,
        rec.start[keep],
        rec.stop[keep],
        rec.label[keep],
        rec.repetition[keep],
        label_names=rec.label_names,
        fs=rec.fs,
        subject=rec.subject,
        session=rec.session[keep],
        session_names=rec.session_names,
        modality=rec.modality,
    )


def test_another_armband_with_few_people_and_missing_classes(tmp_path):
    recs = people(4, channels=10, fs=1000.0, labels=5, repetitions=2, seconds=1.0, correlation=0.7)
    test = recs.pop()
    recs[1] = without(recs[1], 3)
    run = train(recs, TrainConfig(recipe="handmade"), tmp_path / "run")
    assert run.windows.shape[1:] == (10, 260)
    w = windows(test, WindowSpec(run.signal.length, run.signal.stride))
    with torch.no_grad():
        z = run.backbone()(torch.from_numpy(w.x)).numpy().astype(float)
    shown = w.repetition == 0
    stats = Statistics.of(z[shown, : run.prior.personal], w.y[shown], w.repetition[shown], 5)

    def accuracy(head):
        return (head.logits(z[~shown]).argmax(1) == w.y[~shown]).mean()

    assert accuracy(fit_map(stats, run.prior)) >= accuracy(fit_lda(stats, run.prior)) - 0.02
    assert accuracy(fit_map(stats, run.prior)) > 0.7


@pytest.mark.parametrize("change", [{"repetitions": 1}, {"modality": "imu"}, {"sessions": 2}])
def test_other_shapes_of_data(change, tmp_path):
    modality = change.pop("modality", "emg")
    recs = people(3, **change, seconds=6.0 if modality == "imu" else 1.0, fs=100.0)
    if modality == "imu":
        recs = [
            Recordings.build(
                r.signal,
                r.start,
                r.stop,
                r.label,
                r.repetition,
                label_names=r.label_names,
                fs=r.fs,
                subject=r.subject,
                modality="imu",
            )
            for r in recs
        ]
    run = train(recs, TrainConfig(**SMALL), tmp_path / "run")
    assert run.signal.channel_layout == ("none" if modality == "imu" else "ring")
    assert (run.prior.placements is None) == (modality == "imu")
    assert run.prior.hyper.evidence


def test_a_rotated_user_is_found_and_loses_little(tmp_path):
    recs = people(6, channels=8, labels=4, rotation=0.3, correlation=0.9, seed=11)
    test = recs.pop()
    run = train(recs, TrainConfig(recipe="handmade", personal=32), tmp_path / "run")
    backbone, spec = run.backbone(), WindowSpec(run.signal.length, run.signal.stride)

    def accuracy(turn):
        w = windows(test, spec)
        with torch.no_grad():
            z = backbone(torch.from_numpy(np.roll(w.x, turn, 1))).numpy().astype(float)
        shown = np.zeros(len(w), bool)
        for c in range(4):
            shown[np.flatnonzero((w.y == c) & (w.repetition == 0))[10]] = True
        stats = Statistics.of(z[shown, :32], w.y[shown], w.repetition[shown], 4)
        rest = w.repetition > 0
        return (fit_map(stats, run.prior).logits(z[rest]).argmax(1) == w.y[rest]).mean()

    assert accuracy(3) > accuracy(0) - 0.05


def test_placements_of_a_ring_begin_with_the_usual_one_and_stay_few():
    for channels in (3, 4, 8, 10, 16, 64):
        found = ring_placements(channels)
        assert (found[0].electrodes, found[0].flipped, found[0].log_weight) == (0.0, False, 0.0)
        assert len({(p.electrodes, p.flipped) for p in found}) == len(found) <= 64


def test_a_damaged_run_is_a_sentence(run, tmp_path):
    record = json.loads((run.folder / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(RunError, match="format 99"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        load_run(tmp_path)
    with pytest.raises(RunError, match="no finished training run"):
        load_run(Path("nowhere"))
