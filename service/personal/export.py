"""A version's head as files that others read: an ONNX model, safetensors that say where they are valid."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from exporters.bundle import Bundle
from exporters.personal import standalone
from models.heads.head import Head
from service.loaded import LoadedModel
from service.personal.imports import STATISTICS, rows_key
from service.personal.records import OWN_LABELS

FORMAT = "headway-head-1"


def onnx_model(bundle: Bundle, head: Head, version: int, digest: str) -> bytes:
    """Return a bundle's graph with a head behind it; `version` 0 is the shared one."""
    manifest = bundle.manifest
    told = {
        "model": manifest.name,
        **({"output": manifest.output} if manifest.output else {}),
        "model_version": str(manifest.version),
        "feature_space": manifest.feature_space,
        "bundle_digest": bundle.digest,
        "labels": json.dumps((*manifest.labels, *head.own), ensure_ascii=False),
        "head": "personal" if version else "shared",
        "head_version": str(version),
        "head_digest": digest,
        "preprocessing": manifest.preprocessing,
        "unit": manifest.input.unit,
        "sample_rate": f"{manifest.input.sample_rate:g}",
        "licence": manifest.licence,
    }
    return standalone(bundle.backbone, head, told)


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
