"""One network on several machines gives what it gives on one; a machine that is lost is said, and resumed from."""

import os
import signal
import threading
import time

import pytest
import torch

from models.data.synthetic import synthesise
from models.training import TrainConfig, TrainingError, nodes, train
from models.training.devices import Devices, run_on
from models.training.runners import OverNodes, Where
from tests.recipes.conftest import same
from tests.recipes.one_network import SmallJob, fit_small

pytestmark = pytest.mark.filterwarnings(  # Ray's own threads and sockets are not this suite's to close
    "ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)
TWO = Devices(nodes=2)


@pytest.fixture(scope="module")
def cluster():
    """Two machines of one core each, in name: each has its own part of Ray, and processes of its own."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    one = {"num_cpus": 1, "object_store_memory": 2**27, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=one)
    found.add_node(num_cpus=1, object_store_memory=2**27)
    found.wait_for_nodes()
    ray.init(address=found.address, log_to_driver=False, logging_level="error")
    yield OverNodes()
    ray.shutdown()
    found.shutdown()


def job(folder, name="line", **more):
    (folder / name / "checkpoints").mkdir(parents=True, exist_ok=True)
    return SmallJob(name, folder / name / "checkpoints" / "line.safetensors", **more)


@pytest.fixture(scope="module")
def on_two(cluster, tmp_path_factory):
    weights, _ = run_on(TWO, [], fit_small, job(tmp_path_factory.mktemp("two")))
    return weights


def test_two_nodes_give_what_two_processes_give_and_nearly_what_one_gives(on_two, tmp_path):
    two = Devices(count=2)
    assert same(run_on(two, [], fit_small, job(tmp_path, "two"))[0], on_two)
    quiet, _ = run_on(two, [], fit_small, job(tmp_path, "quiet", dropout=0.0))
    one, _ = run_on(Devices(), [], fit_small, job(tmp_path, "one", dropout=0.0))
    assert not same(quiet, on_two)
    assert all(torch.allclose(one[k], v, atol=2e-3) for k, v in quiet.items())


def killer_of(told, which):
    """What kills a process, or the one that is its machine's, as soon as all of them stand still."""

    def kill():
        while len(found := [f for f in told.iterdir() if f.stat().st_size]) < 2:
            time.sleep(0.05)
        os.kill(int(found[0].read_text().split()[which]), signal.SIGKILL)

    told.mkdir()
    return threading.Thread(target=kill)


def test_a_process_that_is_killed_ends_the_others_and_resuming_gives_the_same_weights(on_two, tmp_path):
    killer = killer_of(tmp_path / "told", 0)
    killer.start()
    with pytest.raises(
        TrainingError, match=r"A process that trained line was killed \(SIGKILL: memory is the usual reason\); go on"
    ):
        run_on(TWO, [], fit_small, job(tmp_path, told=tmp_path / "told"))
    killer.join()
    weights, began = run_on(TWO, [], fit_small, job(tmp_path))
    assert began == 6
    assert same(weights, on_two)


def test_a_machine_that_is_lost_ends_the_others(cluster, tmp_path):
    killer = killer_of(tmp_path / "told", 1)
    killer.start()
    with pytest.raises(TrainingError, match=r"A node that trained line failed; go on with --resume\. It said: "):
        run_on(TWO, [], fit_small, job(tmp_path, told=tmp_path / "told"))
    killer.join()


def test_what_one_node_cannot_do_is_said(cluster, tmp_path):
    with pytest.raises(TrainingError, match="process 1 cannot read its share"):
        run_on(TWO, [], fit_small, job(tmp_path, fails=1))


def test_a_cluster_of_too_few_nodes_is_a_sentence(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "NODES_SECONDS", 0.5)
    monkeypatch.setattr(nodes, "LOOK_SECONDS", 0.1)
    seen = []
    with pytest.raises(TrainingError, match=r"had no 3 nodes with 1 CPU free each in 0\.5 s.*: 1 CPU; 1 CPU\."):
        run_on(Devices(nodes=3), [], fit_small, job(tmp_path), lambda *told: seen.append(told))
    assert seen.count(("line: nodes", 0, 3)) > 1
    assert ("line: nodes", 3, 3) not in seen


def test_processes_that_would_have_nobody_to_learn_from_are_refused(tmp_path):
    recordings = synthesise(4, channels=4, fs=200.0, labels=3, repetitions=3, sessions=1, seconds=1.0, seed=5)
    with pytest.raises(TrainingError, match="A step learns from 2 people, which 3 processes cannot share"):
        train(recordings, TrainConfig(folds=2), tmp_path / "run", where=Where(Devices(count=3)))
    assert not (tmp_path / "run").exists()
