"""Several processes and Ray give what one process gives."""

import json

import numpy as np
import pytest

from exporters.export import export_run
from models.cluster import ClusterError
from models.data.synthetic import synthesise
from models.training import TrainConfig, TrainingError, train
from models.training.devices import Devices
from models.training.extract import Source, extract
from models.training.fine_tuning import fine_tune
from models.training.linear_probe import LinearProbeConfig, train_probe
from models.training.runners import OnRay, Serial, Where
from tests.recipes.conftest import arrays, same


def silent(stage, done, total):
    pass


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    import ray

    # Ray's own threads and sockets are not this suite's to close.
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=2**27,
    )
    yield OnRay()
    ray.shutdown()


@pytest.fixture(scope="module")
def tuned_run(small, pictures, tmp_path_factory):
    return fine_tune(pictures, small("lp-ft"), tmp_path_factory.mktemp("serial") / "run")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_on_ray_the_networks_of_a_run_are_those_of_one_process(cluster, small, pictures, tuned_run, tmp_path):
    run = fine_tune(pictures, small("lp-ft"), tmp_path / "ray", where=Where(runner=cluster))
    assert same(arrays(tuned_run), arrays(run))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_on_ray_a_run_on_recordings_is_that_of_one_process(cluster, tmp_path):
    recordings = synthesise(4, channels=4, fs=200.0, labels=3, repetitions=3, sessions=1, seconds=1.0, seed=5)
    config = TrainConfig(steps=20, folds=2, evaluate_every=10, personal=24, users_per_step=3)
    serial = train(recordings, config, tmp_path / "serial")
    run = train(recordings, config, tmp_path / "ray", where=Where(runner=cluster))
    assert serial.prior_bytes == run.prior_bytes
    assert all(v.equal(run.backbone().state_dict()[k]) for k, v in serial.backbone().state_dict().items())


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_features_on_ray_are_those_of_one_process_by_a_bundle_and_by_an_encoder(
    cluster, vit, pictures, tuned_run, tmp_path
):
    bundle = export_run(tuned_run.folder, tmp_path / "models", name="tuned")
    for source in (Source(model=bundle), Source(backbone=vit)):
        serial = extract(source, pictures, Serial(), silent)
        assert np.array_equal(serial, extract(source, pictures, cluster, silent))
        assert serial.shape[0] == len(pictures)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_probe_on_ray_is_that_of_one_process(cluster, vit, pictures, tmp_path):
    config = LinearProbeConfig(backbone=vit, personal=8)
    serial = train_probe(pictures, config, tmp_path / "serial")
    run = train_probe(pictures, config, tmp_path / "ray", cache=tmp_path / "cache", where=Where(runner=cluster))
    assert same(arrays(serial), arrays(run))
    assert run.provenance["features_computed"] == len(pictures)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_error_on_ray_is_the_one_that_it_would_be_here(cluster, small, pictures, tmp_path):
    with pytest.raises(TrainingError, match="diverged"):
        fine_tune(pictures, small("full", learning_rate=1e30, folds=1), tmp_path / "run", where=Where(runner=cluster))


def test_a_cluster_that_is_not_there_is_a_sentence():
    pytest.importorskip("ray")
    with pytest.raises(ClusterError, match=r"No Ray cluster can be reached at '127\.0\.0\.1:1'"):
        OnRay("127.0.0.1:1")


def test_a_cluster_that_may_want_a_token_says_how_to_send_it(monkeypatch):
    ray = pytest.importorskip("ray")

    def refused(**more):
        raise ConnectionError("Failed to connect to Ray cluster at 192.0.2.2:6379")

    monkeypatch.setattr(ray, "init", refused)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(ClusterError, match=r"192\.0\.2\.2:6379\. If `ray start` said .* set RAY_AUTH_MODE=token here"):
        OnRay("auto")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ClusterError, match=r"192\.0\.2\.2:6379\.$"):
        OnRay("auto")


def test_two_processes_that_share_every_batch_give_what_one_gives(small, pictures, tmp_path):
    config = small("full", folds=1, steps=6, evaluate_every=3, dropout=0.0)
    one = fine_tune(pictures, config, tmp_path / "one")
    two = fine_tune(pictures, config, tmp_path / "two", where=Where(Devices(count=2)))
    first, second = (json.loads((r.folder / "history.json").read_text())["networks"][0]["loss"] for r in (one, two))
    assert second == pytest.approx(np.array(first), abs=2e-3)
    for name, value in one.backbone().encoder.state_dict().items():
        assert np.allclose(value, two.backbone().encoder.state_dict()[name], atol=2e-3), name


def test_a_batch_that_cannot_be_shared_equally_is_refused(small, pictures, tmp_path):
    with pytest.raises(TrainingError, match="A batch of 7 cannot be shared equally by 2 processes"):
        fine_tune(pictures, small("full", batch=7, folds=1), tmp_path / "run", where=Where(Devices(count=2)))
