"""Recipe `linear-probe`: a frozen pre-trained encoder, a generic head on its features, and a population prior.

`cached-features` is the same from features that are kept on disk, of several views of each example where asked.
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from models.backbones.module import EncoderModule, create_encoder
from models.data.collections import Collection, Items
from models.training.claim import free
from models.training.config import TrainingError
from models.training.devices import Devices
from models.training.far_features import far_features
from models.training.features import backbone_digest, features_of
from models.training.loggers import log_figures
from models.training.media_run import MediaRun, load_media_run, save_media_run
from models.training.probing import WHAT, Tick, assembled, fit_top, parity_items
from models.training.provenance import provenance
from models.training.runners import Serial, Where
from models.training.seen import items_of, note_items, told_items

__all__ = ["LinearProbeConfig", "check_frozen", "frozen_features", "train_probe"]


class LinearProbeConfig(BaseModel):
    """Settings of `train_probe`; recorded in the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(description="name of a pre-trained encoder, as 'package:efficientnet-lite0'")
    settings: dict[str, Any] = Field(default_factory=dict, description="of the encoder, over its usual ones")
    recipe: Literal["linear-probe", "cached-features"] = "linear-probe"
    views: int = Field(1, ge=1, le=32, description="fixed views of each example that the generic head learns from")
    augment: bool = Field(
        False, description="refused: features are computed once, so nothing stochastic may be in them"
    )
    personal: int = Field(128, ge=2, le=512, description="features that personal heads are fitted in, at most")
    seed: int = 0
    threads: int = Field(1, ge=1)


def train_probe(
    collection: Collection,
    config: LinearProbeConfig,
    out: Path,
    *,
    cache: Path | None = None,
    progress: Tick | None = None,
    command: str = "",
    where: Where | None = None,
) -> MediaRun:
    """Fit the generic head and the population prior on an encoder's features, and write the run to `out`.

    `where` says on what device, in which precision and by whom the features are computed, and which logs get the
    figures.

    With three or more users the prior has what is between them, and the record that the guard goes by is from
    leave-one-user-out. Else it is pooled: the spread of the classes stands for what is between users, and there is no
    record.

    Raises:
        TrainingError: the folder is in use, an item cannot be read, or the data do not fit the backbone.
        BackboneError: there is no such encoder, or a package is missing.
    """
    where = where or Where()
    check_frozen(config, cache, where)
    free(out)
    begin, started = time.monotonic(), datetime.now(UTC)
    tick = progress or (lambda stage, done, total: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        encoder = create_encoder(config.backbone, config.settings)
        z, computed = frozen_features(config, encoder, collection, cache, where, tick)
        fitted = fit_top(z.astype(np.float64), collection, config.personal, config.seed, tick)
        probed = assembled(config.backbone, encoder, fitted)
        known = items_of(collection)
    finally:
        torch.set_num_threads(threads)
    record = {
        "preprocessing": WHAT[collection.kind],
        "evaluation": fitted.evaluation,
        "provenance": {
            "recipe": config.recipe,
            "backbone": {"name": config.backbone, "digest": backbone_digest(encoder)},
            "data": {
                "items": len(collection),
                "kind": collection.kind,
                "users": len(collection.users),
                **told_items(known),
            },
            "population": "pooled" if fitted.prior.hyper.pooled else "users",
            "features_computed": computed,
            "features_precision": where.devices.precision,
            **provenance(command, config, started, begin),
        },
    }
    note_items(out, known)
    log_figures(where.loggers, out / "logs", "probe", fitted.evaluation)
    save_media_run(out, probed, fitted.prior, parity_items(probed, collection), record)
    return load_media_run(out)


def check_frozen(config: LinearProbeConfig, cache: Path | None, where: Where) -> None:
    """Raise `TrainingError` for what features computed once cannot have, and for devices and loggers not there."""
    if config.augment:
        raise TrainingError(
            f"{config.recipe} computes the features of an example once: a random change of it would be the same for "
            "ever. Take fixed views of each (views=8), or a recipe that trains the encoder, as lp-ft."
        )
    if config.recipe == "cached-features" and cache is None:
        raise TrainingError("cached-features needs a folder for its features, as --cache .cache/features.")
    if where.devices.processes > 1:
        raise TrainingError(
            f"{config.recipe} trains no network whose batches several processes or nodes could share; "
            "--ray computes the features of several blocks side by side."
        )
    if config.backbone.startswith("onnx:") and where.devices != Devices():
        raise TrainingError(
            "An onnx: encoder is run by ONNX Runtime on the CPU; leave --accelerator and --precision out."
        )
    where.check()


def frozen_features(
    config: LinearProbeConfig, encoder: EncoderModule, collection: Items, cache: Path | None, where: Where, tick: Tick
) -> tuple[NDArray[np.float32], int]:
    """Features of a collection as `features_of`, computed on the device, in the precision and by whom `where` says."""
    far = None
    if not isinstance(where.runner, Serial):
        told = config.backbone, config.settings, encoder, collection, config.views, where.devices, tick
        far = far_features(where.runner, *told)
    z, computed = features_of(
        encoder,
        collection,
        cache,
        lambda done, total: tick("features", done, total),
        config.views,
        devices=where.devices,
        far=far,
    )
    tick("features", 1, 1)
    return z, computed
