"""Networks of the signal encoder trained with a part taken away, or begun without labels; for `bench.ablation`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.backbones.signal import LearnedBranch, SignalEncoder
from models.data.augmentation import Augmentation
from models.training.config import TrainConfig
from models.training.episodes import SMOOTHING, Sampler, augmentation_for, episode_loss
from models.training.people import People

__all__ = ["VARIANTS", "Variant", "train_branch"]

CONTRAST = 0.1
"""Temperature of the contrast."""
VIEWS = 24
"""Windows of a person in a step of the contrast, twice each."""
WARM_UP = 0.1


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to train the learned branch; the defaults are those of `headway train`.

    `begun`: whether the branch is begun with a contrast over all windows, without labels.
    """

    name: str
    filters: bool = True
    handmade: bool = True
    augmented: bool = True
    episodes: bool = True
    begun: bool = False


VARIANTS = (
    Variant("as `headway train`"),
    Variant("begun without labels (contrast)", begun=True),
    Variant("no augmentation", augmented=False),
    Variant("cross-entropy, no episodes", episodes=False),
    Variant("no learned filters", filters=False),
    Variant("no hand-made input", handmade=False),
)


def train_branch(
    encoder: SignalEncoder, people: People, who: Sequence[int], config: TrainConfig, variant: Variant, seed: int
) -> None:
    """Train the learned branch on some people for `config.steps` steps, in place; nobody else is looked at."""
    branch = encoder.learned
    assert branch is not None
    if not variant.handmade:
        encoder.deviation.fill_(math.inf)  # standardised, the features are then 0
    if not variant.filters:
        for value in branch.filters.parameters():
            nn.init.zeros_(value)
            value.requires_grad_(False)
    sampler, rng = Sampler(people, who, config), np.random.default_rng(seed)
    if not variant.augmented:
        sampler.augment = Augmentation(ring=False, gain=0.0, channel_gain=0.0, noise=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        if variant.begun:
            projector = nn.Sequential(nn.GELU(), nn.Linear(encoder.default_cfg.embedding, 64))
            augment = augmentation_for(people)
            _descend(
                [branch, projector],
                config,
                lambda: _contrast(encoder, branch, projector, _views(people, who, augment, config, rng)),
            )
        _descend([branch], config, lambda: _loss(encoder, branch, sampler, rng, variant))
    encoder.eval()


def _loss(
    encoder: SignalEncoder, branch: LearnedBranch, sampler: Sampler, rng: np.random.Generator, variant: Variant
) -> Tensor:
    episodes = sampler.step(rng)
    if variant.episodes:
        return episode_loss(encoder, branch, episodes)
    _, logits = encoder.learned_logits(torch.cat([e.x for e in episodes]))
    y = torch.from_numpy(np.concatenate([e.y for e in episodes]))
    return functional.cross_entropy(logits, y, label_smoothing=SMOOTHING)


def _views(
    people: People, who: Sequence[int], augment: Augmentation, config: TrainConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Windows of some people, changed in two ways: each way of a person has a placement and gain of its own."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for u in rng.choice(np.asarray(who), min(config.users_per_step, len(who)), replace=False):
        x = people.members[int(u)].x
        x = x[np.sort(rng.choice(len(x), min(VIEWS, len(x)), replace=False))]
        for parts in found:
            parts.append(augment(x, people.scale, rng))
    return torch.cat(found[0]), torch.cat(found[1])


def _contrast(
    encoder: SignalEncoder, branch: LearnedBranch, projector: nn.Module, views: tuple[Tensor, Tensor]
) -> Tensor:
    """Cross-entropy of finding a window's other view among all windows. Source: NT-Xent, Chen et al. 2020."""
    embedding, _ = encoder.learned_logits(torch.cat(views))
    z = functional.normalize(projector(embedding), dim=1)
    n = len(views[0])
    similarity = (z @ z.T / CONTRAST).masked_fill(torch.eye(2 * n, dtype=torch.bool), -math.inf)
    return functional.cross_entropy(similarity, torch.arange(2 * n).roll(n))


def _descend(modules: Sequence[nn.Module], config: TrainConfig, loss_of: Callable[[], Tensor]) -> None:
    """Take `config.steps` steps as `headway train` does: AdamW, clipped, linear warm-up and a cosine to zero."""
    trained = [p for m in modules for p in m.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    warm = max(1, int(WARM_UP * config.steps))

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    for module in modules:
        module.train()
    for _ in range(config.steps):
        loss = loss_of()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
