"""INT8 variants: written where heads decide as well about people, and refused with numbers where they do not."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from exporters import bundle as bundles
from exporters.gate import PrecisionError
from exporters.int8 import quantise
from exporters.precision import features
from exporters.quantiser import Quantiser
from exporters.worth import Labelled
from models.heads.calibration import shared_head
from service.app import create_app
from service.config import Settings
from service.engine.runtime import Runtime
from tests.cli.test_cli import run
from tests.conftest import running
from tests.exporters.test_inputs import graph_of, write
from tests.exporters.test_precision import SPEC, conv_graph, windows
from tests.tiny import DIM, tiny_prior


def deep_graph(layers=7, loud=None):
    """Convolutions with ReLU6 behind them, a mean and a projection; channel 0 of layer `loud` is 3,000 times as strong.

    The next layer's weights take that back, so that the graph computes about the same.
    """
    rng = np.random.default_rng(4)
    nodes, constants = [], {"axes": np.array([2]), "low": np.float32(0), "high": np.float32(6e4)}
    value, width = "input", 2
    for i in range(layers):
        w = (rng.standard_normal((8, width, 3)) / np.sqrt(1.5 * width)).astype(np.float32)
        w[0] *= 3e3 if i == loud else 1
        w[:, 0] /= 3e3 if loud is not None and i == loud + 1 else 1
        constants |= {f"w{i}": w, f"b{i}": np.full(8, 0.1, np.float32)}
        nodes.append(helper.make_node("Conv", [value, f"w{i}", f"b{i}"], [f"h{i}"], pads=[1, 1]))
        nodes.append(helper.make_node("Clip", [f"h{i}", "low", "high"], [f"a{i}"]))
        value, width = f"a{i}", 8
    constants["top"] = rng.standard_normal((8, DIM)).astype(np.float32)
    nodes.append(helper.make_node("ReduceMean", [value, "axes"], ["pooled"], keepdims=0))
    nodes.append(helper.make_node("MatMul", ["pooled", "top"], ["features"]))
    return graph_of(
        nodes, [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2, 32])], constants, DIM
    )


def separable(tmp_path, graph):
    """A bundle whose classes lie along the direction in which features of noise vary most."""
    z = features(graph, SPEC, windows(2000))
    way = np.linalg.svd(z - z.mean(0), full_matrices=False)[2][0]
    means = z.mean(0) + np.outer([-1.5, 0.0, 1.5], way) * (z @ way).std()
    within = np.cov(z.T) / 4 + 1e-3 * np.eye(DIM)
    weight = np.linalg.solve(within, means.T).T
    prior = replace(
        tiny_prior(), means=means, within=within, generic_weight=weight, generic_bias=-0.5 * (weight * means).sum(1)
    )
    return write(tmp_path, "conv", graph, SPEC, prior)


@pytest.fixture
def fp32(tmp_path):
    return separable(tmp_path, conv_graph())


def judged(fp32, people=3, each=120):
    """People whose classes are what the shared head says of their clearest windows, in two repetitions."""
    bundle = bundles.load(fp32)
    x = np.random.default_rng(9).standard_normal((3 * people * each, 2, 32)).astype(np.float32)
    logits = shared_head(bundle.prior).logits(Runtime(bundle.backbone).run(x))
    lead = np.diff(np.sort(logits, axis=1)[:, -2:], axis=1)[:, 0]
    clear = np.sort(np.argsort(-lead, kind="stable")[: people * each])
    y = logits.argmax(1)[clear]
    return Labelled(x[clear], y, np.repeat(np.arange(people), each), np.tile(np.arange(each) % 2, people))


def test_a_variant_as_right_as_the_original_is_written(fp32, tmp_path):
    given = judged(fp32)
    path, found, task = quantise(fp32, tmp_path, windows(), given)
    old, new = bundles.load(fp32), bundles.load(path)
    assert new.manifest.precision == "int8"
    assert (new.manifest.version, old.manifest.version) == (2, 1)
    assert new.manifest.feature_space != old.manifest.feature_space
    record = new.manifest.provenance["precision"]
    assert record["from"]["digest"] == old.digest
    assert record["task"]["shared"] == task.shared == 1.0
    assert task.shared_int8 == pytest.approx(1.0, abs=0.011)
    assert record["task"]["people"] == task.people == 3
    assert found.min_cosine > 0.9
    card = (path / bundles.CARD).read_text()
    assert f"Right in fp32 and int8: the shared head 100.00% and {task.shared_int8:.2%}" in card
    z = Runtime.of(new, max_batch=8).run(given.x[:50])
    right = (shared_head(new.prior).logits(z).argmax(1) == given.y[:50]).mean()
    assert right > 0.9


def test_it_is_the_same_again(fp32, tmp_path):
    given = judged(fp32)
    first, _, one = quantise(fp32, tmp_path / "a", windows(), given)
    again, _, other = quantise(fp32, tmp_path / "b", windows(), given)
    assert one == other
    assert bundles.load(first).backbone == bundles.load(again).backbone


async def test_it_is_served(fp32, tmp_path):
    quantise(fp32, tmp_path, windows(), judged(fp32))
    app = create_app(Settings(models=tmp_path, store=f"sqlite+aiosqlite:///{tmp_path}/headway.db"))
    async with running(app) as client:
        config = (await client.get("/v2/models/conv/config")).json()
        assert config["parameters"]["precision"] == {"string_value": "int8"}
        said = await client.post("/v2/models/conv/predict", json={"inputs": windows(3).tolist()})
        assert said.status_code == 200
        assert said.json()["model_version"] == "2"


def test_activations_are_folded_and_the_first_and_last_layers_stay():
    model = onnx.load_from_string(deep_graph())
    quantiser = Quantiser(deep_graph(), SPEC, windows())
    layers = quantiser.layers()
    assert len(layers) == 6  # of seven convolutions and a projection
    made = onnx.load_from_string(quantiser.graph(layers))
    kinds = [node.op_type for node in made.graph.node]
    # The clips behind quantised convolutions are in the range that their outputs have; the first one is not behind one.
    assert (kinds.count("Clip"), sum(node.op_type == "Clip" for node in model.graph.node)) == (1, 7)
    by_name = {node.name: node for node in made.graph.node}
    kept = next(node for node in made.graph.node if node.op_type == "Conv" and node.name not in layers)
    assert kept.input[0] == "input"
    assert not any(value.endswith("_DequantizeLinear_Output") for value in kept.input)
    assert all(by_name[name].input[1].endswith("_DequantizeLinear_Output") for name in layers)
    projection = next(node for node in made.graph.node if node.op_type in ("MatMul", "Gemm"))
    assert not any(value.endswith("_DequantizeLinear_Output") for value in projection.input)


def test_a_bounded_activation_takes_a_range_of_its_own():
    """What a clip cuts off costs no steps: far wider inputs give features as close."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((200, 2, 32)).astype(np.float32)
    model = onnx.load_from_string(deep_graph(layers=3))
    for tensor in model.graph.initializer:
        if tensor.name == "high":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.5), "high"))
        if tensor.name == "b1":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([-200, *[0.2] * 6, 200], np.float32), "b1"))
    graph = model.SerializeToString()
    quantiser = Quantiser(graph, SPEC, x)
    exact, near = features(graph, SPEC, x), features(quantiser.graph(quantiser.layers()), SPEC, x)
    assert np.abs(near - exact).max() < 0.05 * exact.std()


def test_layers_that_err_most_stay_in_fp32(tmp_path):
    fp32 = separable(tmp_path, deep_graph(loud=2))
    path, _, task = quantise(fp32, tmp_path, windows(), judged(fp32))
    how = bundles.load(path).manifest.provenance["precision"]["how"]
    assert how.endswith("4 of 6 layers in 8 bits, without those that err most")
    assert task.shared_int8 >= 0.99
    graph = bundles.load(fp32).backbone
    quantiser = Quantiser(graph, SPEC, windows())
    names = quantiser.layers()
    assert set(quantiser.by_error(names)[:2]) == {names[1], names[2]}


def test_a_variant_that_is_wrong_too_often_is_refused_with_numbers(tmp_path):
    # One loud window among those that ranges are taken from: all others fall into one step.
    fp32 = separable(tmp_path, deep_graph())
    loud = windows()
    loud[0] *= 1e4
    with pytest.raises(
        PrecisionError, match=r"6 layers in 8 bits: accuracy falls by \d\S*%, 1% is allowed.*4 of 6 layers"
    ):
        quantise(fp32, tmp_path, loud, judged(fp32))
    assert bundles.versions(tmp_path / "conv") == [1]


def test_what_cannot_be_converted(fp32, tmp_path):
    given = judged(fp32)
    with pytest.raises(PrecisionError, match=r"needs 64 windows to take ranges from .* there are 20 and 360"):
        quantise(fp32, tmp_path, windows(20), given)
    path, _, _ = quantise(fp32, tmp_path, windows(), given)
    with pytest.raises(PrecisionError, match="is int8; only fp32"):
        quantise(path, tmp_path, windows(), given)


def test_the_command_says_what_it_needs(fp32, tmp_path):
    line = ["bundle", "convert", str(fp32), "--models", str(tmp_path), "--precision"]
    for options, sentence in (
        (["int8"], "int8 needs --data"),
        (["int8", "--data", str(tmp_path)], "int8 needs --held-out"),
        (["int4"], "there are: fp16, int8"),
    ):
        done = run(*line, *options)
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode not in (0, None)
        assert sentence in said
        assert "Traceback" not in said
