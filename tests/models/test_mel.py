"""Mel spectrograms against librosa's: its numbers are stored, for it is not a dependency (librosa 0.11.0)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.backbones.mel import LogMel, Mel, MelConfig, hz_to_mel, mel_filters, mel_to_hz

BANDS, FRAMES = np.array([0, 5, 20, 31]), np.array([0, 1, 10, 46])
HTK = {"scale": "htk", "by_width": False, "low": 20.0, "high": 7600.0, "edges": "none"}
LONGER = {"fft": 512, "bands": 32, "low": 60.0, "high": 3800.0, "edges": "none"}
# librosa.feature.melspectrogram(y=sweep(), sr=16000, n_fft=400, hop_length=160, n_mels=40, …) at BANDS and FRAMES
LIBROSA = {
    # pad_mode="constant"
    "zeros": (51, {},
              [[0.14189, 0.0950665, 3.9566e-09, 7.10251e-12], [8.11522e-05, 1.03476e-05, 1.0686e-06, 1.88312e-11],
               [3.01382e-07, 3.04788e-09, 4.63698e-09, 9.92854e-10],
               [1.49882e-08, 1.36903e-10, 2.2637e-12, 0.00149331]]),
    # pad_mode="reflect"
    "reflect": (51, {"edges": "reflect"},
                [[0.224112, 0.0953859, 3.9566e-09, 7.10251e-12], [0.000322624, 1.74364e-05, 1.0686e-06, 1.88312e-11],
                 [1.20527e-06, 1.1929e-08, 4.63698e-09, 9.92854e-10],
                 [5.99514e-08, 5.47547e-10, 2.2637e-12, 0.00149331]]),
    # htk=True, norm=None, fmin=20, fmax=7600, center=False
    "htk": (48, HTK, [[0.506442, 0.00995847, 1.13025e-06, 2.09561e-09], [0.222791, 13.8305, 7.65446e-06, 3.17405e-09],
                      [2.26261e-09, 4.25367e-09, 1.96507e-06, 1.30685e-07],
                      [1.71479e-11, 2.69055e-11, 8.2172e-10, 0.117511]]),
    # n_fft=512, win_length=400, n_mels=32, fmin=60, fmax=3800, center=False
    "longer": (47, LONGER, [[0.198715, 0.00571967, 1.17414e-08, 6.74738e-11],
                            [2.34899e-05, 0.00135698, 4.78073e-07, 6.45723e-11],
                            [6.51432e-11, 1.86383e-10, 7.09382e-08, 4.99645e-10],
                            [3.97211e-13, 1.17548e-12, 1.35387e-11, 11.4259]]),
}  # fmt: skip
# librosa.power_to_db(…, top_db=80) of the first
DECIBELS = [[-8.4805, -10.2197, -65.5742, -65.5742], [-40.907, -49.8516, -59.7118, -65.5742],
            [-65.2088, -65.5742, -65.5742, -65.5742], [-65.5742, -65.5742, -65.5742, -28.2585]]  # fmt: skip


def sweep(samples=8000):
    """A tone that rises from 80 Hz to 3.9 kHz and grows louder."""
    t = np.arange(samples)
    return (np.sin(2 * np.pi * (0.005 * t + 1.5e-5 * t * t)) * np.linspace(0.05, 0.8, samples)).astype(np.float32)


@pytest.mark.parametrize("case", LIBROSA)
def test_it_is_librosas_mel_spectrogram(case):
    frames, settings, expected = LIBROSA[case]
    cfg = MelConfig(**{"bands": 40, **settings})
    found = Mel(cfg)(torch.from_numpy(sweep())[None]).numpy()
    assert found.shape == (1, cfg.bands, frames)
    assert cfg.frames(8000) == frames
    # Far below a frame's loudest band what is left is rounding, librosa's too.
    assert found[0][np.ix_(BANDS, FRAMES)] == pytest.approx(np.array(expected), rel=1e-4, abs=1e-7)


def test_its_logarithm_is_librosas_decibels():
    x = torch.from_numpy(sweep())[None]
    found = 10 * LogMel(MelConfig(bands=40), span=8.0)(x).numpy()[0]
    assert found[np.ix_(BANDS, FRAMES)] == pytest.approx(np.array(DECIBELS), abs=1e-3)
    assert float(LogMel(MelConfig(bands=40))(x).min()) == -10


def test_a_clips_span_is_its_own():
    """The quiet one of two clips keeps what the loud one would have buried."""
    x = torch.from_numpy(np.stack([sweep(), sweep() * 1e-4]))
    log = LogMel(MelConfig(bands=40), span=2.0)
    both, alone = log(x), log(x[1:])
    torch.testing.assert_close(both[1:], alone)
    assert float(both[1].max() - both[1].min()) <= 2.0 + 1e-5


def test_filters_are_librosas():
    # librosa.filters.mel(sr=22050, n_fft=512, n_mels=64)
    filters = mel_filters(MelConfig(rate=22050.0, frame=512, bands=64))
    assert filters.shape == (64, 257)
    assert filters.sum() == pytest.approx(1.4847847111134775)
    assert filters[0, :4].tolist() == pytest.approx([0.0, 0.01643472262597902, 0.006200415973100758, 0.0], abs=1e-12)
    assert filters[63].max() == pytest.approx(0.0017878725276024641)
    assert filters.argmax(1)[::16].tolist() == [1, 20, 47, 110]


def test_mel_scales_are_librosas():
    hz = np.array([0.0, 60.0, 999.0, 1000.0, 4000.0, 8000.0])
    assert hz_to_mel(hz).tolist() == pytest.approx([0.0, 0.9, 14.985, 15.0, 35.163760314616646, 45.245640471924965])
    assert hz_to_mel(hz[[1, 4]], "htk").tolist() == pytest.approx([92.681858131657, 2146.06452750619])


@given(st.floats(0, 24_000), st.sampled_from(["slaney", "htk"]))
def test_scales_can_be_turned_back(hz, scale):
    assert float(mel_to_hz(hz_to_mel(np.array(hz), scale), scale)) == pytest.approx(hz, abs=1e-6)


def test_bands_beyond_what_the_rate_holds_are_refused():
    for fields in ({"high": 9000.0}, {"low": 8000.0}, {"low": 500.0, "high": 400.0}):
        with pytest.raises(ValidationError, match="do not lie below half the rate, 16000"):
            MelConfig(**fields)
    with pytest.raises(ValidationError, match="400 samples does not fit in a transform of 256"):
        MelConfig(fft=256)


def test_it_has_no_weights():
    mel = LogMel(MelConfig())
    assert not mel.state_dict()
    assert not list(mel.parameters())
