"""The generic head: how the two kinds of evidence are weighed, by people left out of what made the evidence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.backbones.signal import SignalEncoder
from models.data.augmentation import rotated
from models.heads.head import log_loss
from models.heads.prior import Prior
from models.training.people import People

__all__ = ["GenericWeights", "HeldOutEvidence", "features", "generic_head", "held_out_evidence", "mixed", "weigh"]

Array = NDArray[np.float64]
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
TEMPERATURES = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
AS_WORN = 0.6
"""Weight of the placement as recorded; the turned and flipped ones share the rest, for new people wear it otherwise."""


@dataclass(frozen=True, slots=True)
class GenericWeights:
    """Share of the learned evidence (the placements' has the rest) and temperature of the generic head."""

    learned: float
    temperature: float


@dataclass(frozen=True, eq=False)
class HeldOutEvidence:
    """Evidence features `(n, 2K or K)` of a left-out person at one placement, the labels, the placement's weight."""

    person: int
    evidence: Array
    y: NDArray[np.int64]
    weight: float
    as_worn: bool


@torch.no_grad()
def features(encoder: SignalEncoder, x: Tensor) -> Array:
    """Features `(n, d)` of raw windows `(n, C, T)`, by blocks."""
    return torch.cat([encoder.forward_features(part) for part in torch.split(x, 2048)]).numpy().astype(np.float64)


def held_out_evidence(encoder: SignalEncoder, people: People, u: int) -> list[HeldOutEvidence]:
    """Evidence about a person that had no part in the encoder, the sensor as worn and at other placements."""
    member, p = people.members[u], encoder.default_cfg.personal
    found = [HeldOutEvidence(u, features(encoder, member.x)[:, p:], member.y, 1.0, True)]
    channels = people.signal.channels
    if people.signal.channel_layout != "ring":
        return found
    turns = [(1.0, False), (-1.0, False), (0.5, False), (channels / 4, False), (channels / 2, False), (0.0, True)]
    found[0] = HeldOutEvidence(u, found[0].evidence, member.y, AS_WORN, True)
    for electrodes, flipped in turns:
        x = rotated(member.x[::5], electrodes, flipped=flipped)
        weight = (1 - AS_WORN) / len(turns)
        found.append(HeldOutEvidence(u, features(encoder, x)[:, p:], member.y[::5], weight, False))
    return found


def mixed(evidence: Array, classes: int, share: float) -> Array:
    """Weigh the evidence `(n, 2K or K)` to logits `(n, K)`: the learned one has `share`, where there is any."""
    if evidence.shape[1] == classes:
        return evidence
    return share * evidence[:, :classes] + (1 - share) * evidence[:, classes:]


def weigh(held: Sequence[HeldOutEvidence], classes: int) -> tuple[GenericWeights, dict[int, Array]]:
    """Choose the weights by log-loss over left-out people; return them and each person's logits `(n, K)`, as worn."""
    two = held[0].evidence.shape[1] > classes
    best: tuple[float, GenericWeights] | None = None
    for share in SHARES if two else (0.0,):
        weighed = [(mixed(h.evidence, classes, share), h) for h in held]
        for t in TEMPERATURES:
            loss = float(sum(h.weight * log_loss(m / t, h.y).mean() for m, h in weighed))
            if best is None or loss < best[0]:
                best = (loss, GenericWeights(share, t))
    assert best is not None
    chosen = best[1]
    worn = (h for h in held if h.as_worn)
    return chosen, {h.person: mixed(h.evidence, classes, chosen.learned) / chosen.temperature for h in worn}


def turned_accuracy(held: Sequence[HeldOutEvidence], classes: int, weights: GenericWeights) -> float | None:
    """Mean generic accuracy over left-out people with the sensor at other placements; None where it has no others."""
    hits = [(mixed(h.evidence, classes, weights.learned).argmax(1) == h.y).mean() for h in held if not h.as_worn]
    return float(np.mean(hits)) if hits else None


def generic_head(prior: Prior, weights: GenericWeights, learned: bool) -> tuple[Array, Array]:
    """Weight `(K, d)` and bias `(K,)` of the generic head over `[personal | learned evidence | placement evidence]`."""
    k, p = prior.classes, prior.personal
    eye = np.eye(k) / weights.temperature
    blocks = [weights.learned * eye, (1 - weights.learned) * eye] if learned else [eye]
    return np.concatenate([np.zeros((k, p)), *blocks], 1), np.zeros(k)
