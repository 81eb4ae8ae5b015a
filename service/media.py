"""From encoded media to a model's rows; slow enough that it is done on a thread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from exporters.bundle import Bundle, BundleError
from models.data.media import MediaError, MediaReader, MediaUnavailable, reader_of
from service.errors import BodyTooLarge, Unprocessable, UnsupportedMediaType


class Media:
    """What a version reads beside tensors, at most `most_bytes` of rows at a time.

    Attributes:
        tokenizer: digest of the tokenizer, if there is one.
        most_bytes: bytes of rows that a request may hold.
        slow: whether bodies may hold media, so that they are decoded on a thread however small.

    Raises:
        BundleError: the bundle's tokenizer is damaged.
    """

    def __init__(self, bundle: Bundle, most_bytes: int) -> None:
        spec = bundle.manifest.input
        named = getattr(spec.media, "tokenizer", "")
        self.tokenizer = bundle.manifest.files[named].sha256 if named in bundle.manifest.files else ""
        self.slow = spec.media is not None
        self.most_bytes = most_bytes
        self._row_bytes = math.prod(spec.sized(None if spec.padding is None else spec.padding.maximum))
        self._row_bytes *= spec.dtype.itemsize
        self._missing = "this model reads tensors only"
        self._reader: MediaReader | None = None
        try:
            self._reader = reader_of(spec, bundle.file)
        except MediaUnavailable as e:
            # Tensors of this model are served all the same.
            self._missing = f"this service cannot read it: {e}"
        except MediaError as e:
            raise BundleError(f"{bundle.path}: {e}") from e

    def rows(self, items: Sequence[bytes | str]) -> NDArray[Any]:
        """Read media into rows.

        Raises:
            UnsupportedMediaType: not by this model, or not with what is installed here.
            BodyTooLarge: the rows would be too large, however small the files are.
            Unprocessable: one cannot be read; the message says which and why.
        """
        if self._reader is None:
            raise UnsupportedMediaType(self._missing)
        if len(items) * self._row_bytes > self.most_bytes:
            most = max(1, self.most_bytes // self._row_bytes)
            raise BodyTooLarge(f"there are {len(items)} inputs; at most {most} are accepted at a time")
        try:
            return self._reader.read(items)
        except MediaError as e:
            raise Unprocessable(str(e)) from e
