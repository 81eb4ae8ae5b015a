"""Everyone of a finished run as a stranger: features and prior from the others alone, to choose settings by."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.backbones.signal import SignalEncoder
from models.data.recordings import Recordings
from models.heads.prior import Prior
from models.training import generic
from models.training.claim import CHECKPOINTS
from models.training.config import TrainConfig, TrainingError
from models.training.devices import one_process
from models.training.generic import GenericWeights
from models.training.network import fit_network
from models.training.people import fold_members
from models.training.population import population_prior
from models.training.run import Run
from models.training.train import Training

__all__ = ["Stranger", "strangers"]

Features = Callable[[NDArray[np.float32]], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Stranger:
    """A person of the population who had no part in `prior`, nor in the network behind `features`.

    `features` maps raw windows `(n, C, T)` to `(n, p + K)`: what personal heads are fitted in, and the generic logits
    of the fold that left the person out. The prior's generic head reads those, so guards judge as they do in service.
    """

    name: str
    prior: Prior
    features: Features


def strangers(run: Run, recordings: Sequence[Recordings]) -> Iterator[Stranger]:
    """Make a stranger of each person of a run, from its checkpoints.

    Raises:
        TrainingError: the recordings are not the run's, or its checkpoints are gone.
    """
    config = TrainConfig.model_validate(run.provenance["config"])
    # Folds are drawn by the order of people in training.
    by_digest = {r.digest: r for r in recordings}
    wanted = run.provenance["subjects"]
    other = [s["stem"] for s in wanted if s["digest"] not in by_digest]
    if other:
        raise TrainingError(f"These are not the recordings of the run in {run.folder}: other, or none, of {other[0]}.")
    work = Training([by_digest[s["digest"]] for s in wanted], config, run.folder, lambda stage, done, total: None)
    if work.people.labels != run.labels:
        raise TrainingError(f"The recordings name their labels in another order than the run in {run.folder}.")
    chosen = run.evaluation["zero_shot"]
    weights = GenericWeights(chosen["learned_share"], chosen["temperature"])
    for fold, (kept, out) in enumerate(fold_members(len(work.people), config)):
        encoder, _ = work.encoder(kept)
        checkpoint = Path(run.folder) / CHECKPOINTS / f"fold{fold}.safetensors"
        if work.learned:
            if not checkpoint.is_file():
                raise TrainingError(f"{checkpoint} is gone: without it nobody's network leaves them out; train anew.")
            # A finished checkpoint: nothing is left to train, the best weights are put in.
            fit_network(
                one_process(),
                encoder,
                work.people,
                kept,
                out,
                config,
                name="restored",
                steps=config.steps,
                seed=config.seed + 1 + fold,
                checkpoint=checkpoint,
            )
        for u in out:
            others = [v for v in range(len(work.people)) if v != u]
            k, p = len(run.labels), encoder.default_cfg.personal
            prior, centre, projection = population_prior(work.moments, others, run.labels, p, k, run.prior.hyper)
            eye = np.concatenate([np.zeros((k, p)), np.eye(k)], 1)
            gain = np.mean([work.gains[v] for v in others], 0) @ projection
            prior = replace(prior, generic_weight=eye, generic_bias=np.zeros(k), gain=gain)
            yield Stranger(work.people.members[u].name, prior, _features(encoder, centre, projection, weights))


def _features(
    encoder: SignalEncoder, centre: NDArray[np.float64], projection: NDArray[np.float64], weights: GenericWeights
) -> Features:
    p = encoder.default_cfg.personal

    @torch.no_grad()
    def features(x: NDArray[np.float32]) -> NDArray[np.float64]:
        found = []
        for part in torch.split(torch.from_numpy(np.ascontiguousarray(x)), 2048):
            hand = encoder.handmade(encoder.scaled(part)).numpy().astype(np.float64)
            evidence = generic.features(encoder, part)[:, p:]
            mixed = generic.mixed(evidence, encoder.default_cfg.classes, weights.learned) / weights.temperature
            found.append(np.concatenate([(hand - centre) @ projection, mixed], 1))
        return np.concatenate(found)

    return features
