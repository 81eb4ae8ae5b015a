"""A version's head as files that others read: an ONNX model, safetensors that say where they are valid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from exporters.personal import PlacedHead, standalone
from models.heads.head import Head
from service.loaded import LoadedModel
from service.personal.imports import STATISTICS, rows_key
from service.personal.records import OWN_LABELS

FORMAT = "headway-head-1"


class ExportedHead(NamedTuple):
    """A head of an output, which version of its user it is (0: the shared one), and its digest."""

    output: LoadedModel
    head: Head
    version: int
    digest: str


def onnx_model(whole: LoadedModel, heads: Sequence[ExportedHead]) -> bytes:
    """Return a bundle's graph with a head behind it, or one of each of several outputs, the first output first.

    Tensors are called as in `infer`: the first output's by plain names, those of others `NAME.tensor`. The properties
    say of the first head what they say where it is alone; of several, `outputs` says it of each, as JSON.
    """
    manifest = whole.bundle.manifest
    told = {
        "model": manifest.name,
        "model_version": str(manifest.version),
        "bundle_digest": whole.bundle.digest,
        "preprocessing": manifest.preprocessing,
        "unit": manifest.input.unit,
        "sample_rate": f"{manifest.input.sample_rate:g}",
        "licence": manifest.licence,
    }
    each = {found.output.output: _head_told(found) for found in heads}
    first = next(iter(each.values()))
    told |= {key: value if isinstance(value, str) else _json(value) for key, value in first.items()}
    if len(each) > 1:
        told["outputs"] = _json(each)
    placed = [
        PlacedHead(
            found.head, "" if found is heads[0] else found.output.output, bool(found.output.targets), found.output.reads
        )
        for found in heads
    ]
    return standalone(whole.bundle.backbone, placed, told)


def _head_told(found: ExportedHead) -> dict[str, Any]:
    """What the properties say of a head."""
    manifest, rows = found.output.bundle.manifest, rows_key(found.output.bundle.manifest)
    return {
        **({"output": found.output.output} if found.output.output else {}),
        "feature_space": manifest.feature_space,
        rows: (*manifest.head_rows, *found.head.own),
        "head": "personal" if found.version else "shared",
        "head_version": str(found.version),
        "head_digest": found.digest,
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def weights_file(model: LoadedModel, head: Head, version: int, digest: str, statistics: bytes | None = None) -> bytes:
    """Return a head as safetensors in float32 with where it is valid in the metadata.

    `weight (K, d)`, `bias (K,)`, and, where it has them, `floors (L,)` of its sets of labels.

    With `statistics`, as the store has them, their tensors are beside it under `statistics.`.
    """
    manifest = model.bundle.manifest
    metadata = {
        "format": FORMAT,
        "model": manifest.name,
        "model_version": str(manifest.version),
        "feature_space": manifest.feature_space,
        rows_key(manifest): json.dumps(manifest.head_rows, ensure_ascii=False),
        "head_version": str(version),
        "digest": digest,
    }
    if head.own:
        metadata[OWN_LABELS] = json.dumps(head.own, ensure_ascii=False)
    tensors: dict[str, NDArray[Any]] = {"weight": np.asarray(head.weight, "<f4"), "bias": np.asarray(head.bias, "<f4")}
    if head.floors is not None:
        tensors["floors"] = np.asarray(head.floors, "<f4")
    if statistics is not None:
        tensors |= {f"{STATISTICS}{name}": t for name, t in safetensors.numpy.load(statistics).items()}
    return _safetensors(tensors, metadata)


def _safetensors(tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> bytes:
    """Encode as safetensors, the same bytes each time: the library writes metadata in an order of its own."""
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, tensor in tensors.items():
        kind = {"f": "F", "i": "I", "u": "U"}[tensor.dtype.kind] + str(8 * tensor.dtype.itemsize)
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": (at, at + tensor.nbytes)}
        at += tensor.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *(t.tobytes() for t in tensors.values())))
