"""A collection as a network takes it: rows read once where they fit into memory, and augmented for training."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporters.input_spec import InputSpec, Views
from models.backbones.module import EncoderModule
from models.data.collections import Items
from models.data.media import MediaError, reader_of
from models.data.views import varied
from models.training.config import TrainingError

__all__ = ["Augment", "Inputs", "check_kind"]

MOST_KEPT = 1 << 30
"""Bytes of rows that are kept; what is more is read anew each time."""
IMAGES = Views(shift=0.12, flip=True, gain=0.1, channel_gain=0.05)
SOUNDS = Views(gain=0.5, noise=0.05, shift=0.1)
TOKENS_DROPPED = 0.1


def check_kind(spec: InputSpec, collection: Items) -> None:
    """Raise `TrainingError` where a backbone reads another kind than the data are."""
    media = spec.media
    if media is None or media.kind != collection.kind:
        reads = "tensors only" if media is None else f"{media.kind}s"
        raise TrainingError(f"The data are {collection.kind}s, and the backbone reads {reads}.")


class Inputs:
    """Rows of a collection, by index.

    Raises:
        TrainingError: the backbone reads another kind.
    """

    def __init__(self, encoder: EncoderModule, collection: Items) -> None:
        check_kind(encoder.input, collection)
        reader = reader_of(encoder.input, encoder.files)
        assert reader is not None
        self.collection, self._reader, self._spec = collection, reader, encoder.input
        self._rows: dict[int, NDArray[np.generic]] = {}
        self._kept = 0

    def take(self, index: Sequence[int] | NDArray[np.int64]) -> NDArray[np.generic]:
        """Rows `(n, …)` as serving would read them; texts of a batch are filled up to the longest.

        Raises:
            TrainingError: an item cannot be read; the message names it.
        """
        rows = [self._row(int(i)) for i in index]
        if len({r.shape for r in rows}) == 1:
            return np.stack(rows)
        pad = self._spec.padding
        assert pad is not None
        full = max(r.shape[pad.axis - 1] for r in rows)
        wide = [(0, 0)] * rows[0].ndim
        filled = []
        for r in rows:
            wide[pad.axis - 1] = (0, full - r.shape[pad.axis - 1])
            filled.append(np.pad(r, wide, constant_values=r.dtype.type(pad.value)))
        return np.stack(filled)

    def _row(self, i: int) -> NDArray[np.generic]:
        if i in self._rows:
            return self._rows[i]
        try:
            row: NDArray[np.generic] = self._reader.read([self.collection.read(i)])[0]
        except MediaError as e:
            raise TrainingError(f"{self.collection.name(i)}: {e}") from e
        if self._kept + row.nbytes <= MOST_KEPT:
            self._rows[i] = row
            self._kept += row.nbytes
        return row


class Augment:
    """Random changes of training rows: images are moved, mirrored and relit; of texts tokens drop out; sounds vary.

    Row `position` of step `step` is changed by a generator of its own, so that the change does not depend on which
    process of several takes it.
    """

    def __init__(self, spec: InputSpec, seed: int) -> None:
        self._spec, self._seed = spec, seed
        kind = "" if spec.media is None else spec.media.kind
        self._how = spec.views or {"image": IMAGES, "audio": SOUNDS}.get(kind)

    def __call__(self, x: NDArray[np.generic], step: int, positions: Sequence[int]) -> Tensor:
        """Changed copies of rows `(n, …)`."""
        generators = [np.random.default_rng((self._seed, step, p)) for p in positions]
        changed = [self._one(row, rng) for row, rng in zip(x, generators, strict=True)]
        return torch.from_numpy(np.stack(changed))

    def _one(self, row: NDArray[np.generic], rng: np.random.Generator) -> NDArray[np.generic]:
        if self._how is not None:
            return varied(row, self._spec, self._how, rng)
        pad = self._spec.padding
        if pad is None:
            return row
        dropped = rng.random(row.shape) < TOKENS_DROPPED
        dropped[0] = False  # the token that stands for the whole
        return np.where(dropped, row.dtype.type(pad.value), row)
