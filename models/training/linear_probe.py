"""Recipe `linear-probe`: a frozen pre-trained encoder, a generic head on its features, and a population prior."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from models.backbones.module import EncoderModule, create_encoder
from models.backbones.probe import ProbeConfig, ProbedEncoder, recorded
from models.data.collections import Collection
from models.data.media import reader_of
from models.heads.prior import HyperParameters, Prior
from models.training.config import TrainingError
from models.training.features import backbone_digest, features_of
from models.training.media_run import MediaRun, load_media_run, save_media_run
from models.training.pooling import Space, pooled_temperature, probe_prior, space_of
from models.training.probe_fit import fit_probe, folds_of, left_out_logits
from models.training.provenance import commit
from models.training.tuning import LeftOut, Trial, evidence, trials_of, tune

__all__ = ["LinearProbeConfig", "train_probe"]

Array = NDArray[np.float64]
Tick = Callable[[str, int, int], None]
PARITY_ITEMS = 64
FEWEST_PEOPLE = 3
"""Users from which on they are a population: with fewer, all their items are pooled."""
POOLED = {"window": 1.0, "between": 3.0, "novelty": 1.0, "pooled": True}
"""Settings of heads where no users tell: a label may be anywhere. Chosen on draws of people with five own labels among
Tux Paint's stamps, other draws than those of docs/benchmarks.md; the settings of signals did 4 to 10 points worse."""
WHAT = {
    "image": "Images are turned upright, put on white, resized and cut by the service as the manifest's media say; "
    "in the graph: scaling, the network, its projection and a linear probe. Send JPEG or PNG files.",
    "text": "The service tokenises by the bundle's tokenizer; in the graph: the mask of what is filled up, the "
    "network, pooling, its projection and a linear probe. Send plain text.",
    "audio": "The service decodes, mixes down and resamples; in the graph: scaling by clip, the network, pooling, "
    "its projection and a linear probe. Send WAV files.",
}


class LinearProbeConfig(BaseModel):
    """Settings of `train_probe`; recorded in the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(description="name of a pre-trained encoder, as 'package:efficientnet-lite0'")
    settings: dict[str, Any] = Field(default_factory=dict, description="of the encoder, over its usual ones")
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
) -> MediaRun:
    """Fit the generic head and the population prior on an encoder's features, and write the run to `out`.

    With three or more users the prior has what is between them, and the record that the guard goes by is from
    leave-one-user-out. Else it is pooled: the spread of the classes stands for what is between users, and there is no
    record.

    Raises:
        TrainingError: the folder is in use, an item cannot be read, or the data do not fit the backbone.
        BackboneError: there is no such encoder, or a package is missing.
    """
    if out.exists() and any(out.iterdir()):
        raise TrainingError(f"The folder {out} is not empty; take another --out.")
    begin, started = time.monotonic(), datetime.now(UTC)
    tick = progress or (lambda stage, done, total: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        encoder = create_encoder(config.backbone, config.settings)
        z, computed = features_of(encoder, collection, cache, lambda done, total: tick("features", done, total))
        tick("features", 1, 1)
        fitted = _fit(z.astype(np.float64), collection, config, tick)
        probed = _assembled(config.backbone, encoder, fitted)
    finally:
        torch.set_num_threads(threads)
    provenance = {
        "command": command,
        "recipe": "linear-probe",
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "backbone": {"name": config.backbone, "digest": backbone_digest(encoder)},
        "data": {"items": len(collection), "kind": collection.kind, "users": len(collection.users)},
        "population": "pooled" if fitted.prior.hyper.pooled else "users",
        "features_computed": computed,
        "commit": commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begin, 1),
    }
    record = {"preprocessing": WHAT[collection.kind], "evaluation": fitted.evaluation, "provenance": provenance}
    save_media_run(out, probed, fitted.prior, _parity_items(probed, collection), record)
    return load_media_run(out)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """What is put on an encoder: space, probe `(q, K)` and `(K,)`, prior, and how it did on what was left out."""

    space: Space
    weight: Array
    bias: Array
    prior: Prior
    evaluation: dict[str, Any]


def _fit(z: Array, collection: Collection, config: LinearProbeConfig, tick: Tick) -> _Fitted:
    z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    y, user, classes = collection.y, collection.user, len(collection.labels)
    by_user = len(collection.users) >= FEWEST_PEOPLE
    if not by_user and min(np.bincount(y)) < 2:
        raise TrainingError(f"'{collection.labels[int(np.bincount(y).argmin())]}' has one example; two are the least.")
    space = space_of(z, y, config.personal)
    folds = folds_of(y, user, by_user, config.seed)
    tick("generic head", 0, 1)
    reduced = space.reduced(z)
    pull, temperature, logits = left_out_logits(reduced, y, classes, folds)
    weight, bias = fit_probe(reduced, y, classes, pull)
    tick("generic head", 1, 1)
    people = collection.user if by_user else np.zeros(len(y), np.int64)
    if by_user:
        hyper, figures = _personal(z, collection, logits, config, tick)
    else:
        hyper, figures = HyperParameters.model_validate(POOLED), []
        hyper = pooled_temperature(space.personal(z), collection, hyper, config.seed)
    prior = probe_prior(space.personal(z), y, people, collection.repetition, collection.labels, hyper)
    hit = logits.argmax(1) == y
    groups = [user == u for u in np.unique(user)] if by_user else [y == c for c in range(classes)]
    shares = np.array([hit[g].mean() for g in groups if g.any()])
    evaluation = {
        "protocol": "people of the population, each left out" if by_user else "a fifth of every class, each left out",
        "zero_shot": {
            "mean": float(shares.mean() if by_user else hit.mean()),
            "sd": float(shares.std()),
            "worst": float(shares.min()),
            "of": "users" if by_user else "classes",
            "pull": pull,
            "temperature": temperature,
        },
        "personal": figures,
        "users": len(collection.users) if by_user else 0,
    }
    return _Fitted(space, weight.T / temperature, bias / temperature, prior, evaluation)


def _personal(
    z: Array, collection: Collection, logits: Array, config: LinearProbeConfig, tick: Tick
) -> tuple[HyperParameters, list[dict[str, float]]]:
    """Settings and record of personal heads, each person's in the space and under the prior of all the others."""
    left: list[LeftOut] = []
    trials: list[Trial] = []
    y, user, repetition = collection.y, collection.user, collection.repetition
    for u in range(len(collection.users)):
        tick("leave one out", u, len(collection.users))
        out = user == u
        space = space_of(z[~out], y[~out], config.personal)
        kept = space.personal(z[~out])
        prior = probe_prior(kept, y[~out], user[~out], repetition[~out], collection.labels, HyperParameters())
        own = space.personal(z[out])
        left.append(LeftOut(prior, own, y[out], np.zeros(out.sum(), np.int64), repetition[out], logits[out]))
        trials += trials_of(u, left[-1])
    if not trials:
        raise TrainingError("No user has enough examples of two labels to be calibrated and scored.")
    hyper = tune(left, trials, HyperParameters(growth=1.0, window=1.0, novelty=1.0))
    records, figures = evidence(left, trials, hyper, 1, place=False)
    tick("leave one out", 1, 1)
    return hyper.model_copy(update={"evidence": records}), figures


def _assembled(name: str, encoder: EncoderModule, fitted: _Fitted) -> ProbedEncoder:
    space = fitted.space
    sizes = {"width": len(space.centre), "personal": space.projection.shape[1], "classes": len(fitted.bias)}
    cfg = ProbeConfig.model_validate({**recorded(name, encoder), **sizes})
    probed = ProbedEncoder(encoder, cfg)
    for buffer, value in (
        (probed.centre, space.centre),
        (probed.projection, space.projection),
        (probed.weight, space.basis @ fitted.weight),
        (probed.bias, fitted.bias),
    ):
        buffer.copy_(torch.from_numpy(value.astype(np.float32)))
    return probed.eval()


def _parity_items(probed: ProbedEncoder, collection: Collection) -> NDArray[Any]:
    """Real inputs of the collection, spread evenly, as the model takes them."""
    reader = reader_of(probed.input, probed.files)
    assert reader is not None
    picked = np.linspace(0, len(collection) - 1, min(PARITY_ITEMS, len(collection))).astype(int)
    return reader.read([collection.read(int(i)) for i in picked])
