"""A small bundle with two outputs on one graph: the tiny labels, `gesture`, and the tiny angles, `angles`."""

from __future__ import annotations

from pathlib import Path

from exporters.bundle import InputSpec
from exporters.bundle_outputs import Ranges
from exporters.tasks import Task, export_multitask
from tests import tiny_regression
from tests.tiny import CHANNELS, LABELS, LENGTH, tiny_graph, tiny_prior

SPEC = InputSpec(shape=(-1, CHANNELS, LENGTH), unit="counts", sample_rate=100.0, stride=4)


def gesture(name: str = "gesture", user_labels: int = 0, features: Ranges = ()) -> Task:
    """The tiny labels, by the tiny prior."""
    return Task(name, labels=LABELS, prior=tiny_prior(), user_labels=user_labels, features=features)


def angles(name: str = "angles", features: Ranges = ()) -> Task:
    """Two joint angles of a population."""
    return Task(name, targets=tiny_regression.TARGETS, population=tiny_regression.population(), features=features)


def write_tiny_outputs(models: Path, *tasks: Task, name: str = "arm", scale: float = 1.0) -> Path:
    """Write the next version of a bundle with these outputs, by default `gesture` and `angles`."""
    chosen = tasks or (gesture(), angles())
    return export_multitask(tiny_graph(scale), chosen, models, name=name, input_spec=SPEC, preprocessing="none")
