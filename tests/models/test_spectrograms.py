"""Encoders of sound of transformers: what their networks are given is what transformers' own extractors would give."""

import warnings

import numpy as np
import pytest
import torch

from models.backbones import BackboneError, create_encoder
from tests.conformance.test_encoders import AST, RANDOM, WAV2VEC2, WHISPER

transformers = pytest.importorskip("transformers")
FULL = {"max_length": 1024, "num_mel_bins": 128}
LENGTHS = [400, 559, 560, 16_000, 50_001, 164_079, 164_080]
KINDS = {
    "noise": lambda t: 0.1 * np.random.default_rng(0).standard_normal(len(t)),
    "tone": lambda t: 0.5 * np.sin(2 * np.pi * 300 * t),
    "voice": lambda t: 0.05 + 0.01 * sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 20)) * np.cos(9 * t),
}


def clip(samples, kind="voice"):
    return KINDS[kind](np.arange(samples) / 16_000).astype(np.float32)


def filled(encoder, sound):
    return torch.from_numpy(np.pad(sound, (0, encoder.input.shape[1] - len(sound)))[None])


def extractor(kind, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a band so narrow that it has no bin: theirs, too
        return getattr(transformers, kind)(**settings)


@pytest.fixture(scope="module")
def whisper():
    return create_encoder("hf:whisper", {"config": {**WHISPER, "max_source_positions": 1500}, **RANDOM})


@pytest.mark.parametrize("samples", LENGTHS)
def test_a_spectrogram_transformer_is_given_what_its_extractor_gives(samples):
    encoder = create_encoder("hf:ast", {"config": {**AST, **FULL}, **RANDOM})
    assert encoder.input.shape == (-1, 164_080), "1,024 frames of 25 ms, one every 10 ms"
    theirs = extractor("ASTFeatureExtractor")
    for kind in KINDS:
        sound = clip(samples, kind)
        expected = theirs(sound, sampling_rate=16_000, return_tensors="np")["input_values"][0]
        found = encoder.spectrogram(filled(encoder, sound))[0].numpy()
        assert np.abs(found - expected).max() < 1e-4, kind


@pytest.mark.parametrize("samples", [1, 16_000, 480_000])
def test_whisper_is_given_what_its_extractor_gives(whisper, samples):
    assert whisper.input.shape == (-1, 480_000)
    theirs = extractor("WhisperFeatureExtractor", feature_size=WHISPER["num_mel_bins"])
    for kind in KINDS:
        sound = clip(samples, kind)
        expected = theirs(sound, sampling_rate=16_000, return_tensors="np")["input_features"][0]
        found = whisper.spectrogram(filled(whisper, sound))[0].numpy()
        assert np.abs(found - expected).max() < 1e-4, kind


@pytest.mark.parametrize("normalised", [True, False])
def test_raw_sound_is_normalised_where_the_models_extractor_does_so(tmp_path, normalised):
    settings = {key: value for key, value in WAV2VEC2.items() if key != "model_type"}
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**settings)).save_pretrained(tmp_path)
    theirs = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalised)
    theirs.save_pretrained(tmp_path)
    encoder = create_encoder(f"hf:{tmp_path}", {"seconds": 0.1})
    given = []
    encoder.network.register_forward_pre_hook(lambda _m, _a, kw: given.append(kw["input_values"]), with_kwargs=True)
    sound = clip(1600)
    with torch.no_grad():
        encoder(torch.from_numpy(sound[None]))
    expected = theirs(sound, sampling_rate=16_000, return_tensors="np")["input_values"][0]
    assert np.abs(given[0][0].numpy() - expected).max() < 1e-4


def test_features_of_a_folder_are_those_of_its_model(tmp_path):
    """Weights and the extractor's mean and deviation are the folder's, and come back from the recorded settings."""
    own = transformers.ASTConfig(**{key: value for key, value in AST.items() if key != "model_type"})
    model = transformers.ASTModel(own).eval()
    model.save_pretrained(tmp_path)
    theirs = extractor("ASTFeatureExtractor", mean=-6.8, std=5.5, max_length=64, num_mel_bins=32)
    theirs.save_pretrained(tmp_path)
    encoder, sound = create_encoder(f"hf:{tmp_path}"), clip(8000)
    x = filled(encoder, sound)
    with torch.no_grad():
        expected = model(**theirs(sound, sampling_rate=16_000, return_tensors="pt")).pooler_output
        assert float((encoder(x) - expected).abs().max()) < 1e-4
        again = create_encoder("hf:elsewhere", {**encoder.default_cfg.model_dump(exclude_none=True), **RANDOM})
        again.load_state_dict(encoder.state_dict())
        assert torch.equal(again(x), encoder(x))
    theirs.do_normalize = False
    theirs.save_pretrained(tmp_path)
    raw = create_encoder(f"hf:{tmp_path}").spectrogram(x)
    torch.testing.assert_close(raw, encoder.spectrogram(x) * 11 - 6.8, rtol=1e-4, atol=1e-4)


def test_whispers_encoder_is_the_models_without_its_decoder(tmp_path):
    own = transformers.WhisperConfig(**{key: value for key, value in WHISPER.items() if key != "model_type"})
    model = transformers.WhisperModel(own).eval()
    model.save_pretrained(tmp_path)
    encoder, sound = create_encoder(f"hf:{tmp_path}"), clip(8000)
    assert not any("decoder" in name for name, _ in encoder.named_parameters())
    x = filled(encoder, sound)
    with torch.no_grad():
        hidden = model.encoder(encoder.spectrogram(x)).last_hidden_state
        # Half a second is 25 positions of 20 ms.
        torch.testing.assert_close(encoder(x), hidden[:, :25].mean(1))


def test_a_folder_that_is_damaged_is_a_sentence(tmp_path):
    own = transformers.ASTConfig(**{key: value for key, value in AST.items() if key != "model_type"})
    transformers.ASTModel(own).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"mean": ')
    with pytest.raises(BackboneError, match=r"preprocessor_config\.json is not JSON"):
        create_encoder(f"hf:{tmp_path}")
    (tmp_path / "preprocessor_config.json").unlink()
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(BackboneError, match=r"The weights of '.*' cannot be loaded"):
        create_encoder(f"hf:{tmp_path}")


@pytest.mark.parametrize("config", [AST, WHISPER], ids=["ast", "whisper"])
def test_silence_has_features_and_does_not_touch_the_clip_before_it(config):
    longer = create_encoder("hf:any", {"config": config, **RANDOM})
    shorter = create_encoder("hf:any", {"config": config, "seconds": 0.4, **RANDOM})
    shorter.load_state_dict(longer.state_dict())
    sound = clip(5000)
    with torch.no_grad():
        torch.testing.assert_close(shorter(filled(shorter, sound)), longer(filled(longer, sound)))
        assert torch.isfinite(longer(filled(longer, sound[:0]))).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"seconds": 1.5}, "sees 0.025 to 1 s; seconds is 1.5"), ({"rate": 8000.0}, "takes sound of 16000 Hz")],
)
def test_what_it_cannot_see_is_refused(settings, words):
    with pytest.raises(BackboneError, match=words):
        create_encoder("hf:whisper", {"config": WHISPER, **settings, **RANDOM})
