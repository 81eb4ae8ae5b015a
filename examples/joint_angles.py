"""Joint angles instead of labels: a regression bundle is made, served, and calibrated to a new person over HTTP.

Everything is synthetic and seeded. Six channels of noise stand for muscles: their log power follows two joint angles,
for everyone in a similar and for no one in the same way. The backbone is an ONNX graph of raw windows to log power.

python -m examples.joint_angles
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import httpx
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporters.bundle import InputSpec, Target
from exporters.regression import Population, export_regression
from service.commands.process import running_service

CHANNELS, LENGTH = 6, 64
TARGETS = (Target(name="elbow", unit="deg"), Target(name="wrist", unit="deg"))
RANGE = np.array([[0.0, -40.0], [120.0, 60.0]])
"""Least and greatest angles, degrees."""


def backbone() -> bytes:
    """A graph from raw windows `(n, 6, 64)` to the log power of each channel `(n, 6)`."""
    nodes = [
        helper.make_node("Mul", ["input", "input"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axis"], ["power"], keepdims=0),
        helper.make_node("Add", ["power", "least"], ["above"]),
        helper.make_node("Log", ["above"], ["features"]),
    ]
    constants = {"axis": np.array([2], np.int64), "least": np.array(1e-6, np.float32)}
    graph = helper.make_graph(
        nodes,
        "log_power",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", CHANNELS, LENGTH])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", CHANNELS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


class Person:
    """Somebody whose muscles follow their joints in a way of their own."""

    def __init__(self, rng: np.random.Generator, common: NDArray[np.float64]) -> None:
        self._rng = rng
        self._weight = common + 0.25 * rng.standard_normal(common.shape)
        self._offset = 0.6 * rng.standard_normal(CHANNELS)

    def recorded(self, windows: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """One go at moving both joints: windows `(n, 6, 64)` in time order, and the angles measured, `(n, 2)`."""
        phase = self._rng.uniform(0, 2 * np.pi, 2) + np.linspace(0, 1, windows)[:, None] * self._rng.uniform(8, 16, 2)
        share = 0.5 + 0.5 * np.sin(phase)
        level = np.exp((share @ self._weight.T + self._offset) / 2)
        signal = level[:, :, None] * self._rng.standard_normal((windows, CHANNELS, LENGTH))
        return signal.astype(np.float32), RANGE[0] + share * (RANGE[1] - RANGE[0])


def population(people: list[Person], repetitions: int = 3, windows: int = 60) -> Population:
    """Let people record themselves."""
    parts = [who.recorded(windows) for who in people for _ in range(repetitions)]
    return Population(
        windows=np.concatenate([x for x, _ in parts]),
        values=np.concatenate([t for _, t in parts]),
        users=np.repeat(np.arange(len(people)), repetitions * windows),
        repetitions=np.tile(np.repeat(np.arange(repetitions), windows), len(people)),
    )


def errors(client: httpx.Client, user: str, x: NDArray[np.float32], t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean squared error of what the service says of a user's windows, by joint, degrees."""
    answer = client.post(f"/v2/models/angles/predict?user_id={user}", json={"inputs": x.tolist()}).raise_for_status()
    said = [[row["values"][target.name] for target in TARGETS] for row in answer.json()["predictions"]]
    return np.sqrt(((np.array(said) - t) ** 2).mean(0))


def run(folder: Path, people: int = 12, strangers: int = 5, seed: int = 0) -> NDArray[np.float64]:
    """Make the bundle, serve it, and print each stranger's errors before and after one and two calibrations.

    Returns:
        Root mean squared errors in degrees, `(strangers, 3, 2)`.
    """
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((CHANNELS, len(TARGETS))) + 1.5 * np.eye(CHANNELS, len(TARGETS))
    path = export_regression(
        backbone(),
        population([Person(rng, common) for _ in range(people)]),
        folder / "models",
        name="angles",
        input_spec=InputSpec(shape=(-1, CHANNELS, LENGTH), unit="mV", sample_rate=1000.0, stride=LENGTH),
        targets=TARGETS,
        preprocessing="log power of each channel",
        description="Elbow and wrist from six synthetic muscles.",
    )
    print(f"{path}: trained on {people} people, {', '.join(map(str, TARGETS))}")
    with (
        running_service(folder / "models", folder / "store", "--frontends", "1") as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        found = []
        for number in range(strangers):
            who, user = Person(rng, common), f"stranger-{number}"
            x, t = who.recorded(200)
            found.append([errors(client, user, x, t)])
            told = [f"{user}: elbow, wrist {_degrees(found[-1][0])} by the shared head"]
            for repetition in range(1, 3):
                shown, angles = who.recorded(60)
                body = {"inputs": shown.tolist(), "targets": angles.tolist()}
                answer = client.post(f"/v2/models/angles/users/{user}/calibrations", json=body).raise_for_status()
                found[-1].append(errors(client, user, x, t))
                told.append(f"{_degrees(found[-1][-1])} after {repetition} ({answer.json()['outcome']})")
            print("; ".join(told))
    return np.array(found)


def _degrees(values: NDArray[np.float64]) -> str:
    return " and ".join(f"{value:.1f}°" for value in values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--strangers", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        run(Path(made), options.people, options.strangers, options.seed)
