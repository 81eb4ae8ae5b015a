"""The fit loop of the learned branch: validation on left-out people, early stopping, exact resume."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.backbones.signal import LearnedBranch, SignalEncoder
from models.data.augmentation import rotated
from models.training.checkpoint import restore, store
from models.training.config import TrainConfig
from models.training.episodes import Sampler, episode_loss
from models.training.people import People

__all__ = ["Fitted", "Tick", "fit_network"]

Tick = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and the steps of the stage."""
WARM_UP = 0.1
VALIDATION_WINDOWS = 400
STEPS_A_POINT = 25
Curves = dict[str, list[list[float]]]


@dataclass(frozen=True, slots=True)
class Fitted:
    """How a network's training went: the step whose weights were kept, its validation log-loss, the steps taken.

    `curves`: `loss` as `[step, mean loss since the point before]`, `validation` as `[step, log-loss, accuracy]`, each
    in the order of steps.
    """

    best_step: int
    best_loss: float
    steps: int
    curves: Curves


def fit_network(
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
    tick: Tick,
) -> Fitted:
    """Train the encoder's learned branch on some people, in place; validate on others when there are any.

    With validation the weights of the best step are kept and training stops after `config.patience` validations
    without gain. A checkpoint at `checkpoint` is resumed from; the result is that of an uninterrupted run.
    """
    branch = encoder.learned
    assert branch is not None
    sampler, rng = Sampler(people, train, config), np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        optimiser = torch.optim.AdamW(branch.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        best: dict[str, Tensor] = {}
        step, best_step, best_loss, stale = 0, 0, math.inf, 0
        curves: Curves = {"loss": [], "validation": []}
        recent: list[float] = []  # empty at every checkpoint
        if checkpoint.is_file():
            best, state = restore(checkpoint, branch, optimiser, rng)
            step, best_step, stale = state["step"], state["best_step"], state["stale"]
            best_loss = state["best_loss"] if state["best_loss"] is not None else math.inf
            curves = state.get("curves", curves)
        while step < steps and stale < config.patience:
            recent.append(_step(encoder, branch, optimiser, sampler, rng, _rate(step, steps, config.learning_rate)))
            step += 1
            due = step % config.evaluate_every == 0 or step == steps
            if step % STEPS_A_POINT == 0:
                tick(name, step, steps)
            if due or step % STEPS_A_POINT == 0:
                if math.isfinite(mean := float(np.mean(recent))):  # a network that diverges leaves a gap
                    curves["loss"].append([step, round(mean, 6)])
                recent.clear()
            if not due:
                continue
            if valid:
                loss, accuracy = _validation(encoder, people, valid)
                if math.isfinite(loss):
                    curves["validation"].append([step, round(loss, 6), round(accuracy, 6)])
                stale = 0 if loss < best_loss else stale + 1
                if loss < best_loss:
                    best_loss, best_step, best = loss, step, _copy(branch)
            else:
                best_step, best = step, _copy(branch)
            state = {"step": step, "best_step": best_step, "stale": stale, "curves": curves}
            state["best_loss"] = best_loss if math.isfinite(best_loss) else None
            store(checkpoint, branch, optimiser, best, rng, state)
    if best:
        branch.load_state_dict(best)
    encoder.eval()
    tick(name, steps, steps)
    return Fitted(best_step, best_loss, step, curves)


def _step(
    encoder: SignalEncoder,
    branch: LearnedBranch,
    optimiser: torch.optim.Optimizer,
    sampler: Sampler,
    rng: np.random.Generator,
    rate: float,
) -> float:
    """Take one gradient step and return the loss before it."""
    branch.train()
    for group in optimiser.param_groups:
        group["lr"] = rate
    loss = episode_loss(encoder, branch, sampler.step(rng))
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(branch.parameters(), 1.0)
    optimiser.step()
    return float(loss.detach())


def _rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = max(1, int(WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def _validation(encoder: SignalEncoder, people: People, valid: Sequence[int]) -> tuple[float, float]:
    """Mean log-loss and accuracy of the network's logits on left-out people, as worn and (a ring) turned by one."""
    encoder.eval()
    turns = (0.0, 1.0, -1.0) if people.signal.channel_layout == "ring" else (0.0,)
    found = []
    for u in valid:
        m = people.members[u]
        keep = np.linspace(0, len(m.y) - 1, min(VALIDATION_WINDOWS, len(m.y))).astype(int)
        y = torch.from_numpy(m.y[keep])
        for turn in turns:
            _, logits = encoder.learned_logits(rotated(m.x[keep], turn))
            hits = float((logits.argmax(1) == y).float().mean())
            found.append((float(functional.cross_entropy(logits, y)), hits))
    loss, accuracy = np.mean(found, 0)
    return float(loss), float(accuracy)
