"""FP16 variants: served only when features are close, and in the same feature space only when heads decide alike."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper

from exporters import bundle as bundles
from exporters.bundle import InputSpec
from exporters.gate import JudgedOutput, PrecisionError, compare, drawn_heads
from exporters.precision import convert, features, synthetic_windows
from service.app import create_app
from service.config import Settings
from service.engine.runtime import Runtime
from tests.cli.test_cli import run
from tests.conftest import running
from tests.exporters.test_inputs import graph_of, write
from tests.tiny import DIM, tiny_prior

SPEC = InputSpec(shape=(-1, 2, 32), unit="counts", sample_rate=100.0, stride=8)


def conv_graph(gain: float = 1.0) -> bytes:
    """Two convolutions with seeded weights, bounded activations, a mean over time and a projection to 4 features."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["h1"], pads=[2, 2]),
        helper.make_node("Mul", ["h1", "gain"], ["scaled"]),
        helper.make_node("Div", ["scaled", "gain"], ["back"]),
        helper.make_node("Tanh", ["back"], ["a1"]),
        helper.make_node("Conv", ["a1", "w2", "b2"], ["h2"], strides=[2]),
        helper.make_node("Relu", ["h2"], ["a2"]),
        helper.make_node("ReduceMean", ["a2", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "w3"], ["features"]),
    ]
    w1, w2, w3 = ((rng.standard_normal(s) / 3).astype(np.float32) for s in ((16, 2, 5), (32, 16, 3), (32, DIM)))
    constants = {
        "w1": w1, "b1": np.zeros(16, np.float32), "w2": w2, "b2": np.zeros(32, np.float32), "w3": w3,
        "gain": np.float32(gain), "axes": np.array([2]),
    }  # fmt: skip
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2, 32])]
    return graph_of(nodes, inputs, constants, DIM)


def windows(n=400):
    return np.random.default_rng(5).standard_normal((n, 2, 32)).astype(np.float32)


@pytest.fixture
def fp32(tmp_path):
    return write(tmp_path, "conv", conv_graph(), SPEC, tiny_prior())


def test_a_variant_whose_heads_agree_keeps_the_feature_space(fp32, tmp_path):
    path, found = convert(fp32, tmp_path, windows=windows())
    old, new = bundles.load(fp32), bundles.load(path)
    assert path == tmp_path / "conv" / "2"
    assert found.same
    assert 0 < found.max_error < 0.05
    assert new.manifest.precision == "fp16"
    assert new.manifest.feature_space == old.manifest.feature_space
    record = new.manifest.provenance["precision"]
    assert record["from"]["digest"] == old.digest
    assert record["feature_space_kept"] is True
    assert record["decisions_agree"] == found.decisions >= 0.999
    assert len(new.backbone) < 0.8 * len(old.backbone)
    assert "recorded windows, every operator converted" in (path / bundles.CARD).read_text()
    z = Runtime.of(new, max_batch=8).run(windows())
    assert np.allclose(z, features(old.backbone, SPEC, windows()), atol=0.01)
    assert not np.array_equal(z, features(old.backbone, SPEC, windows()))


def test_a_variant_whose_heads_differ_gets_a_feature_space_of_its_own(tmp_path):
    # People so alike that a feature's last bits decide.
    prior = replace(
        tiny_prior(), means=tiny_prior().means * 1e-5, within=np.eye(DIM) * 1e-12, between=np.eye(DIM) * 1e-4
    )
    fp32 = write(tmp_path, "conv", conv_graph(), SPEC, prior)
    path, found = convert(fp32, tmp_path, windows=windows())
    assert found.close
    assert not found.same
    new = bundles.load(path)
    assert new.manifest.feature_space == bundles.feature_space(new.backbone)
    assert new.manifest.provenance["precision"]["feature_space_kept"] is False


def test_a_graph_that_overflows_is_converted_where_it_does_not(tmp_path):
    fp32 = write(tmp_path, "conv", conv_graph(gain=1e6), SPEC, tiny_prior())
    path, found = convert(fp32, tmp_path, windows=windows())
    assert found.same
    assert bundles.load(path).manifest.provenance["precision"]["how"].endswith("matrix products converted")


def test_a_graph_that_overflows_everywhere_is_refused_and_nothing_is_written(tmp_path):
    fp32 = write(tmp_path, "conv", conv_graph(), SPEC, tiny_prior())
    with pytest.raises(PrecisionError, match=r"cannot be served in fp16.*every operator.*matrix products"):
        convert(fp32, tmp_path / "out", windows=windows() * 1e6)
    assert not (tmp_path / "out").exists()


def test_what_is_not_fp32_or_too_little_is_refused(fp32, tmp_path):
    with pytest.raises(PrecisionError, match="needs 256 windows; there are 10"):
        convert(fp32, tmp_path, windows=windows(10))
    path, _ = convert(fp32, tmp_path, windows=windows())
    with pytest.raises(PrecisionError, match="fp16 already"):
        convert(path, tmp_path)


def test_the_gate_sees_one_row_that_differs(rng):
    z = rng.standard_normal((500, DIM)).astype(np.float32)
    heads = [JudgedOutput("", tiny_prior(), (), drawn_heads(tiny_prior(), 4, rng))]
    assert compare(z, z, heads).same
    swapped = z.copy()
    swapped[7] = -5 * z[7]
    assert not compare(z, swapped, heads).close
    swapped[7] = np.nan
    assert not compare(z, swapped, heads).close


def test_synthetic_windows_cover_an_integer_type(rng):
    x = synthetic_windows(InputSpec(datatype="INT8", shape=(-1, 3, 16), unit="levels"), 50, rng)
    assert (x.dtype, x.min(), x.max()) == (np.int8, -128, 127)


async def test_a_users_head_serves_in_both_precisions(fp32, tmp_path):
    store = f"sqlite+aiosqlite:///{tmp_path}/headway.db"
    convert(fp32, tmp_path / "models", windows=windows())
    write(tmp_path / "models", "conv", conv_graph(), SPEC, tiny_prior())
    async with running(create_app(Settings(models=tmp_path / "models", store=store))) as client:
        rows = windows(30)
        body = {"inputs": rows.tolist(), "labels": ["rest", "fist", "open"] * 10, "activate": "always"}
        answer = await client.post("/v2/models/conv/users/ann/calibrations", json=body)
        assert answer.status_code in (200, 201), answer.text
        kinds = []
        for version in (1, 2):
            url = f"/v2/models/conv/versions/{version}/infer"
            sent = {"name": "input", "datatype": "FP32", "shape": [1, 2, 32], "data": rows[0].ravel().tolist()}
            told = (await client.post(url, json={"inputs": [sent], "parameters": {"user_id": "ann"}})).json()
            kinds.append((told["model_version"], told["parameters"]["head"]))
        assert kinds == [("1", "personal"), ("2", "personal")]


def test_the_command_says_what_the_gate_measured(fp32, tmp_path):
    done = run("bundle", "convert", str(fp32), "--models", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "1024 synthetic windows, 17 heads" in done.stdout
    refused = run("bundle", "convert", str(fp32), "--models", str(tmp_path / "out"), "--precision", "int4")
    assert refused.returncode != 0
    assert "there are: fp16, int8" in refused.stderr
