"""From encoded media to rows of a model's input: one way for training and for serving, so that both see the same."""

from models.data.media.reader import MediaError, MediaReader, MediaUnavailable, reader_of

__all__ = ["MediaError", "MediaReader", "MediaUnavailable", "reader_of"]
