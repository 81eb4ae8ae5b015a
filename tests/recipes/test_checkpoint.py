"""Checkpoints: whatever a loop keeps comes back as it was; logs are written."""

import csv
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.training import TrainingError
from models.training.checkpoint import SafetensorsIO
from models.training.fine_tuning import fine_tune
from models.training.loggers import loggers_of, store_in
from models.training.runners import Where

plain = st.none() | st.booleans() | st.integers(-(2**128), 2**128) | st.floats(allow_nan=False) | st.text(max_size=8)
tensors = st.lists(st.integers(-9, 9), max_size=4).map(torch.tensor)
values = st.recursive(
    plain | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=12,
)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=4), values, max_size=4))
def test_what_is_kept_comes_back_as_it_was(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("checkpoint") / "state.safetensors"
    SafetensorsIO().save_checkpoint(state, path)
    assert equal(state, SafetensorsIO().load_checkpoint(path))


def test_a_file_that_is_not_a_checkpoint_is_a_sentence_and_odd_values_are_refused(tmp_path):
    (tmp_path / "damaged").write_bytes(b"\x00" * 40)
    for name in ("damaged", "none"):
        with pytest.raises(TrainingError, match="cannot be resumed from"):
            SafetensorsIO().load_checkpoint(tmp_path / name)
    with pytest.raises(TypeError, match="cannot hold a set"):
        SafetensorsIO().save_checkpoint({"a": {1}}, tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


def test_logs_hold_the_curves_of_every_network(small, pictures, tmp_path):
    run = fine_tune(pictures, small("lp-ft", folds=1), tmp_path / "run", where=Where(loggers=("csv",)))
    files = sorted((run.folder / "logs" / "csv").glob("*/metrics.csv"))
    assert [f.parent.name for f in files] == ["fold-1-of-1", "network"]
    with files[0].open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(r["log_loss"]) for r in rows if r["log_loss"]]
    assert len(losses) == 3
    assert all(map(math.isfinite, losses))


def test_tensorboard_reads_what_is_logged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (logger,) = loggers_of(["tensorboard"], tmp_path, "fold 1")
    logger.log_metrics({"loss": 0.5}, 3)
    logger.finalize("success")
    found = EventAccumulator(str(tmp_path / "tensorboard" / "fold-1")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(3, 0.5)]


@pytest.mark.filterwarnings("ignore")  # of MLflow about its own libraries
def test_mlflow_reads_what_is_logged(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (logger,) = loggers_of(["mlflow"], tmp_path, "fold 1")
    logger.log_metrics({"loss": 0.5}, 3)
    logger.finalize("success")
    client = mlflow.MlflowClient(store_in(tmp_path / "mlflow"))
    found = client.get_metric_history(logger.version, "loss")
    assert [(m.step, m.value) for m in found] == [(3, 0.5)]


@pytest.mark.filterwarnings("ignore")  # of MLflow about its own libraries
def test_networks_are_runs_of_mlflow_that_end_as_they_did(small, pictures, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_in(tmp_path))

    def interrupted(stage, done, total):
        if stage == "network" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(
            pictures,
            small("full", folds=1),
            tmp_path / "run",
            where=Where(loggers=("mlflow",)),
            progress=interrupted,
        )
    client = mlflow.MlflowClient(store_in(tmp_path))
    runs = client.search_runs([client.get_experiment_by_name("headway").experiment_id])
    ended = {run.info.run_name: (run.info.status, set(run.data.metrics)) for run in runs}
    # Under the same names in every network, so that their curves lie over each other.
    assert ended["fold-1-of-1"] == ("FINISHED", {"loss", "log_loss", "accuracy"})
    assert ended["network"][0] == "FAILED"


def test_a_logger_that_is_not_known_is_a_sentence(tmp_path):
    with pytest.raises(TrainingError, match="There is no logger 'paper'; there are: csv, tensorboard, mlflow"):
        loggers_of(["paper"], tmp_path, "n")
