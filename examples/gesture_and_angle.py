"""A gesture and a joint angle by one forward: two outputs of one bundle, each calibrated to a person apart.

Everything is synthetic and seeded. Six channels of noise stand for muscles, whose log power follows what the hand does
and how far the elbow is bent, for everyone in a similar and for no one in the same way. One ONNX graph of raw windows
to log power serves both outputs; a calibration of one leaves every answer of the other as it was, to the bit.

python -m examples.gesture_and_angle
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from examples.joint_angles import CHANNELS, LENGTH, backbone
from exporters.bundle import InputSpec
from exporters.bundle_outputs import Target
from exporters.regression import Population
from exporters.tasks import Task, export_multitask
from service.commands.process import running_service

GESTURES = ("rest", "fist", "open")
ELBOW = Target(name="elbow", unit="deg")
STRAIGHT, BENT = 0.0, 120.0
"""Degrees."""
MODEL = "/v2/models/arm"

Recorded = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]
"""Windows `(n, 6, 64)` in time order, what the hand did `(n,)`, and the elbow's angle in degrees `(n, 1)`."""


class Person:
    """Somebody whose muscles follow hand and elbow in a way of their own."""

    def __init__(self, rng: np.random.Generator, hand: NDArray[np.float64], elbow: NDArray[np.float64]) -> None:
        self._rng = rng
        self._hand = hand + 0.9 * rng.standard_normal(hand.shape)
        self._elbow = elbow + 0.3 * rng.standard_normal(elbow.shape)

    def recorded(self, windows: int) -> Recorded:
        """One go: gestures one after the other while the elbow moves."""
        y = np.arange(windows) * 6 // windows % len(GESTURES)
        share = 0.5 + 0.5 * np.sin(self._rng.uniform(0, 2 * np.pi) + np.linspace(0, self._rng.uniform(20, 30), windows))
        level = np.exp((self._hand[y] + share[:, None] * self._elbow) / 2)
        signal = level[:, :, None] * self._rng.standard_normal((windows, CHANNELS, LENGTH))
        return signal.astype(np.float32), y, (STRAIGHT + share * (BENT - STRAIGHT))[:, None]


def export(models: Path, people: list[Person], repetitions: int = 3, windows: int = 60) -> Path:
    """Let people record themselves, and write a bundle of both outputs."""
    parts = [who.recorded(windows) for who in people for _ in range(repetitions)]
    x, hand, elbow = (np.concatenate(each) for each in zip(*parts, strict=True))
    users = np.repeat(np.arange(len(people)), repetitions * windows)
    ids = np.tile(np.repeat(np.arange(repetitions), windows), len(people))
    return export_multitask(
        backbone(),
        [
            Task("gesture", labels=GESTURES, population=Population(x, hand, users, ids)),
            Task("elbow", targets=(ELBOW,), population=Population(x, elbow, users, ids)),
        ],
        models,
        name="arm",
        input_spec=InputSpec(shape=(-1, CHANNELS, LENGTH), unit="mV", sample_rate=1000.0, stride=LENGTH),
        preprocessing="log power of each channel",
        description="Gesture and elbow from six synthetic muscles.",
    )


class Stranger:
    """A person that nobody trained on, and the service as they see it."""

    def __init__(self, client: httpx.Client, user: str, who: Person) -> None:
        self._client, self._user, self._who = client, user, who
        self._x, self._y, self._t = who.recorded(240)

    def answers(self) -> dict[str, Any]:
        """What each output says of the same windows, by one request."""
        answer = self._client.post(f"{MODEL}/predict?user_id={self._user}", json={"inputs": self._x.tolist()})
        outputs: dict[str, Any] = answer.raise_for_status().json()["outputs"]
        return outputs

    def worth(self, answers: dict[str, Any]) -> tuple[float, float]:
        """Share of gestures told right, and root mean squared error of the elbow in degrees."""
        said = [GESTURES.index(row["label"]) for row in answers["gesture"]["predictions"]]
        bent = [[row["values"]["elbow"]] for row in answers["elbow"]["predictions"]]
        return float((np.array(said) == self._y).mean()), float(np.sqrt(((np.array(bent) - self._t) ** 2).mean()))

    def calibrate(self, task: str, repetitions: int = 2) -> str:
        """Show an output some windows; returns the guard's verdict."""
        parts = [self._who.recorded(60) for _ in range(repetitions)]
        x, y, t = (np.concatenate(each) for each in zip(*parts, strict=True))
        shown = {"labels": [GESTURES[i] for i in y]} if task == "gesture" else {"targets": t.tolist()}
        body = {"inputs": x.tolist(), "repetitions": np.repeat(np.arange(repetitions), 60).tolist(), **shown}
        url = f"{MODEL}/users/{self._user}/calibrations?task={task}"
        return str(self._client.post(url, json=body).raise_for_status().json()["outcome"])


def run(folder: Path, people: int = 12, strangers: int = 4, seed: int = 0) -> NDArray[np.float64]:
    """Make the bundle, serve it, and calibrate strangers: first the gestures alone, then the elbow.

    Returns:
        Share of gestures and error of the elbow, by the shared heads and after each calibration, `(strangers, 3, 2)`.
    """
    rng = np.random.default_rng(seed)
    hand, elbow = rng.standard_normal((len(GESTURES), CHANNELS)), rng.uniform(1.0, 3.0, CHANNELS)
    path = export(folder / "models", [Person(rng, hand, elbow) for _ in range(people)])
    print(f"{path}: trained on {people} people; gestures {', '.join(GESTURES)}, and {ELBOW}")
    found = []
    with (
        running_service(folder / "models", folder / "store", "--frontends", "1") as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        for number in range(strangers):
            stranger = Stranger(client, f"stranger-{number}", Person(rng, hand, elbow))
            answers = stranger.answers()
            worth = [stranger.worth(answers)]
            print(f"stranger-{number}: {_told(worth[0])} by the shared heads")
            for task, other in (("gesture", "elbow"), ("elbow", "gesture")):
                outcome = stranger.calibrate(task)
                before, answers = answers, stranger.answers()
                if not same(other, before, answers):
                    raise AssertionError(f"the {task} was calibrated, and answers of the {other} changed")
                worth.append(stranger.worth(answers))
                print(f"  {task} calibrated ({outcome}), no answer of the {other} changed: {_told(worth[-1])}")
            found.append(worth)
    return np.array(found)


def same(output: str, before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether an output says the same as before, but for rounding: batches of other sizes add in another order."""
    one, other = (answers[output]["predictions"] for answers in (before, after))
    if output == "gesture":
        return [row["label"] for row in one] == [row["label"] for row in other]
    return np.allclose([row["values"]["elbow"] for row in one], [row["values"]["elbow"] for row in other], atol=1e-3)


def _told(worth: tuple[float, float]) -> str:
    return f"{worth[0]:.0%} of gestures, elbow within {worth[1]:.1f}°"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--strangers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        run(Path(made), options.people, options.strangers, options.seed)
