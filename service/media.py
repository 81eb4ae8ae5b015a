"""From encoded media to a model's rows; slow enough that it is done on a thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from exporters.bundle import Bundle, BundleError, InputSpec
from models.data.media import MediaError, MediaReader, MediaUnavailable, reader_of
from models.data.parts import pack
from service.errors import BodyTooLarge, InvalidRequest, Unprocessable, UnsupportedMediaType
from service.protocol.parts import Parts, names, read_part

QUICK = 128 * 1024
"""Bytes of packed rows up to which they are made on the event loop: a thread costs more."""


class Media:
    """What a version reads beside tensors, at most `most_bytes` of rows at a time; of a fused one all that it reads.

    Args:
        bundle: the version's.
        most_bytes: as the attribute.
        spec: its input, by default; or one of its parts.

    Attributes:
        tokenizer: digest of the tokenizer, if there is one; of several all.
        most_bytes: bytes of rows that a request may hold.
        slow: whether bodies may hold media, so that they are decoded on a thread however small.

    Raises:
        BundleError: the bundle's tokenizer is damaged.
    """

    def __init__(self, bundle: Bundle, most_bytes: int, spec: InputSpec | None = None) -> None:
        spec = spec or bundle.manifest.input
        named = getattr(spec.media, "tokenizer", "")
        self._spec = spec
        self._parts: dict[str, Media] = {part.name: Media(bundle, most_bytes, part) for part in spec.parts}
        self.tokenizer = bundle.manifest.files[named].sha256 if named in bundle.manifest.files else ""
        self.tokenizer += "".join(part.tokenizer for part in self._parts.values())
        self.slow: bool = spec.media is not None or any(part.slow for part in self._parts.values())
        self.most_bytes = most_bytes
        self._row_bytes = spec.row_size * spec.dtype.itemsize
        self._missing = f"this model reads {'several inputs by name' if spec.parts else 'tensors only'}"
        self._reader: MediaReader | None = None
        try:
            self._reader = reader_of(spec, bundle.file)
        except MediaUnavailable as e:
            # Tensors of this model are served all the same.
            self._missing = f"this service cannot read it: {e}"
        except MediaError as e:
            raise BundleError(f"{bundle.path}: {e}") from e

    def rows(self, items: Sequence[bytes | str] | Parts) -> NDArray[Any]:
        """Read media, or the parts of a fused model's windows, into rows.

        Raises:
            InvalidRequest: parts that are not the model's, or do not fit them.
            UnsupportedMediaType: not by this model, or not with what is installed here.
            BodyTooLarge: the rows would be too large, however small the files are.
            Unprocessable: one cannot be read; the message says which and why.
        """
        if isinstance(items, Parts):
            return self._packed(items)
        if self._reader is None:
            raise UnsupportedMediaType(self._missing)
        self._check_count(len(items))
        try:
            return self._reader.read(items)
        except MediaError as e:
            raise Unprocessable(str(e)) from e

    def is_quick(self, items: Sequence[bytes | str] | Parts) -> bool:
        """Whether rows are made of these in less time than a thread takes to begin: a few tensors, to be packed."""
        rows = items.rows if isinstance(items, Parts) else None
        return rows is not None and rows * self._row_bytes <= QUICK

    def _packed(self, parts: Parts) -> NDArray[Any]:
        unknown = [name for name in parts.given if name not in self._parts]
        if unknown or not parts.given:
            what = f"there is no input {unknown[0][:64]!r}" if unknown else "no input is given"
            raise InvalidRequest(f"{what}; {self._expected()}")
        windows = {}
        for name, value in parts.given.items():
            reader = self._parts[name]
            found = read_part(value, reader._spec, finite=parts.finite)
            # A part that is missing takes room in the rows, too: a few bytes of text may come with an image's.
            self._check_count(len(found))
            windows[name] = reader.rows(found) if isinstance(found, tuple) else found
        try:
            return pack(self._spec, windows)
        except ValueError as e:
            raise InvalidRequest(str(e)) from e

    def _expected(self) -> str:
        if not self._parts:
            return f"this version of the model has the one input {self._spec.name!r}"
        return f"one or more of {names(self._spec)} were expected"

    def _check_count(self, rows: int) -> None:
        if rows * self._row_bytes > self.most_bytes:
            most = max(1, self.most_bytes // self._row_bytes)
            raise BodyTooLarge(f"there are {rows} inputs; at most {most} are accepted at a time")
