"""WAV, FLAC and OGG files to samples at the model's rate, by soundfile."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.input_spec import InputSpec
from exporters.media_spec import AudioMedia
from models.data.media.reader import MediaError, MediaUnavailable

__all__ = ["AudioReader"]

SIGNATURES = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS")
"""First bytes of the files that are opened; libsndfile, which would try two dozen formats more, sees no others."""
MOST_SAMPLES = 24_000_000
"""Of all channels: a minute of 192 kHz stereo. Compressed silence is less than a thousandth of what it unpacks to."""
UNKNOWN = 2**62
"""What libsndfile has for the length of a file without one is beyond this."""


class AudioReader:
    """Reads sounds; rows `(n, samples)` float32 in [-1, 1]."""

    def __init__(self, spec: InputSpec, media: AudioMedia) -> None:
        try:
            import soundfile
        except ImportError as e:
            raise MediaUnavailable("sounds need soundfile: pip install 'headway[audio]'") from e
        self._soundfile, self._media = soundfile, media
        self._rate, self._length = spec.sample_rate, spec.shape[1]

    def read(self, items: Sequence[bytes | str]) -> NDArray[np.float32]:
        """Decode, mix down, resample, and cut or fill up.

        Raises:
            MediaError: not a WAV, FLAC or OGG file, damaged, empty, or longer than the model takes.
        """
        rows = np.zeros((len(items), self._length), np.float32)
        for i, item in enumerate(items):
            samples = self._one(item.encode() if isinstance(item, str) else item, i)[: self._length]
            rows[i, : len(samples)] = samples
        return rows

    def _one(self, data: bytes, number: int) -> NDArray[np.float32]:
        if data[:4] not in SIGNATURES:
            raise MediaError(f"sound {number} is not a WAV, FLAC or OGG file")
        try:
            with self._soundfile.SoundFile(io.BytesIO(data)) as file:
                self._check_size(file, number)
                stated, rate = file.frames, file.samplerate
                with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused below
                    samples = file.read(stated, dtype="float32", always_2d=True).mean(1)
        except self._soundfile.LibsndfileError as e:
            raise MediaError(f"sound {number} is damaged: {e.error_string}") from e
        if len(samples) < stated:
            raise MediaError(f"sound {number} is damaged: {len(samples):,} of its {stated:,} samples can be read")
        if not len(samples) or not np.isfinite(samples).all():
            raise MediaError(f"sound {number} has no samples, or some that are not finite")
        return resampled(samples, rate, self._rate)

    def _check_size(self, file: Any, number: int) -> None:
        """Refuse by its header a file that would become large; what it states is all that is decoded."""
        if file.frames >= UNKNOWN:
            raise MediaError(f"sound {number} does not say how long it is, as files that were written to a pipe")
        seconds, most = file.frames / file.samplerate, self._media.max_seconds
        if seconds > most:
            raise MediaError(f"sound {number} is {seconds:.1f} s long; at most {most:g} s are taken")
        if file.frames * file.channels > MOST_SAMPLES:
            raise MediaError(
                f"sound {number} has {file.frames:,} samples in each of {file.channels} channels; "
                f"at most {MOST_SAMPLES:,} in all are taken"
            )


def resampled(samples: NDArray[np.float32], rate: float, wanted: float) -> NDArray[np.float32]:
    """Change the rate of samples `(t,)` from `rate` to `wanted`, both in Hz, by their spectrum: nothing aliases."""
    if rate == wanted:
        return samples
    n = len(samples)
    m = max(1, round(n * wanted / rate))
    spectrum = np.fft.rfft(samples.astype(np.float64))
    return np.asarray(np.fft.irfft(spectrum[: m // 2 + 1], m) * (m / n), np.float32)
