"""WAV files to samples at the model's rate, by soundfile."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from exporters.input_spec import InputSpec
from exporters.media_spec import AudioMedia
from models.data.media.reader import MediaError, MediaUnavailable

__all__ = ["AudioReader"]

FORMATS = ("WAV", "WAVEX", "RF64")


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
            MediaError: not a WAV file, damaged, empty, or longer than the model takes.
        """
        rows = np.zeros((len(items), self._length), np.float32)
        for i, item in enumerate(items):
            samples = self._one(item.encode() if isinstance(item, str) else item, i)[: self._length]
            rows[i, : len(samples)] = samples
        return rows

    def _one(self, data: bytes, number: int) -> NDArray[np.float32]:
        try:
            with self._soundfile.SoundFile(io.BytesIO(data)) as file:
                if file.format not in FORMATS:
                    raise MediaError(f"sound {number} is {file.format}; a WAV file was expected")
                seconds = file.frames / file.samplerate
                if seconds > self._media.max_seconds:
                    raise MediaError(
                        f"sound {number} is {seconds:.1f} s long; at most {self._media.max_seconds:g} s are taken"
                    )
                rate, samples = file.samplerate, file.read(dtype="float32", always_2d=True).mean(1)
        except MediaError:
            raise
        except self._soundfile.LibsndfileError as e:
            raise MediaError(f"sound {number} is not a WAV file, or is damaged: {e}") from e
        if not len(samples) or not np.isfinite(samples).all():
            raise MediaError(f"sound {number} has no samples, or some that are not finite")
        return resampled(samples, rate, self._rate)


def resampled(samples: NDArray[np.float32], rate: float, wanted: float) -> NDArray[np.float32]:
    """Change the rate of samples `(t,)` from `rate` to `wanted`, both in Hz, by their spectrum: nothing aliases."""
    if rate == wanted:
        return samples
    n = len(samples)
    m = max(1, round(n * wanted / rate))
    spectrum = np.fft.rfft(samples.astype(np.float64))
    return np.asarray(np.fft.irfft(spectrum[: m // 2 + 1], m) * (m / n), np.float32)
