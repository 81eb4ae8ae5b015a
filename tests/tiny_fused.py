"""Small fused bundles of known behaviour: two sensors of other rates, and a picture with its caption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporters import bundle as bundles
from exporters.bundle import InputSpec, Manifest, Padding
from exporters.fusion import Member, write_fused
from exporters.media_spec import ImageMedia, TextMedia
from models.data.parts import fused_input, pack
from models.heads import prior as priors
from models.heads.head import Head
from models.heads.prior import HyperParameters, Prior
from models.training.joining import Join, patterns
from tests.tiny import tiny_prior, tiny_windows, write_tiny_bundle

WORDS = ("[PAD]", "[UNK]", "rose", "leaf", "sky")
COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}
SIDE, TOKENS = 8, 6


def write_watch(models: Path, scale: float = 1.0) -> Path:
    """A member `watch`, `(n, 4, 6)` -> `(n, 4)`: means of 6 samples of 4 channels, in the units of the tiny bundle."""
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["features"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([2], np.int64), "axes"),
        numpy_helper.from_array(np.array(scale, np.float32), "scale"),
    ]
    spec = InputSpec(shape=(-1, 4, 6), unit="g", sample_rate=50.0, stride=3, modality="imu")
    return _written(models, "watch", nodes, weights, spec, tiny_prior())


def write_sensors(models: Path, how: str = "late", arm: Path | None = None, scale: float = 1.0) -> Path:
    """`fused`: the tiny bundle as part `arm` and `watch`, whose features are both around the tiny prior's means."""
    members = [
        Member("arm", bundles.load(arm or write_tiny_bundle(models / "members", "arm"))),
        Member("watch", bundles.load(write_watch(models / "members", scale))),
    ]
    rng = np.random.default_rng(0)
    on_arm, watch, _ = sensor_windows(30, rng)
    rows = pack(fused_input([m.part for m in members]), {"arm": on_arm, "watch": watch})
    return _fused(members, tiny_prior(), rows, models, "fused", how)


def sensor_windows(
    per_class: int, rng: np.random.Generator, offset: NDArray[np.floating] | float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[str]]:
    """Windows of both sensors at the same moments, features `offset` away from the population's, and the labels."""
    arm, labels = tiny_windows(per_class, rng, offset)
    means = np.repeat(tiny_prior().means + offset, per_class, 0)
    z = means + 0.3 * rng.standard_normal(means.shape)
    return arm, np.repeat(z[:, :, None], 6, 2).astype(np.float32), labels


def write_captioned(models: Path) -> Path:
    """`captioned`: parts `picture` (8 x 8, mean colours) and `caption` (words counted); three colours."""
    members = [Member("picture", bundles.load(_pictures(models))), Member("caption", bundles.load(_captions(models)))]
    rng = np.random.default_rng(0)
    colours = np.array(list(COLOURS.values()))
    images = np.clip(np.repeat(colours, 24, 0)[:, None, None] + rng.normal(0, 9, (72, SIDE, SIDE, 3)), 0, 255)
    tokens = np.repeat([[2], [3], [4]], 24, 0)
    spec = fused_input([m.part for m in members])
    rows = pack(spec, {"picture": images.astype(np.uint8), "caption": tokens})
    return _fused(members, _colour_prior(), rows, models, "captioned", "late")


def _pictures(models: Path) -> Path:
    nodes = [
        helper.make_node("Cast", ["input"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f", "axes"], ["m"], keepdims=0),
        helper.make_node("Mul", ["m", "scale"], ["features"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
        numpy_helper.from_array(np.array(4 / 220, np.float32), "scale"),
    ]
    media = ImageMedia(fit="stretch", resize=SIDE)
    spec = InputSpec(datatype="UINT8", shape=(-1, SIDE, SIDE, 3), unit="pixels", modality="image", media=media)
    return _written(models / "members", "picture", nodes, weights, spec, _colour_prior())


def _captions(models: Path) -> Path:
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as tokenizer_models

    nodes = [
        helper.make_node("OneHot", ["input", "depth", "values"], ["o"]),
        helper.make_node("ReduceMax", ["o", "axes"], ["c"], keepdims=0),
        helper.make_node("Slice", ["c", "two", "five", "one"], ["features"]),
    ]
    weights = [
        numpy_helper.from_array(np.array(len(WORDS), np.int64), "depth"),
        numpy_helper.from_array(np.array([0, 4], np.float32), "values"),
        *(
            numpy_helper.from_array(np.array([v], np.int64), name)
            for name, v in (("axes", 1), ("two", 2), ("five", 5), ("one", 1))
        ),
    ]
    tokenizer = Tokenizer(tokenizer_models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    spec = InputSpec(
        datatype="INT64",
        shape=(-1, -1),
        unit="tokens",
        modality="text",
        padding=Padding(axis=1, maximum=TOKENS),
        media=TextMedia(tokenizer="tokenizer.json", max_tokens=TOKENS),
    )
    files = {"tokenizer.json": tokenizer.to_str().encode()}
    return _written(models / "members", "caption", nodes, weights, spec, _colour_prior(), files)


def _colour_prior() -> Prior:
    means = 4 * np.eye(3)
    eye = np.eye(3)
    return replace(
        tiny_prior(),
        labels=tuple(COLOURS),
        generic_weight=means,
        generic_bias=-0.5 * (means**2).sum(1),
        means=means,
        within=0.3 * eye,
        between=eye,
        repetition=0.1 * eye,
        whitening=eye / 0.3**0.5,
    )


def _written(
    models: Path,
    name: str,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    spec: InputSpec,
    prior: Prior,
    files: dict[str, bytes] | None = None,
) -> Path:
    element = {"FP32": TensorProto.FLOAT, "UINT8": TensorProto.UINT8, "INT64": TensorProto.INT64}[spec.datatype]
    shape = [f"d{i}" if size == -1 else size for i, size in enumerate(spec.shape)]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input", element, shape)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["d0", prior.dim])],
        weights,
    )
    # Another opset than the one that bundles are joined in.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data = bytes(model.SerializeToString())
    manifest = Manifest(
        name=name,
        version=1,
        feature_space=bundles.feature_space(data),
        labels=prior.labels,
        input=spec,
        preprocessing="none",
        feature_dim=prior.dim,
        opset=18,
        head=prior.hyper,
        licence="Apache-2.0",
        files={},
    )
    contents = {bundles.BACKBONE: data, bundles.PRIOR: priors.to_bytes(prior), bundles.CARD: b"# member\n"}
    return bundles.write(models, manifest, {**contents, **(files or {})})


def _fused(members: list[Member], one: Prior, rows: NDArray[np.float32], models: Path, name: str, how: str) -> Path:
    """Fuse members whose features are alike: `one` is the prior of each."""
    p, k, m = one.personal, one.classes, len(members)
    heads = tuple(member.head(one.labels) for member in members)
    # The members have the same features, so what is missing is what is there.
    impute = np.kron(np.ones((m, m)) - np.eye(m), np.eye(p)) / (m - 1)
    join = Join((p,) * m, heads, impute, np.zeros(m * p), np.eye(m * p), shares=patterns(m) * 1.0)
    if how == "concatenated":
        weight = np.concatenate([np.zeros((k, m * p)), *[np.eye(k)] * m, np.zeros((k, m))], 1)
        join = replace(join, shares=None, probe=Head(weight, np.zeros(k)))
    joint = replace(
        one,
        generic_weight=np.concatenate([np.zeros((k, m * p)), np.eye(k)], 1),
        generic_bias=np.zeros(k),
        means=np.tile(one.means, (1, m)),
        **{n: np.kron(np.eye(m), getattr(one, n)) for n in ("within", "repetition", "whitening")},
        between=np.kron(np.ones((m, m)) * 0.9 + np.eye(m) * 0.1, one.between),
        hyper=HyperParameters(**{**one.hyper.model_dump(), "window": 1.0}),
    )
    return write_fused(members, join, joint, rows, models, name=name, provenance={}, evaluation={})
