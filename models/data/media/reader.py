"""What every reader of media does, and which one an input asks for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from exporters.input_spec import InputSpec
from exporters.media_spec import AudioMedia, ImageMedia, TextMedia

__all__ = ["MediaError", "MediaReader", "MediaUnavailable", "reader_of"]


class MediaError(ValueError):
    """An image, text or sound that cannot be read; the message says why and what would be right."""


class MediaUnavailable(RuntimeError):
    """A package that reading these media needs is not installed; the message names it."""


class MediaReader(Protocol):
    """Reads encoded media into rows of one model's input; safe to call from several threads."""

    def read(self, items: Sequence[bytes | str]) -> NDArray[Any]:
        """Return a row for each item, in the input's datatype; raises `MediaError` naming the item that is wrong."""


def reader_of(spec: InputSpec, read_file: Callable[[str], bytes] | Mapping[str, bytes]) -> MediaReader | None:
    """Return the reader of an input's media; None for an input of tensors only.

    `read_file` gives a file of the bundle by name, or is a mapping of them.

    Raises:
        MediaUnavailable: a package is missing.
        MediaError: the tokenizer is damaged or missing.
    """
    media = spec.media
    if isinstance(media, ImageMedia):
        from models.data.media.images import ImageReader

        return ImageReader(spec, media)
    if isinstance(media, TextMedia):
        from models.data.media.texts import TextReader

        get = read_file.__getitem__ if isinstance(read_file, Mapping) else read_file
        try:
            tokenizer = get(media.tokenizer)
        except KeyError as e:
            raise MediaError(f"the tokenizer {media.tokenizer} is not there") from e
        return TextReader(spec, media, tokenizer)
    if isinstance(media, AudioMedia):
        from models.data.media.audio import AudioReader

        return AudioReader(spec, media)
    return None
