"""A log-mel front end joined with an encoder that is ONNX already: the example of Google's speech embedding."""

import json

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from examples.speech_embedding import MEL, joined
from models.backbones import create_encoder
from models.backbones.mel import LogMel

SAMPLES = 16_000


def loudest_of_each_band():
    """In place of the speech embedding: windows `(n, 76, 32, 1)` to `(n, 1, 1, 32)`, in an older opset."""
    nodes = [
        helper.make_node("ReduceMax", ["input_1"], ["loudest"], axes=[1], keepdims=1),
        helper.make_node("Transpose", ["loudest"], ["out"], perm=[0, 1, 3, 2]),
    ]
    taken = helper.make_tensor_value_info("input_1", TensorProto.FLOAT, ["n", 76, 32, 1])
    given = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 1, 1, 32])
    graph = helper.make_graph(nodes, "embedding", [taken], [given])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


def test_samples_become_the_mean_over_windows_of_the_spectrogram(tmp_path):
    graph, spec = joined(loudest_of_each_band(), SAMPLES / MEL.rate)
    (tmp_path / "speech.onnx").write_bytes(graph)
    (tmp_path / "speech.json").write_text(json.dumps({"input": spec.model_dump(mode="json")}))
    encoder = create_encoder(f"onnx:{tmp_path}/speech.onnx")
    assert encoder.num_features == 32
    rng = np.random.default_rng(0)
    loudness = np.array([[0.5], [0.01], [0.1]]) * np.linspace(0.1, 1, SAMPLES)
    x = torch.from_numpy((rng.standard_normal((3, SAMPLES)) * loudness).astype(np.float32))
    frames = LogMel(MEL, span=8.0)(x).numpy() + 2
    assert frames.shape == (3, 32, 97)
    expected = np.mean([frames[:, :, i : i + 76].max(2) for i in (0, 8, 16)], 0)
    assert np.abs(encoder(x).numpy() - expected).max() < 1e-4
    assert np.abs(encoder(x[1:2]).numpy() - expected[1:2]).max() < 1e-4, "clips do not depend on each other"
    assert onnx.load_from_string(graph).graph.input[0].name == "input"
