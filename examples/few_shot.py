"""People with labels of their own: a served model, a few examples each, and a linear probe to compare with.

The labels of a collection are split: on one half a model is trained, exported and served; of the other half every
person names five, which the model has never seen. They are calibrated and scored over HTTP, with raw files or texts.
"""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from exporters.export import export_run
from models.backbones import create_encoder
from models.data.collections import Collection
from models.training.features import features_of
from models.training.linear_probe import LinearProbeConfig, train_probe
from models.training.probe_fit import PULLS, fit_probe
from service.commands.process import running_service

WAYS, SHOTS, QUERIES = 5, (1, 5), 10
FEWEST = max(SHOTS) + QUERIES
"""Examples that a label must have to be somebody's own."""


def some(collection: Collection, which: Sequence[int]) -> Collection:
    """Return the items of some labels."""
    kept = np.flatnonzero(np.isin(collection.y, which))
    labels = tuple(collection.labels[i] for i in which)
    y = np.searchsorted(np.array(which), collection.y[kept])
    items = tuple(collection.items[i] for i in kept)
    return replace(
        collection,
        items=items,
        labels=labels,
        y=y,
        user=collection.user[kept],
        repetition=np.unique(collection.repetition[kept], return_inverse=True)[1],
    )


def sent(item: bytes | str) -> str:
    """What an item is in JSON."""
    return item if isinstance(item, str) else base64.b64encode(item).decode()


def tasks(collection: Collection, people: int, rng: np.random.Generator) -> list[tuple[Any, Any]]:
    """Of each person, the items shown `(ways, 5)` and those asked `(ways, 10)`, a label a row."""
    drawn = []
    usable = [k for k in range(len(collection.labels)) if (collection.y == k).sum() >= FEWEST]
    for _ in range(people):
        own = rng.choice(usable, WAYS, replace=False)
        rows = np.stack([rng.permutation(np.flatnonzero(collection.y == k))[:FEWEST] for k in own])
        drawn.append((rows[:, : max(SHOTS)], rows[:, max(SHOTS) :]))
    return drawn


def probe_accuracy(z: np.ndarray, shown: np.ndarray, asked: np.ndarray, pull: float) -> float:
    """Accuracy of a linear probe on a person's few examples alone, in all features of the encoder."""
    ways, shots = shown.shape
    weight, bias = fit_probe(z[shown.ravel()], np.repeat(np.arange(ways), shots), ways, pull)
    return float(((z[asked.ravel()] @ weight.T + bias).argmax(1) == np.repeat(np.arange(ways), asked.shape[1])).mean())


def served_accuracy(
    client: httpx.Client, user: str, own: Collection, shown: np.ndarray, asked: np.ndarray, tta: int = 1
) -> tuple[float, dict[str, Any]]:
    """Calibrate a person over HTTP, every shot a repetition; return the accuracy of predictions, and the report."""
    shots = shown.shape[1]
    body = {
        "inputs": [sent(own.read(int(i))) for i in shown.T.ravel()],
        "labels": [f"my {own.labels[own.y[i]]}" for i in shown.T.ravel()],
        "repetitions": np.repeat(np.arange(shots), WAYS).tolist(),
        "among": "shown",
        "tta": tta,
        "activate": "if_better" if shots > 1 else "always",
    }
    report = client.post(f"/v2/models/few/users/{user}/calibrations", json=body).raise_for_status().json()
    found = client.post(
        f"/v2/models/few/predict?user_id={user}&tta={tta}",
        json={"inputs": [sent(own.read(int(i))) for i in asked.ravel()]},
    )
    labels = [p["label"] for p in found.raise_for_status().json()["predictions"]]
    truth = [f"my {own.labels[own.y[i]]}" for i in asked.ravel()]
    return float(np.mean([a == b for a, b in zip(labels, truth, strict=True)])), report


def run(collection: Collection, backbone: str, cache: Path, *, splits: int = 2, people: int = 10, tta: int = 1) -> None:
    """Print accuracy by shots: personal heads by the service, and linear probes on the same examples.

    `tta`: views of each item that the service averages, in calibrations and in predictions; probes have none.
    """
    rows: dict[int, list[tuple[float, float, float, bool]]] = {k: [] for k in SHOTS}
    generic = []
    encoder = create_encoder(backbone)
    for split in range(splits):
        rng = np.random.default_rng(split)
        order = rng.permutation(len(collection.labels))
        half = len(order) // 2
        known, own = (some(collection, sorted(part.tolist())) for part in (order[:half], order[half:]))
        z = {name: unit(features_of(encoder, part, cache)[0]) for name, part in (("known", known), ("own", own))}
        with tempfile.TemporaryDirectory() as folder:
            trained = train_probe(known, LinearProbeConfig(backbone=backbone), Path(folder) / "run", cache=cache)
            generic.append(trained.evaluation["zero_shot"]["mean"])
            export_run(Path(folder) / "run", Path(folder) / "models", name="few", user_labels=WAYS)
            with (
                running_service(Path(folder) / "models", Path(folder), "--frontends", "1") as service,
                httpx.Client(base_url=service.url, timeout=120) as client,
            ):
                for shots in SHOTS:
                    pull = pull_of(z["known"], tasks(known, people, np.random.default_rng(99)), shots)
                    for n, (shown, asked) in enumerate(tasks(own, people, rng)):
                        shown = shown[:, :shots]
                        begin = time.monotonic()
                        personal, report = served_accuracy(client, f"user-{shots}-{n}", own, shown, asked, tta)
                        seconds = time.monotonic() - begin
                        better = report["outcome"] in ("promoted", "blended")
                        rows[shots].append((personal, probe_accuracy(z["own"], shown, asked, pull), seconds, better))
    print(f"{len(collection)} {collection.kind}s, {len(collection.labels)} labels, {backbone}, tta {tta}")
    print(f"known labels, left out: generic head {np.mean(generic):.1%}")
    for shots, found in rows.items():
        personal, probe, _, served = (np.array(v, float) for v in zip(*found, strict=True))
        away = personal - probe
        print(
            f"{shots} example{'s' if shots > 1 else ' '} of {WAYS} labels of their own, {len(found)} people: "
            f"personal head {personal.mean():.1%} ± {personal.std(ddof=1):.1%}, linear probe {probe.mean():.1%}, "
            f"difference {away.mean():+.1%} ± {1.96 * away.std(ddof=1) / len(away) ** 0.5:.1%}, "
            f"served {served.mean():.0%}"
        )


def unit(z: np.ndarray) -> np.ndarray:
    """Features brought to length 1."""
    return z.astype(np.float64) / np.linalg.norm(z, axis=1, keepdims=True)


def pull_of(z: np.ndarray, drawn: list[tuple[Any, Any]], shots: int) -> float:
    """The probe's best strength on people with labels of the half that the model knows."""
    scores = {p: np.mean([probe_accuracy(z, shown[:, :shots], asked, p) for shown, asked in drawn]) for p in PULLS}
    return max(scores, key=lambda p: scores[p])
