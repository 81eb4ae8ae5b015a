"""The learned branch of a signal encoder: trained on episodes, validated on left-out people."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional

from models.backbones.signal import SignalConfig, SignalEncoder
from models.data.augmentation import rotated
from models.training.config import TrainConfig
from models.training.devices import Devices, run_on
from models.training.episodes import Episode, Sampler, episode_loss
from models.training.loggers import loggers_of
from models.training.loop import Curves, Fitted, Loop, Tick, fit
from models.training.people import People
from models.training.timetable import Layer, Timetable, warm_cosine

__all__ = ["BranchJob", "BranchOutcome", "Curves", "Fitted", "Tick", "fit_branch", "fit_network"]

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


@dataclass(frozen=True, eq=False)
class BranchJob:
    """One learned branch to train: all that another process needs for it.

    Attributes:
        name: of the network, for progress, logs and the curves.
        cfg, state: of the encoder that it starts from.
        people: the population, of whom those in `train` teach and those in `valid` judge.
        steps: gradient steps, at most.
        seed: of its own.
        checkpoint: file to resume from.
        logs: folder and kinds of logs.
    """

    name: str
    cfg: SignalConfig
    state: dict[str, Tensor]
    people: People
    train: tuple[int, ...]
    valid: tuple[int, ...]
    config: TrainConfig
    steps: int
    seed: int
    checkpoint: Path
    devices: Devices
    logs: tuple[Path, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class BranchOutcome:
    """A trained branch: the encoder's weights, how training went, and its seconds."""

    state: dict[str, Tensor]
    fitted: Fitted
    seconds: float


def fit_branch(job: BranchJob, tick: Tick | None = None) -> BranchOutcome:
    """Train a job's branch, in this process or in as many as its devices say.

    Raises:
        TrainingError: the checkpoint is damaged, or a logger is missing.
        ValueError: the devices are not there.
    """
    return run_on(job.devices, loggers_of(job.logs[1], job.logs[0], job.name), _fit_branch, job, tick)


def _fit_branch(fabric: Fabric, job: BranchJob, tick: Tick | None = None) -> BranchOutcome:
    begin = time.monotonic()
    torch.set_num_threads(job.config.threads)
    encoder = SignalEncoder(job.cfg)
    encoder.load_state_dict(job.state)
    fitted = fit_network(
        fabric,
        encoder.eval(),
        job.people,
        job.train,
        job.valid,
        job.config,
        name=job.name,
        steps=job.steps,
        seed=job.seed,
        checkpoint=job.checkpoint,
        tick=tick,
    )
    state = {name: value.cpu().clone() for name, value in encoder.state_dict().items()}
    return BranchOutcome(state, fitted, round(time.monotonic() - begin, 2))


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
