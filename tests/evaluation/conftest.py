"""A bundle over synthetic people whose ONNX graph computes log-variance: weak, real and quick."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters import bundle as bundles
from exporters.bundle import InputSpec, Manifest
from models.data.recordings import load_folder
from models.data.synthetic import Design, write_folder
from models.data.windows import WindowSpec, windows
from models.evaluation import features
from models.evaluation.baselines import population_prior
from models.heads import prior as priors
from models.heads.prior import Evidence, HyperParameters

CHANNELS, LENGTH, STRIDE, FS = 8, 52, 20, 200.0
PEOPLE, TRAINED = 8, 5
EVIDENCE = tuple(
    Evidence(windows=w, repetitions=r, users=TRAINED, gain=0.1, lower=0.02, floor=0.5)
    for w, r in ((1, 1), (5, 1), (40, 2))
)


def log_variance_graph() -> bytes:
    """`(n, 8, 52)` to the log-variance of each channel `(n, 8)`."""
    nodes = [
        helper.make_node("ReduceMean", ["input", "time"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["input", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["square"]),
        helper.make_node("ReduceMean", ["square", "time"], ["variance"], keepdims=0),
        helper.make_node("Add", ["variance", "floor"], ["positive"]),
        helper.make_node("Log", ["positive"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "log_variance",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", CHANNELS, LENGTH])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", CHANNELS])],
        [
            numpy_helper.from_array(np.array([-1], np.int64), "time"),
            numpy_helper.from_array(np.array(0.5, np.float32), "floor"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="session")
def people(tmp_path_factory) -> Path:
    """Folder of eight synthetic people, two sessions of three repetitions each."""
    out = tmp_path_factory.mktemp("people") / "recordings"
    write_folder(out, PEOPLE, Design(labels=4, repetitions=3, sessions=2, seconds=2.0, correlation=0.9, seed=3))
    return out


@pytest.fixture(scope="session")
def bundle(people, tmp_path_factory) -> Path:
    """A bundle whose population are the first five of them."""
    trained = load_folder(people)[:TRAINED]
    labels = trained[0].label_names
    cut = [windows(rec, WindowSpec(LENGTH, STRIDE)) for rec in trained]
    hyper = HyperParameters(window=5.0, shrinkage=20.0, evidence=EVIDENCE)
    prior = population_prior([(np.log(_variance(w.x) + 0.5), w) for w in cut], labels, hyper)
    graph = log_variance_graph()
    manifest = Manifest(
        name="synth",
        version=1,
        feature_space=bundles.feature_space(graph),
        labels=labels,
        input=InputSpec(shape=(-1, CHANNELS, LENGTH), unit="counts", sample_rate=FS, stride=STRIDE),
        preprocessing="log-variance",
        feature_dim=CHANNELS,
        opset=20,
        head=hyper,
        provenance={"subjects": [{"stem": r.stem, "digest": r.digest} for r in trained]},
        licence="Apache-2.0",
        files={},
    )
    files = {bundles.BACKBONE: graph, bundles.PRIOR: priors.to_bytes(prior), bundles.CARD: b"# synth\n"}
    return bundles.write(tmp_path_factory.mktemp("models"), manifest, files)


def _variance(x):
    return np.asarray(features._centred(x).var(-1))
