"""Where a run is made: probes compute their features there, and what is missing is refused before anything is done."""

import csv
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from models.data.synthetic import synthesise
from models.training import TrainConfig, TrainingError, loggers, train
from models.training.devices import Devices
from models.training.fine_tuning import fine_tune
from models.training.linear_probe import LinearProbeConfig, train_probe
from models.training.runners import Where
from models.training.several import probe_tasks
from service.commands import progress
from service.commands.training import where_of
from tests import tiny_media
from tests.recipes.conftest import arrays, same
from tests.tiny_tasks import tiny_tasks


@pytest.fixture(scope="module")
def probe(vit):
    return LinearProbeConfig(backbone=vit, personal=8)


def test_features_of_a_probe_are_computed_in_the_precision_asked_and_kept_apart(probe, pictures, tmp_path):
    def run(name, precision):
        where = Where(Devices(precision=precision))
        return train_probe(pictures, probe, tmp_path / name, cache=tmp_path / "cache", where=where)

    full, half, again = run("full", "32-true"), run("half", "bf16-mixed"), run("again", "bf16-mixed")
    assert [r.provenance["features_computed"] for r in (full, half, again)] == [30, 30, 0]
    assert [r.provenance["features_precision"] for r in (full, half)] == ["32-true", "bf16-mixed"]
    assert same(arrays(half), arrays(again))
    assert not same(arrays(full), arrays(half))
    for name, value in full.backbone().encoder.state_dict().items():  # what is shipped is as it was
        assert torch.equal(value, half.backbone().encoder.state_dict()[name])
    assert full.evaluation["zero_shot"]["mean"] == pytest.approx(half.evaluation["zero_shot"]["mean"], abs=0.1)


def test_figures_of_a_probe_go_to_its_loggers(probe, people, tmp_path):
    run = train_probe(people, probe, tmp_path / "run", where=Where(loggers=("csv",)))
    with (run.folder / "logs" / "csv" / "probe" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["probe/shared"]) == pytest.approx(run.evaluation["zero_shot"]["mean"])
    shots = [f"{r['windows']}_windows_{r['repetitions']}_repetitions" for r in run.evaluation["personal"]]
    assert shots
    for shot, figures in zip(shots, run.evaluation["personal"], strict=True):
        assert float(row[f"probe/personal_{shot}"]) == pytest.approx(figures["personal"])


def test_what_has_no_meaning_for_a_probe_is_refused(probe, pictures, tmp_path):
    for devices in (Devices(count=2), Devices(nodes=2)):
        with pytest.raises(TrainingError, match="linear-probe trains no network whose batches several processes or"):
            train_probe(pictures, probe, tmp_path / "run", where=Where(devices))
    onnx = probe.model_copy(update={"backbone": tiny_media.image_encoder(tmp_path)})
    with pytest.raises(TrainingError, match="run by ONNX Runtime on the CPU; leave --accelerator and --precision out"):
        train_probe(pictures, onnx, tmp_path / "run", where=Where(Devices(precision="bf16-mixed")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["cuda", "mlflow", "16-mixed"])
def test_what_is_not_there_is_refused_before_the_folder_is_claimed(
    probe, small, pictures, tmp_path, monkeypatch, missing
):
    real = importlib.util.find_spec
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name == "mlflow" else real(name))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    where, said = {
        "cuda": (
            Where(Devices(accelerator="cuda")),
            "CUDA devices asked for: 1; this machine has none that torch can use",
        ),
        "mlflow": (Where(loggers=("csv", "mlflow")), "The logger mlflow needs: pip install mlflow"),
        "16-mixed": (Where(Devices(precision="16-mixed")), "16-mixed needs --accelerator cuda"),
    }[missing]
    recordings = synthesise(4, channels=4, fs=200.0, labels=3, repetitions=3, sessions=1, seconds=1.0, seed=5)
    for work in (
        lambda: train_probe(pictures, probe, tmp_path / "run", where=where),
        lambda: fine_tune(pictures, small("full"), tmp_path / "run", where=where),
        lambda: train(recordings, TrainConfig(folds=2), tmp_path / "run", where=where),
    ):
        with pytest.raises(TrainingError, match=said):
            work()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"nodes": 2}, "Several nodes are those of a Ray cluster: give --ray"),
        ({"ray": True, "accelerator": "auto"}, "On Ray say which devices are meant"),
        ({"loggers": ["paper"]}, "There is no logger 'paper'"),
    ],
)
def test_flags_that_do_not_go_together_are_a_sentence(flags, said):
    usual = {"accelerator": "cpu", "nodes": 1, "ray": False, "ray_address": None, "loggers": ()}
    given = {**usual, **flags}
    with pytest.raises(TrainingError, match=said):
        where_of(1, given.pop("accelerator"), "32-true", **given)


def test_into_a_pipe_progress_is_a_line_now_and_then(tmp_path, monkeypatch):
    clock = iter(np.arange(100.0))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with (tmp_path / "out").open("w") as file, progress.stages(Console(file=file)) as tick:
        for done in range(25):
            tick("fold 1 of 3", done, 25)
        for _ in range(2):
            tick("fold 1 of 3", 25, 25)
        tick("windows", 1, 1)
    assert (tmp_path / "out").read_text().splitlines() == [
        "fold 1 of 3: 10 of 25 (10 s)",
        "fold 1 of 3: 20 of 25 (20 s)",
        "fold 1 of 3: 25 of 25 (25 s)",
        "windows: done (0 s)",
    ]


def test_a_probe_of_several_tasks_is_made_where_asked_too(vit, tmp_path):
    data = tiny_tasks(tmp_path / "data")
    config = LinearProbeConfig(backbone=vit, personal=16)
    with pytest.raises(TrainingError, match="several processes or nodes could share"):
        probe_tasks(data, config, tmp_path / "run", where=Where(Devices(count=2)))
    run = probe_tasks(data, config, tmp_path / "run", where=Where(Devices(precision="bf16-mixed"), loggers=("csv",)))
    assert run.provenance["features_precision"] == "bf16-mixed"
    for task in run.tasks:
        with (run.folder / "logs" / "csv" / task.name / "metrics.csv").open() as file:
            (row,) = csv.DictReader(file)
        zero = task.evaluation["zero_shot"]
        key, wanted = ("shared", zero["mean"]) if task.labels else ("rmse_lit", zero["rmse"]["lit"])
        assert float(row[f"{task.name}/{key}"]) == pytest.approx(wanted)
