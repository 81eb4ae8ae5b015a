"""The smallest network there is to train on several machines, as a job that can be pickled."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models.training.config import TrainingError
from models.training.loop import Loop, fit
from models.training.timetable import Layer, Timetable

BATCH = 8


@dataclass(frozen=True)
class SmallJob:
    """A linear layer to fit; with a folder `told` each process says who it is at step 7, and stands still."""

    name: str
    checkpoint: Path
    told: Path | None = None
    fails: int | None = None
    dropout: float = 0.3


class _Line:
    def __init__(self, job, fabric):
        self.job, self.fabric = job, fabric
        torch.manual_seed(3)
        self.objective = nn.Module()
        self.objective.learns = nn.Linear(4, 3)
        self.objective.forward = self.loss
        self.truth = torch.linspace(-1, 1, 12).reshape(4, 3)

    def loss(self, x, y):
        return (self.objective.learns(functional.dropout(x, self.job.dropout)) - y).square().mean()

    def batch(self, rng, step, rank, world):
        if step == 7 and self.job.told is not None:
            (self.job.told / str(rank)).write_text(f"{os.getpid()} {os.getppid()}")
            time.sleep(600)
        if step == 7 and self.job.fails == rank:
            raise TrainingError(f"process {rank} cannot read its share")
        x = torch.from_numpy(rng.standard_normal((BATCH, 4)).astype(np.float32))[rank::world]
        return x, x @ self.truth

    def validation(self):
        return None


def fit_small(fabric, job, tick=None):
    """Weights after 12 steps, with a checkpoint every 3; and the step that it began at."""
    torch.set_num_threads(1)
    work = _Line(job, fabric)
    table = Timetable((Layer(("learns",), lambda step: 0.1),))
    began = int(fabric.load(job.checkpoint)["step"]) if job.checkpoint.is_file() else 0
    fit(fabric, work, table, Loop(12, 3, 9, 0, 0.0), name=job.name, checkpoint=job.checkpoint, tick=tick)
    return {k: v.clone() for k, v in work.objective.state_dict().items()}, began
