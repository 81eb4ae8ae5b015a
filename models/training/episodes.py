"""Episodes: several people a step, each with a few labelled windows and others to classify with them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.backbones.signal import LearnedBranch, SignalEncoder
from models.data.augmentation import Augmentation
from models.training.config import TrainConfig
from models.training.people import People, Person

__all__ = ["Episode", "Sampler", "augmentation_for", "episode_loss"]

SMOOTHING = 0.05
SUPPORT_STEP = 3
"""Support windows are this many windows apart: neighbours share most samples."""


def augmentation_for(people: People) -> Augmentation:
    """Return the usual augmentation of a signal: a ring turns, muscles vary in strength; movement hardly varies."""
    # Shifts of half a stride: windows between those that were cut are as likely.
    jitter = min(people.signal.stride // 2, people.signal.length // 4)
    if people.signal.modality == "imu":
        return Augmentation(ring=False, gain=0.05, channel_gain=0.05, noise=0.05, jitter=jitter)
    return Augmentation(ring=people.signal.channel_layout == "ring", jitter=jitter)


class Episode(NamedTuple):
    """One person's windows `x (n, C, T)`, labels `y (n,)` and which of them are `support (n,)`."""

    x: Tensor
    y: NDArray[np.int64]
    support: NDArray[np.bool_]


class Sampler:
    """Draws episodes: support from one repetition of a person, queries from the others."""

    def __init__(self, people: People, who: Sequence[int], config: TrainConfig) -> None:
        self.members = [people.members[u] for u in who]
        self.blocks = [_blocks(m) for m in self.members]
        self.scale, self.config, self.augment = people.scale, config, augmentation_for(people)

    def step(self, rng: np.random.Generator) -> list[Episode]:
        """Return the episodes of one gradient step."""
        count = min(self.config.users_per_step, len(self.members))
        return [self._episode(int(u), rng) for u in rng.choice(len(self.members), count, replace=False)]

    def _episode(self, u: int, rng: np.random.Generator) -> Episode:
        chosen: list[int] = []
        y: list[int] = []
        support, queries = self.config.support, self.config.queries
        for label, blocks in self.blocks[u].items():
            source = int(rng.integers(len(blocks)))
            others = [b for i, b in enumerate(blocks) if i != source] or blocks
            block = blocks[source]
            first = int(rng.integers(max(1, len(block) - SUPPORT_STEP * (support - 1))))
            chosen += [int(block[min(first + SUPPORT_STEP * i, len(block) - 1)]) for i in range(support)]
            chosen += [int(rng.choice(others[int(rng.integers(len(others)))])) for _ in range(queries)]
            y += [label] * (support + queries)
        mask = np.tile(np.r_[np.ones(support, bool), np.zeros(queries, bool)], len(self.blocks[u]))
        x = self.augment(self.members[u].x[chosen], self.scale, rng)
        return Episode(x, np.array(y), mask)


def _blocks(member: Person) -> dict[int, list[NDArray[np.int64]]]:
    """Windows of each class by repetition; the two halves of the only one where there is one."""
    found: dict[int, list[NDArray[np.int64]]] = {}
    for c in np.unique(member.y):
        own = [np.flatnonzero((member.y == c) & (member.repetition == r)) for r in np.unique(member.repetition)]
        own = [b for b in own if len(b)]
        if len(own) == 1 and len(own[0]) > 1:
            own = np.array_split(own[0], 2)
        found[int(c)] = own
    return found


def episode_loss(encoder: SignalEncoder, branch: LearnedBranch, episodes: Sequence[Episode]) -> Tensor:
    """Generic cross-entropy of all windows plus that of each person's queries under prototypes from their support.

    Personal prototypes are pulled towards the population's, by a learned amount, as the personal head will be.
    """
    embedding, generic = encoder.learned_logits(torch.cat([e.x for e in episodes]))
    y = torch.from_numpy(np.concatenate([e.y for e in episodes]))
    loss = functional.cross_entropy(generic, y, label_smoothing=SMOOTHING)
    pull = torch.exp(branch.log_pull)
    begin = 0
    for e in episodes:
        own = embedding[begin : begin + len(e.y)]
        begin += len(e.y)
        classes = np.unique(e.y)
        member = torch.from_numpy((e.y[e.support][None] == classes[:, None]).astype(np.float32))
        means = member @ own[torch.from_numpy(e.support)] / member.sum(1, keepdim=True)
        prototypes = (means + pull * branch.prototypes[torch.from_numpy(classes)]) / (1 + pull)
        target = torch.from_numpy(np.searchsorted(classes, e.y[~e.support]))
        logits = branch.logits(own[torch.from_numpy(~e.support)], prototypes)
        loss = loss + functional.cross_entropy(logits, target) / len(episodes)
    return loss
