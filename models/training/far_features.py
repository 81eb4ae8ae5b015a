"""Features of a collection that a cluster computes, block by block, for a recipe that needs no more than these."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.backbones.module import EncoderModule, create_encoder
from models.data.collections import Items
from models.training.config import TrainingError
from models.training.devices import Devices, fabric_on
from models.training.features import Blocks, backbone_digest, computed
from models.training.loop import Tick
from models.training.runners import Runner

__all__ = ["far_features"]

BLOCKS_A_JOB = 8


@dataclass(frozen=True, eq=False)
class _Part:
    backbone: str
    settings: str
    digest: str
    devices: Devices
    collection: Items
    blocks: Blocks
    views: int


def far_features(
    runner: Runner,
    backbone: str,
    settings: dict[str, Any],
    encoder: EncoderModule,
    collection: Items,
    views: int,
    devices: Devices,
    tick: Tick,
) -> Callable[[Blocks], list[NDArray[np.float32]]]:
    """Return what computes blocks by a runner, for `features_of`; each node builds the encoder by its name.

    What it returns raises `TrainingError` where an item cannot be read, or a node has another encoder of that name.
    """
    told, digest = json.dumps(settings, sort_keys=True), backbone_digest(encoder)

    def far(blocks: Blocks) -> list[NDArray[np.float32]]:
        shares = [blocks[i : i + BLOCKS_A_JOB] for i in range(0, len(blocks), BLOCKS_A_JOB)]
        parts = [_Part(backbone, told, digest, devices, collection, share, views) for share in shares]
        return [z for found in runner.map(_of_part, parts, tick) for z in found]

    return far


def _of_part(part: _Part, tick: Tick | None = None) -> list[NDArray[np.float32]]:
    torch.set_num_threads(1)
    encoder, digest = _encoder(part.backbone, part.settings)
    if digest != part.digest:
        raise TrainingError(f"A node of the cluster has other weights of {part.backbone}; all need the same.")
    return computed(encoder, part.collection, part.blocks, part.views, fabric_on(part.devices))


@lru_cache(maxsize=1)
def _encoder(backbone: str, settings: str) -> tuple[EncoderModule, str]:
    encoder = create_encoder(backbone, json.loads(settings))
    return encoder, backbone_digest(encoder)
