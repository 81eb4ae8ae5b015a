"""What every backbone must hold, whatever it is: shapes, finiteness, JSON configuration, export to ONNX."""

import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from models.backbones import Backbone, BackboneError, create, names

SETTINGS = {
    "signal": [
        {"channels": 8, "length": 52, "fs": 200.0, "classes": 7, "components": 3},
        {"channels": 10, "length": 260, "fs": 1000.0, "classes": 11, "personal": 32},
        {"channels": 6, "length": 100, "fs": 50.0, "classes": 7, "modality": "imu"},
        {"channels": 1, "length": 40, "fs": 100.0, "classes": 2, "learned": False},
    ]
}
KNOWN = [name for name in names() if name != "probe"]  # which is around another
CASES = [pytest.param(name, s, id=f"{name}-{s['channels']}ch") for name in KNOWN for s in SETTINGS[name]]
each = pytest.mark.parametrize(("name", "settings"), CASES)


def build(name, settings):
    torch.manual_seed(0)
    backbone = create(name, settings).eval()
    for _, buffer in backbone.named_buffers():
        if buffer.dtype == torch.float32 and not buffer.any():
            buffer.normal_(std=0.1)  # what training would fill in
    return backbone


def raw(settings, n, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((n, settings["channels"], settings["length"]))).astype(np.float32)


@each
def test_features_have_the_shape_that_it_says(name, settings):
    backbone = build(name, settings)
    assert isinstance(backbone, Backbone)
    with torch.no_grad():
        z = backbone.forward_features(torch.from_numpy(raw(settings, 3)))
    assert z.shape == (3, backbone.num_features)
    assert z.dtype == torch.float32


@each
def test_its_configuration_in_json_rebuilds_it(name, settings):
    backbone = build(name, settings)
    again = create(
        name, type(backbone.default_cfg).model_validate_json(backbone.default_cfg.model_dump_json()).model_dump()
    )
    again.load_state_dict(backbone.state_dict())
    x = torch.from_numpy(raw(settings, 2))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), backbone(x), rtol=0, atol=0)


@each
@pytest.mark.parametrize("kind", ["zeros", "constant", "one flat channel", "huge", "tiny", "offset"])
def test_features_are_finite_for_any_finite_input(name, settings, kind):
    x = raw(settings, 2)
    if kind == "one flat channel":
        x[:, 0] = 3.0
    else:
        x = {"zeros": 0 * x, "constant": 0 * x + 7, "huge": x * 1e30, "tiny": x * 1e-30, "offset": x + 1e6}[kind]
    with torch.no_grad():
        assert torch.isfinite(build(name, settings)(torch.from_numpy(x.astype(np.float32)))).all()


@each
def test_rows_do_not_depend_on_each_other(name, settings):
    backbone, x = build(name, settings), torch.from_numpy(raw(settings, 5))
    with torch.no_grad():
        torch.testing.assert_close(backbone(x)[3:4], backbone(x[3:4]), rtol=1e-5, atol=1e-5)


@each
def test_onnx_runtime_computes_the_same_features_for_any_batch(name, settings):
    backbone = build(name, settings)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            backbone,
            (torch.zeros(2, settings["channels"], settings["length"]),),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            opset_version=20,
            input_names=["input"],
            output_names=["features"],
            verbose=False,
        )
    model = program.model_proto
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for n in (1, 7, 64):
        # Integers, as armbands send them: samples may equal the window's mean exactly.
        x = np.round(raw(settings, n, scale=4.0, seed=n))
        with torch.no_grad():
            expected = backbone(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(session.run(None, {"input": x})[0], expected, rtol=1e-4, atol=1e-4)


def test_an_unknown_name_or_setting_is_a_sentence():
    with pytest.raises(BackboneError, match=r"no backbone named 'nope'; there are: .*signal"):
        create("nope")
    with pytest.raises(BackboneError, match="cannot be built"):
        create("signal", channels=8)
