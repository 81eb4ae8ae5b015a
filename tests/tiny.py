"""A small model of known behaviour: 2 channels x 4 samples in, 4 features out, 3 classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporters import bundle as bundles
from exporters.bundle import InputSpec, Manifest
from models.heads import prior as priors
from models.heads.prior import Evidence, HyperParameters, Prior

CHANNELS, LENGTH, DIM = 2, 4, 4
LABELS = ("rest", "fist", "open")


def tiny_graph(scale: float = 1.0) -> bytes:
    """A graph that adds up samples 0-1 and 2-3 of each channel: `(n, 2, 4)` -> `(n, 4)`."""
    weight = np.zeros((CHANNELS * LENGTH, DIM), np.float32)
    for i in range(CHANNELS * LENGTH):
        weight[i, i // 2] = scale
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["features"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", CHANNELS, LENGTH])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", DIM])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def tiny_prior() -> Prior:
    """A population whose class means are far apart, and whose users differ from it moderately."""
    means = np.array([[0, 0, 0, 0], [4, 4, 0, 0], [0, 0, 4, 4]], float)
    evidence = tuple(
        Evidence(windows=w, repetitions=r, users=10, gain=0.1, lower=0.05, floor=0.8)
        for w, r in ((1, 1), (5, 1), (20, 2))
    )
    return Prior(
        labels=LABELS,
        generic_weight=means,
        generic_bias=-0.5 * (means**2).sum(1),
        means=means,
        within=np.eye(DIM),
        between=np.eye(DIM),
        repetition=0.1 * np.eye(DIM),
        whitening=np.eye(DIM),
        hyper=HyperParameters(window=1.0, shrinkage=20.0, evidence=evidence),
    )


def tiny_manifest(name: str = "tiny", version: int = 1, graph: bytes | None = None, user_labels: int = 0) -> Manifest:
    """The manifest of the tiny bundle; with `user_labels` its label set is open."""
    return Manifest(
        name=name,
        version=version,
        feature_space=bundles.feature_space(graph or tiny_graph()),
        labels=LABELS,
        label_set="open" if user_labels else "closed",
        user_labels=user_labels,
        input=InputSpec(shape=(-1, CHANNELS, LENGTH), unit="counts", sample_rate=100.0, stride=2),
        preprocessing="none",
        feature_dim=DIM,
        opset=20,
        head=tiny_prior().hyper,
        licence="Apache-2.0",
        files={},
    )


def write_tiny_bundle(
    models: Path, name: str = "tiny", version: int = 1, scale: float = 1.0, user_labels: int = 0
) -> Path:
    """Write the tiny bundle under `models`."""
    graph = tiny_graph(scale)
    files = {
        bundles.BACKBONE: graph,
        bundles.PRIOR: priors.to_bytes(tiny_prior()),
        bundles.CARD: b"# tiny\n",
    }
    return bundles.write(models, tiny_manifest(name, version, graph, user_labels), files)


def tiny_windows(
    per_class: int, rng: np.random.Generator, offset: NDArray[np.floating] | float = 0.0, noise: float = 0.3
) -> tuple[NDArray[np.float32], list[str]]:
    """Windows of a user whose features are `offset` away from the population's; labels beside them, class by class."""
    means = tiny_prior().means + offset
    x, labels = [], []
    for mean, label in zip(means, LABELS, strict=True):
        z = mean + noise * rng.standard_normal((per_class, DIM))
        x.append(np.repeat(z.reshape(per_class, CHANNELS, DIM // CHANNELS) / 2, 2, axis=2))
        labels += [label] * per_class
    return np.concatenate(x).astype(np.float32), labels
