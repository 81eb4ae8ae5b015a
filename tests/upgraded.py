"""The tiny model with another backbone: features mixed, and bent as far as is asked. And people to bridge the two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporters import bundle as bundles
from exporters.bundle import BridgeEntry
from models.data.recordings import Recordings, save
from models.heads import bridge as bridges
from models.heads import prior as priors
from models.heads.bridge import Bridge, BridgeParity
from models.heads.prior import Prior
from tests.tiny import DIM, LABELS, tiny_graph, tiny_manifest, tiny_prior

MIX = np.array([[0.9, -0.5, 0.2, 0.0], [0.4, 0.8, 0.0, 0.3], [0.0, 0.1, 1.1, -0.6], [-0.2, 0.0, 0.5, 0.9]])
SHIFT = np.array([1.0, -2.0, 0.5, 0.0])


def upgraded_graph(bend: float = 0.0) -> bytes:
    """The tiny graph's features mixed and shifted, plus `bend` times the sine of each."""
    model = onnx.load_from_string(tiny_graph())
    graph = model.graph
    graph.node[1].output[0] = "old"
    graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name)
        for name, value in (("mix", MIX), ("shift", SHIFT), ("bend", np.array(bend)))
    )
    graph.node.extend(
        [
            helper.make_node("MatMul", ["old", "mix"], ["mixed"]),
            helper.make_node("Add", ["mixed", "shift"], ["shifted"]),
            helper.make_node("Sin", ["old"], ["waves"]),
            helper.make_node("Mul", ["waves", "bend"], ["bent"]),
            helper.make_node("Add", ["shifted", "bent"], ["features"]),
        ]
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def upgraded_prior() -> Prior:
    """The tiny prior in the mixed features."""
    old = tiny_prior()

    def turned(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
        return MIX.T @ covariance @ MIX

    means = old.means @ MIX + SHIFT
    inverse = np.linalg.inv(turned(old.within))
    weight = means @ inverse
    return replace(
        old,
        generic_weight=weight,
        generic_bias=-0.5 * (weight * means).sum(1),
        means=means,
        within=turned(old.within),
        between=turned(old.between),
        repetition=turned(old.repetition),
        whitening=np.linalg.inv(np.linalg.cholesky(turned(old.within))),
    )


def write_upgraded_bundle(models: Path, version: int = 2, bend: float = 0.0) -> Path:
    """Write the tiny model with the other backbone."""
    graph = upgraded_graph(bend)
    files = {bundles.BACKBONE: graph, bundles.PRIOR: priors.to_bytes(upgraded_prior()), bundles.CARD: b"# tiny\n"}
    return bundles.write(models, tiny_manifest("tiny", version, graph), files)


def write_bridged_bundle(
    models: Path, version: int = 2, loss: float = 0.0, bend: float = 0.0, user_labels: int = 0
) -> Path:
    """Write the same with a bridge from the tiny model, exact where nothing is bent; `loss` is what its parity says."""
    graph, bridge = upgraded_graph(bend), Bridge(MIX.T, SHIFT, 0.25 * bend**2 * np.eye(DIM))
    parity = BridgeParity(
        users=6, bridged=0.9 - loss, inputs=0.9, generic=0.7, mean_loss=loss, worst_loss=loss, harmed=0
    )
    space = tiny_manifest().feature_space
    file = f"bridge.{space}.safetensors"
    entry = BridgeEntry(file=file, version=1, digest="0" * 64, parity=parity)
    files = {
        bundles.BACKBONE: graph,
        bundles.PRIOR: priors.to_bytes(upgraded_prior()),
        bundles.CARD: b"# tiny\n",
        file: bridges.to_bytes(bridge),
    }
    manifest = tiny_manifest("tiny", version, graph, user_labels).model_copy(update={"bridges": {space: entry}})
    return bundles.write(models, manifest, files)


def write_people(folder: Path, number: int, rng: np.random.Generator) -> None:
    """Recordings of people whose windows the tiny models take: four repetitions of each label."""
    folder.mkdir(parents=True, exist_ok=True)
    means = tiny_prior().means.reshape(len(LABELS), 2, DIM // 2).mean(2) / 2
    for person in range(number):
        own = means + 0.4 * rng.standard_normal(means.shape)
        parts, rows = [], []
        for repetition in range(4):
            for label in range(len(LABELS)):
                begin = 60 * len(parts)
                parts.append(own[label] + 0.1 * rng.standard_normal(2) + 0.3 * rng.standard_normal((60, 2)))
                rows.append((begin, begin + 60, label, repetition))
        start, stop, label, repetition = np.array(rows).T
        rec = Recordings.build(
            np.concatenate(parts).astype(np.float32), start, stop, label, repetition,
            label_names=LABELS, fs=100.0, subject=f"p{person}",
        )  # fmt: skip
        save(folder / f"p{person}.npz", rec)
