"""Fine-tuning of a pre-trained encoder with a linear head on its features: one network as a job of its own."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from models.backbones.layers import layer_groups
from models.backbones.module import EncoderModule, create_encoder
from models.data.collections import Collection, Items
from models.training.config import TrainingError
from models.training.devices import Devices, run_on
from models.training.inputs import Augment, Inputs
from models.training.loggers import loggers_of
from models.training.loop import Fitted, Loop, Tick, fit
from models.training.memory import keep_freed
from models.training.timetable import Timetable, discriminative, freezing_out, lp_then_all, together

__all__ = [
    "SCALE",
    "TUNED",
    "Job",
    "Outcome",
    "TuneConfig",
    "Tuned",
    "Tuning",
    "encoded",
    "fit_job",
    "loop_of",
    "timetable_of",
]

SCALE = 16.0
"""Features of length 1 are stretched before the head, so that its weights are of the size that optimisers expect."""
BLOCK = 32
Recipe = Literal["lp-ft", "gradual", "freezeout", "full", "scratch"]
TUNED: tuple[Recipe, ...] = ("lp-ft", "gradual", "freezeout", "full", "scratch")
RATES: dict[str, float] = {"lp-ft": 1e-2, "gradual": 1e-3, "freezeout": 1e-4, "full": 1e-4, "scratch": 1e-3}


class TuneConfig(BaseModel):
    """Settings of fine-tuning; recorded in the run, and a resumed run must have the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    backbone: str = Field(description="name of a pre-trained encoder, as 'package:efficientnet-lite0'")
    settings: dict[str, Any] = Field(default_factory=dict, description="of the encoder, over its usual ones")
    recipe: Recipe = "lp-ft"
    start: str | None = Field(None, description="folder of a run whose weights it starts from instead")
    learns_from: str | None = Field(None, description="layer (tap) from which on it learns; below is a frozen trunk")
    personal: int = Field(128, ge=2, le=512, description="features that personal heads are fitted in, at most")
    seed: int = Field(0, ge=0, lt=2**32)
    threads: int = Field(1, ge=1, le=256)
    steps: int = Field(200, ge=1, description="gradient steps of one network, at most")
    batch: int = Field(16, ge=2)
    folds: int = Field(3, ge=1, description="parts (of people, where there are some) left out of a network each")
    learning_rate: float | None = Field(
        None, gt=0, description=f"of the head where it learns alone, else of the top layer; by recipe: {RATES}"
    )
    weight_decay: float = Field(0.01, ge=0, description="of matrices; biases and scales do not decay")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the features before the head")
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    augment: bool = Field(True, description="images moved, mirrored, relit; tokens dropped; sounds moved and varied")
    balance: Literal["none", "class", "user", "both"] = Field("class", description="what is drawn equally often")
    batch_norm: bool = Field(False, description="whether batch norms that learn estimate their statistics anew")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of averaged weights; 0: none")
    evaluate_every: int = Field(25, ge=1, description="steps between validations and checkpoints")
    patience: int = Field(4, ge=1, description="validations without gain before a network's training stops")
    freezeout: Literal["linear", "cubic"] = Field("cubic", description="of that recipe: how freezing times are spread")
    freezeout_scaled: bool = Field(True, description="of that recipe: layers with less time learn faster")
    freezeout_first: float = Field(0.8, ge=0.3, le=1, description="of that recipe: when the first layer freezes")

    @property
    def rate(self) -> float:
        """The learning rate given, or else the recipe's."""
        return self.learning_rate or RATES[self.recipe]


@dataclass(frozen=True, eq=False)
class Job:
    """One network to train: all that another process needs for it.

    Attributes:
        name: of the network, for progress, logs and the curves.
        recorded: name and settings that rebuild the encoder's architecture without its weights.
        state: the weights it starts from.
        files: what reading the encoder's media needs.
        head: weight `(K, d)` and bias `(K,)` to start from; None for zeros.
        keep, out: indexes of items that it learns from, and that judge it.
        steps: gradient steps, at most.
        seed: of its own.
        checkpoint: file to resume from.
        logs: folder and kinds of logs.
    """

    name: str
    recorded: dict[str, Any]
    state: dict[str, Tensor]
    files: dict[str, bytes]
    head: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    collection: Items
    keep: NDArray[np.int64]
    out: NDArray[np.int64]
    config: TuneConfig
    steps: int
    seed: int
    checkpoint: Path
    devices: Devices
    logs: tuple[Path, tuple[str, ...]]

    def encoder(self) -> EncoderModule:
        """Build the encoder with the weights that the job starts from."""
        encoder = create_encoder(self.recorded["encoder"], self.recorded["settings"])
        encoder.load_state_dict(self.state)
        encoder.files.update(self.files)
        return encoder

    @property
    def labelled(self) -> Collection:
        """The collection, which has labels where this one task is learned."""
        assert isinstance(self.collection, Collection)
        return self.collection

    def tuned(self, encoder: EncoderModule) -> "Tuned":
        """The network with its head, as the job starts from it."""
        return self.headed(Tuned(encoder, len(self.labelled.labels), self.config.dropout, self.config.label_smoothing))

    def headed(self, tuned: "Tuned") -> "Tuned":
        """Put the head that the job starts from into a network, in inference mode."""
        if self.head is not None:
            tuned.head.weight.data.copy_(torch.from_numpy(self.head[0] / SCALE))
            tuned.head.bias.data.copy_(torch.from_numpy(self.head[1]))
        return tuned.eval()

    def tuning(self, tuned: "Tuned", inputs: Inputs) -> "Tuning":
        """What the loop trains."""
        return Tuning(tuned, inputs, self)


@dataclass(frozen=True, eq=False)
class Outcome:
    """A trained network: the encoder's weights, the head's `(K, d)` and `(K,)` on features of length 1, everyone's
    features `(n, d)` and logits `(n, K)`, how training went, and its seconds."""

    state: dict[str, Tensor]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    features: NDArray[np.float64]
    logits: NDArray[np.float64]
    fitted: Fitted
    seconds: float


class Tuned(nn.Module):
    """An encoder with a linear head on its features of length 1; called with rows and labels it gives the loss."""

    def __init__(self, encoder: EncoderModule, classes: int, dropout: float, label_smoothing: float) -> None:
        super().__init__()
        self.encoder, self.dropout, self.label_smoothing = encoder, nn.Dropout(dropout), label_smoothing
        self.head = nn.Linear(encoder.num_features, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def logits(self, z: Tensor) -> Tensor:
        """Logits `(n, K)` of the encoder's features `(n, d)`."""
        y: Tensor = self.head(self.dropout(SCALE * functional.normalize(z, dim=1)))
        return y

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of rows `(n, …)` and labels `(n,)`."""
        return functional.cross_entropy(self.logits(self.encoder(x)), y, label_smoothing=self.label_smoothing)


def timetable_of(encoder: EncoderModule, config: TuneConfig, steps: int) -> Timetable:
    """Which layers of `Tuned` learn when, by the recipe.

    Raises:
        TrainingError: the encoder has nothing that could learn.
    """
    taps = layer_groups(encoder)
    if not taps:
        raise TrainingError(f"'{config.backbone}' has no weights that could learn; its recipe is linear-probe.")
    if config.learns_from is not None:
        if config.learns_from not in taps:
            raise TrainingError(
                f"'{config.backbone}' has no layer '{config.learns_from}'; there are: {', '.join(taps)}."
            )
        taps = dict(list(taps.items())[list(taps).index(config.learns_from) :])
    layers = [[f"encoder.{name}" if name else "encoder" for name in group] for group in taps.values()] + [["head"]]
    if config.recipe == "lp-ft":
        return lp_then_all(layers, steps, config.rate)
    if config.recipe == "gradual":
        return discriminative(layers, steps, config.rate)
    if config.recipe == "freezeout":
        first, how, scaled = config.freezeout_first, config.freezeout, config.freezeout_scaled
        return freezing_out(layers, steps, config.rate, first=first, how=how, scaled=scaled)
    return together(layers, steps, config.rate)


class Tuning:
    """What the loop trains."""

    def __init__(self, tuned: Tuned, inputs: Inputs, job: Job) -> None:
        self.objective, self.inputs, self.job = tuned, inputs, job
        self._shares = self.shares()
        self._augment = Augment(tuned.encoder.input, job.seed) if job.config.augment else None
        self._order: tuple[int, NDArray[np.int64]] = (-1, job.keep)

    def shares(self) -> NDArray[np.float64] | None:
        """How often each kept item is drawn; None where they take turns."""
        return _shares(self.job.labelled, self.job.keep, self.job.config.balance)

    def answers(self, drawn: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """What the objective is told of drawn items beside their rows: labels `(n,)`."""
        return (torch.from_numpy(self.job.labelled.y[drawn]),)

    def batch(self, rng: np.random.Generator, step: int, rank: int, world: int) -> tuple[Tensor, ...]:
        """Rows and answers of a step; all processes draw the same and take every world-th of them."""
        size = self.job.config.batch
        if self._shares is None:
            drawn = np.array([self._in_turn(step * size + i) for i in range(size)])
        else:
            drawn = rng.choice(self.job.keep, size, p=self._shares)
        mine = range(rank, size, world)
        x = self.inputs.take(drawn[rank::world])
        rows = torch.from_numpy(x) if self._augment is None else self._augment(x, step, mine)
        return rows, *self.answers(drawn[rank::world])

    def _in_turn(self, place: int) -> int:
        """Item at a place of an endless row of shuffles."""
        turn, at = divmod(place, len(self.job.keep))
        if self._order[0] != turn:
            self._order = turn, np.random.default_rng((self.job.seed, turn)).permutation(self.job.keep)
        return int(self._order[1][at])

    def validation(self) -> tuple[float, float] | None:
        """Class-balanced log-loss and accuracy on what was left out."""
        if not len(self.job.out):
            return None
        _, logits = encoded(self.objective, self.inputs, self.job.out)
        y = self.job.labelled.y[self.job.out]
        if not np.isfinite(logits).all():
            return math.inf, 0.0
        share = 1.0 / np.bincount(y)[y]
        log_posterior = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
        losses = -log_posterior[np.arange(len(y)), y]
        return float((losses * share).sum() / share.sum()), float((logits.argmax(1) == y).mean())


def _shares(collection: Collection, keep: NDArray[np.int64], balance: str) -> NDArray[np.float64] | None:
    if balance == "none":
        return None
    y, user = collection.y[keep], collection.user[keep]
    group = {"class": y, "user": user, "both": user * len(collection.labels) + y}[balance]
    share = 1.0 / np.bincount(group)[group]
    return np.asarray(share / share.sum())


@torch.no_grad()
def encoded(
    tuned: Tuned, inputs: Inputs, index: Sequence[int] | NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features `(n, d)` and logits `(n, K)` of items, in inference mode."""
    tuned.eval()
    device = tuned.head.weight.device
    z, logits = [], []
    for start in range(0, len(index), BLOCK):
        features = tuned.encoder(torch.from_numpy(inputs.take(index[start : start + BLOCK])).to(device))
        z.append(features.cpu().numpy())
        logits.append(tuned.logits(features).cpu().numpy())
    return np.concatenate(z).astype(np.float64), np.concatenate(logits).astype(np.float64)


def loop_of(job: Job) -> Loop:
    """Settings of the loop for a job."""
    config = job.config
    return Loop(
        steps=job.steps,
        evaluate_every=min(config.evaluate_every, job.steps),
        patience=config.patience,
        seed=job.seed,
        weight_decay=config.weight_decay,
        ema=config.ema,
        batch_norm=config.batch_norm,
    )


def fit_job(job: Job, tick: Tick | None = None) -> Outcome:
    """Train a job's network, in this process or in as many as its devices say.

    Raises:
        TrainingError: an item cannot be read, the encoder cannot learn, or the checkpoint is damaged.
        ValueError: the devices are not there.
    """
    return run_on(job.devices, loggers_of(job.logs[1], job.logs[0], job.name), _fit_job, job, tick)


def _fit_job(fabric: Fabric, job: Job, tick: Tick | None = None) -> Outcome:
    begin = time.monotonic()
    keep_freed()
    torch.set_num_threads(job.config.threads)
    config, encoder = job.config, job.encoder()
    tuned, inputs = job.tuned(encoder), Inputs(encoder, job.collection)
    table, loop = timetable_of(encoder, config, job.steps), loop_of(job)
    work = job.tuning(tuned, inputs)
    fitted = fit(fabric, work, table, loop, name=job.name, checkpoint=job.checkpoint, tick=tick)
    features, logits = encoded(tuned, inputs, np.arange(len(job.collection)))
    if not (np.isfinite(features).all() and math.isfinite(float(np.abs(logits).max()))):
        raise TrainingError(
            f"The training of {job.name} diverged; a smaller learning_rate than {config.rate:g} may do."
        )
    return Outcome(
        state={name: value.cpu().clone() for name, value in encoder.state_dict().items()},
        weight=SCALE * tuned.head.weight.detach().cpu().numpy().astype(np.float64),
        bias=tuned.head.bias.detach().cpu().numpy().astype(np.float64),
        features=features,
        logits=logits,
        fitted=fitted,
        seconds=round(time.monotonic() - begin, 2),
    )
