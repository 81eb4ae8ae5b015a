"""The fit loop, on Lightning Fabric: freeze plans, validation, early stopping, averaged weights, exact resume."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from models.backbones.freezing import FreezePlan
from models.training.config import TrainingError
from models.training.timetable import Rate, Timetable

__all__ = ["Curves", "Fitted", "Loop", "Tick", "Work", "fit"]

Tick = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and the steps of the stage."""
Curves = dict[str, list[list[float]]]
STEPS_A_POINT = 25
LARGEST_GRADIENT = 1.0


class Work(Protocol):
    """What a loop trains."""

    @property
    def objective(self) -> nn.Module:
        """Holds the network; called with a batch it gives the loss."""

    def batch(self, rng: np.random.Generator, step: int, rank: int, world: int) -> tuple[Any, ...]:
        """Arguments of the objective for a step: process `rank`'s equal share of what `world` processes take."""

    def validation(self) -> tuple[float, float] | None:
        """Log-loss and accuracy on what was left out, in inference mode; None where nothing was."""


@dataclass(frozen=True)
class Loop:
    """Settings of `fit`.

    Attributes:
        steps: gradient steps, at most.
        evaluate_every: steps between validations and checkpoints.
        patience: validations without gain before it stops.
        seed: of batches, augmentation and dropout.
        weight_decay: of AdamW.
        decay_all: whether biases and scales of norms decay, too.
        ema: decay of averaged weights, which are then what is validated and kept; 0 for none.
        batch_norm: whether batch norms that learn estimate their statistics anew.
    """

    steps: int
    evaluate_every: int
    patience: int
    seed: int
    weight_decay: float
    decay_all: bool = False
    ema: float = 0.0
    batch_norm: bool = False


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


def fit(
    fabric: Fabric,
    work: Work,
    timetable: Timetable,
    loop: Loop,
    *,
    name: str,
    checkpoint: Path | None = None,
    tick: Tick | None = None,
) -> Fitted:
    """Train the work's objective in place, and leave the weights of its best validation in it, or else of its end.

    What the timetable freezes is compared bit for bit after every step. A checkpoint at `checkpoint` is resumed from;
    the result is that of an uninterrupted run. With several processes the loss is the mean over all of them.

    Raises:
        FrozenChanged: something frozen changed, or `requires_grad` was changed behind the plan's back.
        TrainingError: the checkpoint is damaged, or belongs to another network.
    """
    status = "failed"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(loop.seed + fabric.global_rank)
            told = tick or (lambda stage, done, total: None)
            fitted = _Fit(fabric, work, timetable, loop, name, checkpoint, told).run()
        status = "success"
    finally:
        for logger in fabric.loggers:
            logger.finalize(status)
    return fitted


class _Fit:
    """One network's training."""

    def __init__(
        self,
        fabric: Fabric,
        work: Work,
        timetable: Timetable,
        loop: Loop,
        name: str,
        checkpoint: Path | None,
        tick: Tick,
    ) -> None:
        self.fabric, self.work, self.timetable, self.loop = fabric, work, timetable, loop
        self.name, self.checkpoint, self.tick = name, checkpoint, tick
        self.rng = np.random.default_rng(loop.seed)
        self.everything = FreezePlan(timetable.prefixes, loop.batch_norm)
        self.step, self.best_step, self.best_loss, self.stale = 0, 0, math.inf, 0
        self.best: dict[str, Tensor] = {}
        self.curves: Curves = {"loss": [], "validation": []}
        self.recent: list[float] = []  # empty at every checkpoint
        self.optimiser: torch.optim.Optimizer | None = None
        self._resumed = self._restored()
        self._agreed()
        self._build(max(self.step - 1, 0), self._resumed)
        self.average = self._resumed["average"] if self._resumed else (self._learned() if loop.ema else {})

    def run(self) -> Fitted:
        """Take all steps."""
        loop = self.loop
        while self.step < loop.steps and self.stale < loop.patience:
            if self.timetable.learning(self.step) != self.layers:
                self._build(self.step)
            self.recent.append(self._take_step())
            self.step += 1
            due = self.step % loop.evaluate_every == 0 or self.step == loop.steps
            if due or self.step % STEPS_A_POINT == 0:
                self._note_loss()
            if due:
                self._evaluate()
                self._store()
        if self.best:
            self._put(self.best)
        self.work.objective.eval()
        self.tick(self.name, loop.steps, loop.steps)
        return Fitted(self.best_step, self.best_loss, self.step, self.curves)

    def _build(self, step: int, resumed: dict[str, Any] | None = None) -> None:
        """Build the optimiser from the plan of a step; what goes on learning keeps its moments."""
        objective = self.work.objective
        before = {} if self.optimiser is None else dict(self.optimiser.state)
        self.layers = self.timetable.learning(step)
        self.plan = FreezePlan(tuple(p for layer in self.layers for p in layer.prefixes), self.loop.batch_norm)
        self.plan.train(objective)
        self.rates: list[Rate] = []
        groups: list[dict[str, Any]] = []
        for layer in self.layers:
            own = FreezePlan(layer.prefixes)
            learning = [p for n, p in objective.named_parameters() if own.learns(n)]
            for decays in (True, False):
                chosen = [p for p in learning if (self.loop.decay_all or p.ndim > 1) is decays]
                if chosen:
                    groups.append({"params": chosen, "weight_decay": self.loop.weight_decay if decays else 0.0})
                    self.rates.append(layer.rate)
        self.optimiser = torch.optim.AdamW(groups, lr=self.rates[0](step))
        self.optimiser.state.update({p: before[p] for group in groups for p in group["params"] if p in before})
        if resumed is not None:
            self._load_optimiser(self.optimiser, resumed)
        self.module, self.stepper = self.fabric.setup(objective, self.optimiser)
        self.frozen = self.plan.frozen(objective)

    def _take_step(self) -> float:
        """Take one gradient step and return the loss before it."""
        fabric, objective = self.fabric, self.work.objective
        for group, rate in zip(self.stepper.param_groups, self.rates, strict=True):
            group["lr"] = rate(self.step)
        batch = self.work.batch(self.rng, self.step, fabric.global_rank, fabric.world_size)
        loss = self.module(*fabric.to_device(batch))
        self.stepper.zero_grad()
        fabric.backward(loss)
        self.plan.verify(objective)
        fabric.clip_gradients(self.module, self.stepper, max_norm=LARGEST_GRADIENT, error_if_nonfinite=False)
        self.stepper.step()
        self.plan.check(objective, self.frozen)
        if self.average:
            for key, value in self._learned(copy=False).items():
                # Sooner than the decay says at the beginning, so that the first weights are forgotten.
                decay = min(self.loop.ema, (1 + self.step) / (10 + self.step))
                self.average[key].copy_(decay * self.average[key] + (1 - decay) * value)
        mean = fabric.all_reduce(loss.detach(), reduce_op="mean")
        assert isinstance(mean, Tensor)
        return float(mean)

    def _note_loss(self) -> None:
        mean = float(np.mean(self.recent))
        self.recent.clear()
        self.tick(self.name, self.step, self.loop.steps)
        if math.isfinite(mean):  # a network that diverges leaves a gap
            self.curves["loss"].append([self.step, round(mean, 6)])
            self.fabric.log("loss", mean, self.step)

    def _evaluate(self) -> None:
        kept = self.average or self._learned(copy=False)
        own = self._learned() if self.average else {}
        if self.average:
            self._put(self.average)
        found = self.fabric.broadcast(self.work.validation() if self.fabric.is_global_zero else None)
        if own:
            self._put(own)
        self.plan.set_modes(self.work.objective)
        if found is None:
            self.best_step, self.best = self.step, {k: v.detach().clone() for k, v in kept.items()}
            return
        loss, accuracy = found
        if math.isfinite(loss):
            self.curves["validation"].append([self.step, round(loss, 6), round(accuracy, 6)])
            self.fabric.log_dict({"log_loss": loss, "accuracy": accuracy}, self.step)
        self.stale = 0 if loss < self.best_loss else self.stale + 1
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, self.step
            self.best = {k: v.detach().clone() for k, v in kept.items()}

    def _learned(self, *, copy: bool = True) -> dict[str, Tensor]:
        """Everything that ever learns, batch-norm statistics with it; frozen tensors are where they came from."""
        state = self.work.objective.state_dict()
        return {n: v.detach().clone() if copy else v for n, v in state.items() if self.everything.learns(n)}

    def _put(self, weights: dict[str, Tensor]) -> None:
        self.work.objective.load_state_dict(weights, strict=False)

    def _store(self) -> None:
        if self.checkpoint is None:
            return
        names = ("step", "best_step", "best_loss", "stale", "best", "curves", "average")
        state: dict[str, Any] = {name: getattr(self, name) for name in names}
        state |= {"learned": self._learned(), "optimiser": self.stepper.state_dict()["state"]}
        # Of every process, in order: their dropout differs.
        state |= {"numpy": self.rng.bit_generator.state, "torch": self._of_all(torch.random.get_rng_state())}
        self.fabric.save(self.checkpoint, state)

    def _restored(self) -> dict[str, Any] | None:
        """Go back to the checkpoint, if there is one; the optimiser follows when it is built."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return None
        state = self.fabric.load(self.checkpoint)
        try:
            if set(state["learned"]) != set(self._learned(copy=False)):
                raise KeyError("it is of another network")
            self._put(state["learned"])
            for name in ("step", "best_step", "best_loss", "stale", "best", "curves"):
                setattr(self, name, state[name])
            self.rng.bit_generator.state = state["numpy"]
            noise = state["torch"]
            torch.random.set_rng_state(
                noise if noise.ndim == 1 else noise[self.fabric.global_rank % len(noise)].clone()
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(f"The checkpoint {self.checkpoint} cannot be resumed from: {error}") from error
        return state

    def _agreed(self) -> None:
        """Raise `TrainingError` where processes begin at different steps, which would wait for each other for ever."""
        if bool((self._of_all(torch.tensor(self.step)) != self.step).any()):
            raise TrainingError(
                f"Not all nodes see the same checkpoint {self.checkpoint}: they must share the run's folder."
            )

    def _of_all(self, value: Tensor) -> Tensor:
        """A value `(…)` of every process, `(world, …)` in their order; as it is where there is one."""
        if self.fabric.world_size == 1:
            return value
        own = value.to(self.fabric.device)
        found = [torch.empty_like(own) for _ in range(self.fabric.world_size)]
        torch.distributed.all_gather(found, own)
        return torch.stack(found).cpu()

    def _load_optimiser(self, optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        try:
            optimiser.load_state_dict({**optimiser.state_dict(), "state": state["optimiser"]})
        except (KeyError, ValueError, RuntimeError) as error:
            raise TrainingError(f"The checkpoint {self.checkpoint} cannot be resumed from: {error}") from error
