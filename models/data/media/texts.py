"""Texts to token ids, by the tokenizer that is in the bundle."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from exporters.input_spec import InputSpec
from exporters.media_spec import TextMedia
from models.data.media.reader import MediaError, MediaUnavailable

__all__ = ["TextReader"]


class TextReader:
    """Reads texts; rows `(n, longest)` int64, shorter ones filled up with the input's padding value."""

    def __init__(self, spec: InputSpec, media: TextMedia, tokenizer: bytes) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as e:
            raise MediaUnavailable("texts need tokenizers: pip install 'headway[text]'") from e
        try:
            self._tokenizer = Tokenizer.from_buffer(tokenizer)
        except Exception as e:  # the library raises plain Exception
            raise MediaError(f"the tokenizer cannot be read: {e}") from e
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(media.max_tokens)
        self._media = media
        self._fill = 0 if spec.padding is None else int(spec.padding.value)

    def read(self, items: Sequence[bytes | str]) -> NDArray[np.int64]:
        """Tokenise.

        Raises:
            MediaError: not UTF-8, empty, or longer than the model takes.
        """
        texts = [self._text(item, i) for i, item in enumerate(items)]
        ids = [e.ids for e in self._tokenizer.encode_batch(texts)]
        rows = np.full((len(ids), max([1, *map(len, ids)])), self._fill, np.int64)
        for i, own in enumerate(ids):
            if not own:
                raise MediaError(f"text {i} has no tokens")
            rows[i, : len(own)] = own
        return rows

    def _text(self, item: bytes | str, number: int) -> str:
        if isinstance(item, bytes):
            try:
                item = item.decode()
            except UnicodeDecodeError as e:
                raise MediaError(f"text {number} is not UTF-8") from e
        if not item.strip():
            raise MediaError(f"text {number} is empty")
        if len(item) > self._media.max_characters:
            raise MediaError(
                f"text {number} has {len(item):,} characters; at most {self._media.max_characters:,} are taken"
            )
        return item
