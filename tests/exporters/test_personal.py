"""A head behind a backbone's graph: any ONNX reader takes it, and it computes what the two do."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from exporters import bundle as bundles
from exporters.gate import drawn_heads
from exporters.personal import GraphError, PlacedHead, standalone
from models.heads.head import Head, softmax
from service.config import ZOO
from tests.tiny import CHANNELS, DIM, LENGTH, tiny_graph


def run(graph, x):
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: x}), strict=True))


@settings(max_examples=25, deadline=None)
@given(
    classes=st.integers(2, 300), rows=st.integers(1, 9), scale=st.sampled_from((1e-3, 1.0, 50.0)), seed=st.integers(0)
)
def test_it_computes_backbone_and_head(classes, rows, scale, seed):
    rng = np.random.default_rng(seed)
    head = Head(scale * rng.standard_normal((classes, DIM)), scale * rng.standard_normal(classes))
    x = rng.standard_normal((rows, CHANNELS, LENGTH)).astype(np.float32)
    graph = standalone(tiny_graph(), [PlacedHead(head)], {"model": "tiny", "labels": '["Å", "b"]'})
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    out = run(graph, x)
    features = x.reshape(rows, -1).reshape(rows, DIM, 2).sum(2)
    logits = head.logits(features)
    assert list(out) == ["features", "logits", "probabilities", "label"]
    assert np.allclose(out["features"], features, atol=1e-5)
    assert np.allclose(out["logits"], logits, atol=1e-5 * max(1.0, np.abs(logits).max()))
    assert np.allclose(out["probabilities"], softmax(logits), atol=1e-5 * max(1.0, scale))
    assert out["label"].dtype == np.int64
    assert (out["label"] == out["logits"].argmax(1)).all()


def test_the_backbone_is_as_it_was_and_properties_say_whose_it_is():
    backbone = onnx.load_from_string(tiny_graph())
    model = onnx.load_from_string(
        standalone(tiny_graph(), [PlacedHead(Head(np.eye(3, DIM), np.zeros(3)))], {"model": "tiny", "a": ""})
    )
    assert {p.key: p.value for p in model.metadata_props} == {"headway.model": "tiny", "headway.a": ""}
    assert model.opset_import == backbone.opset_import
    assert list(model.graph.node)[: len(backbone.graph.node)] == list(backbone.graph.node)
    assert model.graph.input == backbone.graph.input
    assert model.graph.output[0] == backbone.graph.output[0]
    assert [d.dim_value for d in model.graph.output[2].type.tensor_type.shape.dim] == [0, 3]


def test_names_that_the_backbone_uses_are_left_to_it():
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["logits"]),
            helper.make_node("Identity", ["logits"], ["head.logits"]),
            helper.make_node("Identity", ["head.logits"], ["label"]),
        ],
        "named",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 2, 2])],
        [helper.make_tensor_value_info("label", TensorProto.FLOAT, ["n", 4])],
    )
    backbone = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    made = standalone(backbone.SerializeToString(), [PlacedHead(Head(np.eye(2, 4), np.zeros(2)))], {})
    onnx.checker.check_model(onnx.load_from_string(made), full_check=True)
    x = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    out = run(made, x)
    assert list(out) == ["label", "head.head.logits", "probabilities", "head.label"]
    assert out["head.head.logits"].tolist() == [[0.0, 1.0]]
    assert out["head.label"].tolist() == [1]


def test_features_of_half_precision_are_cast():
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["features"])],
        "half",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT16, ["batch", 2, 2])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT16, ["batch", 4])],
    )
    backbone = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    made = standalone(backbone.SerializeToString(), [PlacedHead(Head(np.eye(2, 4), np.ones(2)))], {})
    onnx.checker.check_model(onnx.load_from_string(made), full_check=True)
    out = run(made, np.full((2, 2, 2), 0.5, np.float16))
    assert out["logits"].dtype == np.float32
    assert out["logits"].tolist() == [[1.5, 1.5]] * 2


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\xff" * 40, tiny_graph()[:-30], b"\x3a\x00"])
def test_what_is_no_graph_is_refused(data):
    with pytest.raises(GraphError, match="backbone"):
        standalone(data, [PlacedHead(Head(np.eye(2, 4), np.zeros(2)))], {})


def test_the_shipped_bundle_with_a_head():
    bundle = bundles.load(bundles.resolve(ZOO / "semg-myo"))
    rng = np.random.default_rng(1)
    x = (20 * rng.standard_normal((64, 8, 52))).astype(np.float32)
    (head,) = drawn_heads(bundle.prior, 1, rng)
    made = standalone(bundle.backbone, [PlacedHead(head)], {})
    onnx.checker.check_model(onnx.load_from_string(made), full_check=True)
    out = run(made, x)
    logits = (out["features"] @ head.weight.T.astype(np.float32)) + head.bias.astype(np.float32)
    assert np.array_equal(out["features"], run(bundle.backbone, x)["features"])
    assert np.abs(out["probabilities"] - softmax(logits)).max() < 1e-5


def test_several_outputs_stand_behind_one_graph():
    rng = np.random.default_rng(2)
    shapes = (3, DIM), (2, DIM), (5, 2)
    first, other, third = (Head(rng.standard_normal(shape), rng.standard_normal(shape[0])) for shape in shapes)
    columns = np.array([0, 3])
    heads = [
        PlacedHead(first),
        PlacedHead(other, "angles", targets=True),
        PlacedHead(third, "head", columns=columns),  # whose tensors could be taken for the first one's
    ]
    made = standalone(tiny_graph(), heads, {})
    onnx.checker.check_model(onnx.load_from_string(made), full_check=True)
    out = run(made, rng.standard_normal((6, CHANNELS, LENGTH)).astype(np.float32))
    z = out["features"]
    names = ["features", "logits", "probabilities", "label", "angles.value"]
    assert list(out) == [*names, "head.logits", "head.probabilities", "head.label"]
    assert np.allclose(out["logits"], first.logits(z), atol=1e-5)
    assert np.allclose(out["angles.value"], other.logits(z), atol=1e-5)
    assert np.allclose(out["head.probabilities"], softmax(third.logits(z[:, columns])), atol=1e-5)
    assert (out["head.label"] == out["head.logits"].argmax(1)).all()
