"""The speaker encoder against the definition of Resemblyzer's `embed_utterance`, and against the package itself."""

import importlib.util
import math

import numpy as np
import pytest
import torch

from models.backbones import BackboneError, create_encoder
from models.backbones.mel import MelConfig, mel_filters
from models.data.views import views

RANDOM = {"weights": False}
SECONDS = 4.0
SAMPLES = 64_000
# The eight largest of `VoiceEncoder("cpu").embed_utterance(normalize_volume(voice(44_000), -30, increase_only=True))`
# by Resemblyzer 0.1.4 and librosa 0.11.0
PLACES = [246, 36, 111, 168, 164, 248, 213, 42]
VALUES = [0.313515, 0.197927, 0.189216, 0.172667, 0.160157, 0.156528, 0.152996, 0.14134]
installed = pytest.mark.skipif(importlib.util.find_spec("resemblyzer") is None, reason="resemblyzer is not installed")


@pytest.fixture(scope="module")
def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_encoder("package:resemblyzer", {**RANDOM, "seconds": SECONDS})


def voice(samples, gain=0.01):
    """A hum of 120 Hz with its overtones, whose pitch and loudness waver."""
    t = np.arange(samples) / 16_000
    x = sum(np.sin(2 * np.pi * 120 * k * t + 3 * np.sin(2 * np.pi * 2 * t)) / k for k in range(1, 20))
    return (gain * x * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))).astype(np.float32)


def filled(clip, samples=SAMPLES):
    return torch.from_numpy(np.pad(clip, (0, samples - len(clip)))[None])


def features(encoder, x):
    with torch.no_grad():
        return encoder(x).numpy()[0]


def spectrogram(clip):
    """Frames `(t, 40)` by Fourier transforms: 25 ms every 10 ms, centred, silence beyond the ends."""
    padded = np.pad(clip.astype(np.float64), 200)
    window = np.hanning(401)[:400]
    frames = [np.fft.rfft(window * padded[i : i + 400]) for i in range(0, len(padded) - 399, 160)]
    return np.abs(np.array(frames)) ** 2 @ mel_filters(MelConfig(bands=40)).T


def by_definition(encoder, clip):
    """`embed_utterance` of Resemblyzer, in its own terms: `rate` 1.3 and `min_coverage` 0.75, without its VAD."""
    rms = math.sqrt(float(np.mean(clip.astype(np.float64) ** 2)))
    clip = clip * max(1.0, 10 ** (-30 / 20) / rms)
    frames, step = math.ceil((len(clip) + 1) / 160), round(16_000 / 1.3 / 160)
    starts = list(range(0, max(1, frames - 160 + step + 1), step))
    if len(starts) > 1 and (len(clip) - starts[-1] * 160) / 25_600 < 0.75:
        starts.pop()
    mels = spectrogram(np.pad(clip, (0, max(0, (starts[-1] + 160) * 160 - len(clip)))))
    with torch.no_grad():
        parts = encoder.network(torch.tensor(np.stack([mels[s : s + 160] for s in starts]), dtype=torch.float32))
    mean = parts.numpy().astype(np.float64).mean(0)
    return mean / np.linalg.norm(mean)


# A second piece begins at 12,320 samples and counts from 31,520 on, a third at 24,640 from 43,840 on.
@pytest.mark.parametrize("samples", [300, 16_000, 25_600, 31_519, 31_520, 43_839, 43_840, 63_999, 64_000])
def test_clips_of_any_length_have_the_features_of_the_definition(encoder, samples):
    clip = voice(samples)
    found = features(encoder, filled(clip))
    assert np.abs(found - by_definition(encoder, clip)).max() < 2e-6
    assert np.linalg.norm(found) == pytest.approx(1.0, abs=1e-5)


def test_soft_clips_are_raised_and_loud_ones_are_not_lowered(encoder):
    soft, softer, loud = (features(encoder, filled(voice(30_000, gain))) for gain in (1e-3, 1e-5, 0.3))
    assert np.abs(soft - softer).max() < 1e-5
    assert np.abs(loud - by_definition(encoder, voice(30_000, 0.3))).max() < 2e-6
    assert np.abs(loud - soft).max() > 1e-4


def test_silence_and_neighbours_do_no_harm(encoder):
    """A silent clip has features, and a batch with one leaves the others as they are."""
    x = torch.cat([filled(voice(30_000)), torch.zeros(1, SAMPLES)])
    with torch.no_grad():
        both = encoder(x).numpy()
    assert np.isfinite(both).all()
    assert np.abs(both[0] - features(encoder, x[:1])).max() < 1e-5


def test_views_of_a_clip_leave_the_silence_behind_it(encoder):
    made = views(filled(voice(30_000)).numpy(), encoder.input, 4)
    assert np.abs(made[1:, :30_000] - made[0, :30_000]).max() > 1e-4
    assert not made[:, 30_000:].any()


def test_taps_are_averaged_over_what_counts(encoder):
    """A filled-up clip of one piece: the second piece, silence only, must not come into the average."""
    clip = voice(25_600)
    short = create_encoder("package:resemblyzer", {**RANDOM, "seconds": 1.6})
    short.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        found = encoder.forward_taps(filled(clip), ["lstm", "linear"])
        alone = short.forward_taps(filled(clip, 25_600), ["lstm", "linear"])
    for name, value in alone.items():
        assert value.shape == (1, 256)
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_clips_too_short_for_a_piece_and_other_settings_are_refused():
    for settings in ({"seconds": 1.0}, {"rate": 8000.0}):
        with pytest.raises(BackboneError, match="cannot be built so"):
            create_encoder("package:resemblyzer", {**RANDOM, **settings})


def test_a_missing_or_damaged_package_is_a_sentence(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "resemblyzer" else found(name))
    with pytest.raises(BackboneError, match="needs: pip install --no-deps resemblyzer"):
        create_encoder("package:resemblyzer")
    monkeypatch.undo()
    (tmp_path / "resemblyzer").mkdir()
    (tmp_path / "resemblyzer" / "__init__.py").write_text("raise ImportError('its code is not to be run')")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "resemblyzer" / "pretrained.pt"
    other = {name: torch.zeros(3) for name in create_encoder("package:resemblyzer", RANDOM).network.state_dict()}
    for held in (
        b"",
        b"nothing of the kind",
        {"model_state": {"linear.bias": torch.zeros(256)}},
        {"model_state": other},
    ):
        file.write_bytes(held) if isinstance(held, bytes) else torch.save(held, file)
        with pytest.raises(BackboneError, match=r"pretrained\.pt does not hold the weights"):
            create_encoder("package:resemblyzer")


@installed
def test_with_its_weights_features_are_those_of_the_package():
    found = features(create_encoder("package:resemblyzer"), filled(voice(44_000)))
    assert np.argsort(-found)[:8].tolist() == PLACES
    assert found[PLACES].tolist() == pytest.approx(VALUES, abs=2e-6)


@installed
@pytest.mark.filterwarnings("ignore")
def test_features_are_those_that_the_package_computes_here():
    pytest.importorskip("librosa")
    pytest.importorskip("webrtcvad")
    resemblyzer = pytest.importorskip("resemblyzer")
    own, theirs = create_encoder("package:resemblyzer"), resemblyzer.VoiceEncoder("cpu", verbose=False)
    for samples in (16_000, 31_520, 64_000):
        clip = voice(samples)
        expected = theirs.embed_utterance(resemblyzer.normalize_volume(clip, -30, increase_only=True))
        assert float(features(own, filled(clip)) @ expected) > 1 - 1e-6
