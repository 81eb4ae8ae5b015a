"""A small regression of known behaviour: 2 channels x 4 samples in, 4 features out, 2 joint angles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporters.bundle import InputSpec, Target
from exporters.regression import Population, export_regression
from models.heads.head import Head
from tests.tiny import CHANNELS, DIM, LENGTH, tiny_graph

TARGETS = (Target(name="elbow", unit="deg"), Target(name="wrist", unit="deg"))
NAMES = tuple(target.name for target in TARGETS)
NOISE = 1.0

TRUTH = Head(np.array([[8.0, 2.0, 0.0, -1.0], [0.0, 1.0, 6.0, 3.0]]), np.array([45.0, 10.0]))
"""How the angles of the average person follow from the features."""


def raw(z: NDArray[np.floating]) -> NDArray[np.float32]:
    """Windows `(n, 2, 4)` whose features are `z (n, 4)`."""
    return np.repeat(z.reshape(len(z), CHANNELS, DIM // CHANNELS) / 2, 2, axis=2).astype(np.float32)


def person(rng: np.random.Generator, spread: float = 1.0) -> Head:
    """How the angles of one person follow from the features."""
    return Head(
        TRUTH.weight + 0.5 * spread * rng.standard_normal(TRUTH.weight.shape),
        TRUTH.bias + 3.0 * spread * rng.standard_normal(len(NAMES)),
    )


def recorded(
    rng: np.random.Generator, who: Head, windows: int = 60, noise: float = NOISE
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Windows of a person and the angles measured with them."""
    z = rng.standard_normal((windows, DIM)) + np.array([1.0, 0.0, 0.5, 0.0])
    return raw(z), who.logits(z) + noise * rng.standard_normal((windows, len(NAMES)))


def population(seed: int = 0, people: int = 8, repetitions: int = 3, windows: int = 30) -> Population:
    """People with repetitions of windows each."""
    rng = np.random.default_rng(seed)
    everyone = [person(rng) for _ in range(people)]
    parts = [recorded(rng, who, windows) for who in everyone for _ in range(repetitions)]
    return Population(
        windows=np.concatenate([x for x, _ in parts]),
        values=np.concatenate([t for _, t in parts]),
        users=np.repeat(np.arange(people), repetitions * windows),
        repetitions=np.tile(np.repeat(np.arange(repetitions), windows), people),
    )


def write_tiny_regression(models: Path, name: str = "angles", scale: float = 1.0, seed: int = 0) -> Path:
    """Write the next version of the tiny regression under `models`."""
    return export_regression(
        tiny_graph(scale),
        population(seed),
        models,
        name=name,
        input_spec=InputSpec(shape=(-1, CHANNELS, LENGTH), unit="counts", sample_rate=100.0, stride=4),
        targets=TARGETS,
        preprocessing="none",
    )
