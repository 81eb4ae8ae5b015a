"""Features of a whole collection by a bundle or a pre-trained encoder: in one process, or block by block on Ray."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.export import torch_forward
from exporters.input_spec import InputSpec
from models.backbones.module import create_encoder
from models.data.collections import Collection
from models.data.media import MediaError, MediaReader, reader_of
from models.files import write_atomically
from models.training.config import TrainingError
from models.training.inputs import check_kind
from models.training.loop import Tick
from models.training.memory import keep_freed
from models.training.runners import Runner

__all__ = ["Source", "extract", "write_features"]

BLOCK = 32
BLOCKS_A_JOB = 8


@dataclass(frozen=True)
class Source:
    """What features are computed by: a bundle's folder, or the name of an encoder; exactly one."""

    model: Path | None = None
    backbone: str | None = None


@dataclass(frozen=True, eq=False)
class _Part:
    source: Source
    collection: Collection
    index: tuple[int, ...]


def extract(source: Source, collection: Collection, runner: Runner, tick: Tick) -> NDArray[np.float32]:
    """Features `(n, d)` of everything in a collection, of a bundle as it is served, or of an encoder.

    Blocks are the same whoever computes them, so that a cluster's features are those of one process.

    Raises:
        TrainingError: an item cannot be read, or the data are of another kind than the model reads.
        BundleError, BackboneError: there is no such model.
    """
    _opened(source)  # refused here, before any work is handed out
    size = BLOCK * BLOCKS_A_JOB
    starts = range(0, len(collection), size)
    parts = [_Part(source, collection, tuple(range(s, min(s + size, len(collection))))) for s in starts]
    return np.concatenate(runner.map(_features, parts, tick))


def write_features(
    file: Path, features: NDArray[np.float32], source: Source, collection: Collection, command: str
) -> None:
    """Write features with labels, users and repetitions of the items as one `.npz`; nothing in it is a pickle."""
    buffer = io.BytesIO()
    told = {
        "command": command,
        "model": str(source.model) if source.model else source.backbone,
        "names": [collection.name(i) for i in range(len(collection))],
        "digests": [collection.digest_of(i) for i in range(len(collection))],
    }
    np.savez(
        buffer,
        features=features,
        y=collection.y,
        labels=np.array(collection.labels),
        user=collection.user,
        users=np.array(collection.users, dtype=str),
        repetition=collection.repetition,
        about=np.array(json.dumps(told)),
    )
    write_atomically(file, buffer.getvalue())


class _Opened:
    """A model ready to compute features of media."""

    def __init__(self, source: Source) -> None:
        self.spec: InputSpec
        if source.model is not None:
            bundle = bundles.load(bundles.resolve(source.model))
            session = ort.InferenceSession(bundle.backbone, _one_thread(), providers=["CPUExecutionProvider"])
            self.spec, self._name = bundle.manifest.input, session.get_inputs()[0].name
            self._run: Any = lambda x: session.run(None, {self._name: x})[0]
            self._files: Any = bundle.file
        else:
            assert source.backbone is not None
            encoder = create_encoder(source.backbone)
            self.spec, self._files = encoder.input, encoder.files
            self._run = torch_forward(encoder)
        self._reader: MediaReader | None = None

    def features(self, collection: Collection, index: Sequence[int]) -> NDArray[np.float32]:
        """Features `(n, d)` of a block of items."""
        check_kind(self.spec, collection)
        if self._reader is None:
            self._reader = reader_of(self.spec, self._files)
        assert self._reader is not None
        items = [collection.read(i) for i in index]
        try:
            x = self._reader.read(items)
        except MediaError:
            for i, item in zip(index, items, strict=True):  # to name the file
                try:
                    self._reader.read([item])
                except MediaError as e:
                    raise TrainingError(f"{collection.name(i)}: {e}") from e
            raise
        return np.asarray(self._run(x), np.float32)


@lru_cache(maxsize=1)
def _opened(source: Source) -> _Opened:
    return _Opened(source)


def _one_thread() -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def _features(part: _Part, tick: Tick | None = None) -> NDArray[np.float32]:
    keep_freed()
    torch.set_num_threads(1)
    model = _opened(part.source)
    blocks = [part.index[i : i + BLOCK] for i in range(0, len(part.index), BLOCK)]
    found = []
    for block in blocks:
        found.append(model.features(part.collection, block))
        if tick is not None:
            tick("features", block[-1] + 1, len(part.collection))
    return np.concatenate(found)
