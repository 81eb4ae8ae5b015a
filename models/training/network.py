"""The learned branch of a signal encoder: trained on episodes, validated on left-out people."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional

from models.backbones.signal import SignalEncoder
from models.data.augmentation import rotated
from models.training.config import TrainConfig
from models.training.episodes import Episode, Sampler, episode_loss
from models.training.loop import Curves, Fitted, Loop, Tick, fit
from models.training.people import People
from models.training.timetable import Layer, Timetable, warm_cosine

__all__ = ["Curves", "Fitted", "Tick", "fit_network"]

VALIDATION_WINDOWS = 400


class _Episodes(nn.Module):
    """The loss of episodes; holds the encoder, of which the branch learns."""

    def __init__(self, encoder: SignalEncoder) -> None:
        super().__init__()
        assert encoder.learned is not None
        self.encoder = encoder

    def forward(self, episodes: Sequence[Episode]) -> Tensor:
        """Loss of the episodes of a step."""
        assert self.encoder.learned is not None
        return episode_loss(self.encoder, self.encoder.learned, episodes)


class _Branch:
    """What the loop trains."""

    def __init__(
        self, encoder: SignalEncoder, people: People, train: Sequence[int], valid: Sequence[int], config: TrainConfig
    ) -> None:
        self.objective = _Episodes(encoder)
        self.encoder, self.people, self.valid = encoder, people, valid
        self.sampler = Sampler(people, train, config)

    def batch(self, rng: np.random.Generator, step: int, rank: int, world: int) -> tuple[list[Episode]]:
        """Episodes of a step; all processes draw the same and take every world-th of them."""
        return (self.sampler.step(rng)[rank::world],)

    @torch.no_grad()
    def validation(self) -> tuple[float, float] | None:
        """Mean log-loss and accuracy of the network's logits, as worn and (a ring) turned by one."""
        if not self.valid:
            return None
        self.encoder.eval()
        turns = (0.0, 1.0, -1.0) if self.people.signal.channel_layout == "ring" else (0.0,)
        found = []
        for u in self.valid:
            m = self.people.members[u]
            keep = np.linspace(0, len(m.y) - 1, min(VALIDATION_WINDOWS, len(m.y))).astype(int)
            y = torch.from_numpy(m.y[keep])
            for turn in turns:
                _, logits = self.encoder.learned_logits(rotated(m.x[keep], turn))
                hits = float((logits.argmax(1) == y).float().mean())
                found.append((float(functional.cross_entropy(logits, y)), hits))
        loss, accuracy = np.mean(found, 0)
        return float(loss), float(accuracy)


def fit_network(
    fabric: Fabric,
    encoder: SignalEncoder,
    people: People,
    train: Sequence[int],
    valid: Sequence[int],
    config: TrainConfig,
    *,
    name: str,
    steps: int,
    seed: int,
    checkpoint: Path,
    tick: Tick | None = None,
) -> Fitted:
    """Train the encoder's learned branch on some people, in place; validate on others when there are any.

    With validation the weights of the best step are kept and training stops after `config.patience` validations
    without gain. A checkpoint at `checkpoint` is resumed from; the result is that of an uninterrupted run.
    """
    work = _Branch(encoder, people, train, valid, config)
    timetable = Timetable((Layer(("encoder.learned",), warm_cosine(steps, config.learning_rate)),))
    loop = Loop(steps, config.evaluate_every, config.patience, seed, config.weight_decay, decay_all=True)
    return fit(fabric, work, timetable, loop, name=name, checkpoint=checkpoint, tick=tick)
