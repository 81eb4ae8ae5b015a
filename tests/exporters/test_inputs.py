"""Bundles of other inputs than a signal in FP32: images in UINT8, many features, windows of different lengths."""

import io

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters import bundle as bundles
from exporters.bundle import InputSpec, Padding
from exporters.card import model_card
from models.heads import prior as priors
from models.heads.prior import Prior
from service.app import create_app
from service.commands.welcome import welcome
from service.config import Settings
from tests.conftest import running
from tests.tiny import LABELS, tiny_manifest, tiny_prior

IMAGE = InputSpec(name="image", datatype="UINT8", shape=(-1, 3, 224, 224), unit="grey levels", modality="image")
D = 1280


def image_graph() -> bytes:
    """Features are the image's 4x4 means by channel, repeated to 1,280: the normalisation is in the graph."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["unit"]),
        helper.make_node("AveragePool", ["unit"], ["pooled"], kernel_shape=[56, 56], strides=[56, 56]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["features"]),
    ]
    weight = np.tile(np.eye(48, dtype=np.float32), (1, 27))[:, :D]
    return graph_of(
        nodes,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 3, 224, 224])],
        {"scale": np.float32(255), "weight": weight},
        D,
    )


def summing_graph() -> bytes:
    """Features `(n, 4)` of windows `(n, 2, T)`: sums of the true samples, by channel, twice."""
    nodes = [
        helper.make_node("Shape", ["input"], ["shape"]),
        helper.make_node("Gather", ["shape", "two"], ["length"]),
        helper.make_node("Range", ["zero", "length", "one"], ["at"]),
        helper.make_node("Unsqueeze", ["lengths", "axes"], ["ends"]),
        helper.make_node("Less", ["at", "ends"], ["true"]),
        helper.make_node("Cast", ["true"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "one_axis"], ["wide"]),
        helper.make_node("Mul", ["input", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axes2"], ["sums"], keepdims=0),
        helper.make_node("Concat", ["sums", "sums"], ["features"], axis=1),
    ]
    constants = {
        "two": np.int64(2), "zero": np.int64(0), "one": np.int64(1), "axes": np.array([1]), "one_axis": np.array([1]),
        "axes2": np.array([2]),
    }  # fmt: skip
    inputs = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2, "time"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]),
    ]
    return graph_of(nodes, inputs, constants, 4)


def graph_of(nodes, inputs, constants, dim) -> bytes:
    output = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", dim])
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, [output], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def image_prior() -> Prior:
    means = np.zeros((3, D))
    means[1, :640], means[2, 640:] = 1, 1
    eye = np.eye(D)
    return Prior(
        labels=LABELS, generic_weight=means, generic_bias=-0.5 * (means**2).sum(1), means=means, within=eye,
        between=eye, repetition=0.1 * eye, whitening=eye, hyper=tiny_prior().hyper,
    )  # fmt: skip


def write(models, name, graph, spec, prior):
    manifest = tiny_manifest(name, graph=graph).model_copy(update={"input": spec, "feature_dim": prior.dim})
    card = model_card(manifest).encode()
    return bundles.write(
        models, manifest, {bundles.BACKBONE: graph, bundles.PRIOR: priors.to_bytes(prior), bundles.CARD: card}
    )


@pytest.fixture
async def image_client(tmp_path):
    write(tmp_path / "models", "image", image_graph(), IMAGE, image_prior())
    settings = Settings(models=tmp_path / "models", store=f"sqlite+aiosqlite:///{tmp_path}/headway.db", max_batch=2)
    async with running(create_app(settings)) as client:
        yield client


async def infer(client, data, datatype):
    body = {
        "inputs": [{"name": "image", "datatype": datatype, "shape": list(data.shape), "data": data.ravel().tolist()}]
    }
    return await client.post("/v2/models/image/infer", json={**body, "outputs": [{"name": "features"}]})


async def test_images_in_uint8_are_served_with_1280_features(image_client, rng):
    metadata = (await image_client.get("/v2/models/image")).json()
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 3, 224, 224]}]
    assert metadata["parameters"]["sample_rate"] is None
    x = rng.integers(0, 256, (1, 3, 224, 224), np.uint8)
    answer = await infer(image_client, x, "UINT8")
    assert answer.status_code == 200, answer.text
    features = np.array(answer.json()["outputs"][0]["data"])
    means = x.reshape(3, 4, 56, 4, 56).mean((2, 4)).ravel() / 255
    assert np.allclose(features, np.tile(means, 27)[:D], atol=1e-5)


async def test_an_npy_image_is_predicted_and_values_that_are_not_uint8_are_refused(image_client, rng):
    x = rng.integers(0, 256, (3, 224, 224), np.uint8)
    for data, status in ((x, 200), (x.astype(np.int64), 200), (x.astype(float) + 0.5, 422), (x.astype(int) + 300, 422)):
        file = io.BytesIO()
        np.save(file, data)
        answer = await image_client.post(
            "/v2/models/image/predict", content=file.getvalue(), headers={"content-type": "application/x-npy"}
        )
        assert answer.status_code == status, answer.text
    assert "not UINT8, first in row 0" in answer.text


async def test_integers_of_another_width_are_taken_when_the_input_holds_them(image_client, rng):
    x = np.zeros((1, 3, 224, 224), np.int16)
    assert (await infer(image_client, x, "INT16")).status_code == 200
    answer = await infer(image_client, x - 1, "INT16")
    assert answer.status_code == 422
    assert "not UINT8, first in row 0" in answer.text


def test_windows_of_different_lengths_run_with_their_true_lengths(rng):
    from service.engine.runtime import Runtime, RuntimeUnavailable

    padding = Padding(axis=2, multiple_of=8, maximum=64, lengths="lengths")
    runtime = Runtime(summing_graph(), padding=padding)
    x = np.full((2, 2, padding.padded(11)), 5, np.float32)
    assert x.shape == (2, 2, 16)
    assert runtime.run(x, np.array([11, 3]))[:, 0].tolist() == [55, 15]
    assert runtime.run(x)[:, 0].tolist() == [80, 80]
    with pytest.raises(RuntimeUnavailable, match="one input beside"):
        Runtime(summing_graph())
    with pytest.raises(RuntimeUnavailable, match="no input 'sizes' for lengths; it has input, lengths"):
        Runtime(summing_graph(), padding=padding.model_copy(update={"lengths": "sizes"}))


def test_a_variable_axis_needs_its_padding():
    padding = Padding(axis=2, multiple_of=8, maximum=64)
    spec = InputSpec(shape=(-1, 2, -1), unit="counts", padding=padding)
    assert spec.sized() == (2, 8)
    assert spec.misfit((3, 2, 64)) is None
    assert "1 to 64 long in axis 2, not 65" in spec.misfit((3, 2, 65))
    assert "[rows, 2, -1]" in spec.misfit((3, 3, 64))
    for shape, given in (((-1, 2, -1), None), ((-1, 2, 8), padding), ((-1, -1, -1), padding)):
        with pytest.raises(ValueError, match="needs a padding"):
            InputSpec(shape=shape, unit="counts", padding=given)
    with pytest.raises(ValueError, match="must begin with -1"):
        InputSpec(shape=(2, 4), unit="counts")
    with pytest.raises(ValueError, match="multiple of"):
        Padding(axis=2, multiple_of=7, maximum=64)


def test_a_bundle_with_a_variable_axis_is_written_and_loaded(tmp_path):
    spec = InputSpec(shape=(-1, 2, -1), unit="counts", padding=Padding(axis=2, maximum=64, lengths="lengths"))
    folder = write(tmp_path, "long", summing_graph(), spec, tiny_prior())
    assert bundles.load(folder).manifest.input == spec


def test_the_welcome_shows_no_signal_to_copy_for_an_image(tmp_path):
    write(tmp_path, "image", image_graph(), IMAGE, image_prior())
    told = welcome("http://h:1", "http://h:1/metrics", tmp_path, ["image"])
    assert "curl -s http://h:1/v2/models/image\n" in told
    assert "python3" not in told
