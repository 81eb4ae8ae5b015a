"""Features of a collection, computed once: kept by digests of the backbone, its preprocessing and each input."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from models.backbones.module import EncoderModule
from models.data.collections import Items
from models.data.media import MediaError, reader_of
from models.data.views import views as made
from models.training.checkpoint import write_atomically
from models.training.config import TrainingError
from models.training.devices import Devices, Precision, fabric_on
from models.training.inputs import check_kind
from models.training.memory import keep_freed

__all__ = ["Blocks", "backbone_digest", "computed", "features_of"]

Blocks = list[list[int]]
"""Indexes of items that go through an encoder together."""
BLOCK = 32
SHARD = 1024
"""Inputs after which what was computed is kept: a run that is killed goes on from there."""
FAR_SHARDS = 16
"""Shards that are handed out at once to a cluster."""


def backbone_digest(encoder: EncoderModule) -> str:
    """Hex digest of all that a feature depends on beside the input: weights, settings, input, tokenizer."""
    total = hashlib.sha256()
    total.update(type(encoder).__qualname__.encode())
    total.update(encoder.default_cfg.model_dump_json(exclude={"weights"}).encode())
    total.update(encoder.input.model_dump_json().encode())
    for name, data in sorted(encoder.files.items()):
        total.update(name.encode() + data)
    for name, value in sorted(encoder.state_dict().items()):
        total.update(name.encode() + str(value.dtype).encode() + str(tuple(value.shape)).encode())
        total.update(value.contiguous().numpy().tobytes())
    return total.hexdigest()


def features_of(
    encoder: EncoderModule,
    collection: Items,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    views: int = 1,
    *,
    devices: Devices | None = None,
    far: Callable[[Blocks], list[NDArray[np.float32]]] | None = None,
) -> tuple[NDArray[np.float32], int]:
    """Features `(n, d)` of everything in a collection, and how many of the n were not in the cache.

    Deterministic only: the encoder is run in inference mode on inputs as serving would read them, with no augmentation.
    With `views` > 1 they are `(n, views, d)`, of each input and of fixed views of it (`models.data.views`). They are
    computed here, on a device and in a precision of `devices`, or by `far`, which returns what `computed` would.

    Raises:
        TrainingError: an item cannot be read, or the backbone reads another kind.
        ValueError: the device is not there.
    """
    check_kind(encoder.input, collection)
    devices = devices or Devices()
    digests = [collection.digest_of(i) for i in range(len(collection))]
    if views > 1:
        digests = [f"{d}.{views}" for d in digests]
    folder = None if cache is None else cache / _folder(backbone_digest(encoder), devices.precision)
    known = {} if folder is None else _shards(folder)
    missing = [i for i in range(len(collection)) if digests[i] not in known]
    blocks = [missing[i : i + BLOCK] for i in range(0, len(missing), BLOCK)]
    fabric = fabric_on(devices)
    at_once = 1 if far is None else FAR_SHARDS * SHARD // BLOCK
    fresh: dict[str, NDArray[np.float32]] = {}
    for start in range(0, len(blocks), at_once):
        part = blocks[start : start + at_once]
        for block, z in zip(
            part, far(part) if far else computed(encoder, collection, part, views, fabric), strict=True
        ):
            fresh |= zip([digests[i] for i in block], z, strict=True)
        if folder is not None and (len(fresh) >= SHARD or start + at_once >= len(blocks)):
            _keep(folder, fresh)
            known |= fresh
            fresh = {}
        if progress is not None:
            done = min((start + at_once) * BLOCK, len(missing))
            progress(len(collection) - len(missing) + done, len(collection))
    known |= fresh
    return np.stack([known[d] for d in digests]), len(missing)


def _folder(digest: str, precision: Precision) -> str:
    """Where features of an encoder are kept; those of a lower precision are others."""
    return digest[:32] + ("" if precision == "32-true" else f"-{precision}")


def computed(
    encoder: EncoderModule, collection: Items, blocks: Blocks, views: int, fabric: Fabric
) -> list[NDArray[np.float32]]:
    """Features of each block `(n, d)`, or `(n, views, d)`; the encoder is on the CPU again at the end.

    Raises:
        TrainingError: an item cannot be read.
    """
    keep_freed()
    encoder.eval().to(fabric.device)
    try:
        return [_computed(encoder, collection, block, views, fabric) for block in blocks]
    finally:
        encoder.to("cpu")


@torch.inference_mode()
def _computed(
    encoder: EncoderModule, collection: Items, block: list[int], views: int, fabric: Fabric
) -> NDArray[np.float32]:
    reader = reader_of(encoder.input, encoder.files)
    assert reader is not None
    items = [collection.read(i) for i in block]
    try:
        x = reader.read(items)
    except MediaError:
        for i, item in zip(block, items, strict=True):  # to name the file
            try:
                reader.read([item])
            except MediaError as e:
                raise TrainingError(f"{collection.name(i)}: {e}") from e
        raise
    rows = torch.from_numpy(x if views == 1 else made(x, encoder.input, views)).to(fabric.device)
    with fabric.autocast():
        features: NDArray[np.float32] = encoder(rows).float().cpu().numpy()
    return features if views == 1 else features.reshape(len(block), views, -1)


def _shards(folder: Path) -> dict[str, NDArray[np.float32]]:
    """All features kept in a folder, by the digest of their input; a damaged file is as good as none."""
    found: dict[str, NDArray[np.float32]] = {}
    for file in sorted(folder.glob("*.npz")):
        try:
            # From memory: numpy leaves a file open that turns out to be no archive.
            with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
                found |= dict(zip(json.loads(str(arrays["digests"])), arrays["features"], strict=True))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            file.unlink(missing_ok=True)
    return found


def _keep(folder: Path, fresh: dict[str, NDArray[np.float32]]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, digests=np.array(json.dumps(list(fresh))), features=np.stack(list(fresh.values())))
    name = hashlib.sha256("".join(fresh).encode()).hexdigest()[:32]
    write_atomically(folder / f"{name}.npz", buffer.getvalue())
