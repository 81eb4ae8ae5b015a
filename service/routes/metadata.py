"""Metadata and readiness of models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from exporters.bundle import InputSpec, Manifest
from service.loaded import LoadedModel
from service.protocol.body import json_response
from service.protocol.media import accepted
from service.registry import Registry
from service.state import ModelOf, ServicesOf, VersionOf

router = APIRouter(tags=["models"])


@router.get("/v2/models", summary="Models and versions, with the reason where one is not ready")
async def models(own: ServicesOf) -> dict[str, Any]:
    """List what is there."""
    rows = [
        {
            "name": name,
            "version": str(m.version),
            "ready": isinstance(m, LoadedModel),
            "reason": "" if isinstance(m, LoadedModel) else m.reason,
        }
        for name, versions in own.models.by_name().items()
        for m in versions
    ]
    return {"models": rows}


@router.get("/v2/models/{model}", summary="Inputs, outputs, labels and sample rate of a model")
async def metadata(own: ServicesOf, model: ModelOf) -> dict[str, Any]:
    """Describe a model's newest version; labels and sample rate are under `parameters`."""
    return _described(model, own.models)


@router.get("/v2/models/{model}/versions/{version}", summary="The same of one version")
async def version_metadata(own: ServicesOf, model: VersionOf) -> dict[str, Any]:
    """Describe one version."""
    return _described(model, own.models)


@router.get("/v2/models/{model}/ready", summary="Whether a model answers")
async def model_ready(model: ModelOf) -> Response:
    """Answer 200 when the model can be served; 503 names the reason."""
    return json_response({"name": model.name, "ready": True})


@router.get("/v2/models/{model}/versions/{version}/ready", summary="Whether one version answers")
async def version_ready(model: VersionOf) -> Response:
    """Answer 200 when the version can be served; 503 names the reason."""
    return json_response({"name": model.name, "ready": True})


def _tensors(manifest: Manifest) -> list[dict[str, Any]]:
    """Describe the tensors of all outputs: the first one's by their plain names."""
    found = _outputs(manifest)
    for name in manifest.names[1:]:
        found += [{**o, "name": f"{name}.{o['name']}"} for o in _outputs(manifest.of_output(name))[1:]]
    return found


def _of_output(manifest: Manifest) -> dict[str, Any]:
    """Describe what an output says."""
    return {
        "task": manifest.task,
        "targets": [target.model_dump() for target in manifest.targets],
        "labels": list(manifest.labels),
        "label_set": manifest.label_set,
        "user_labels": manifest.user_labels,
        "feature_space": manifest.feature_space,
    }


def _outputs(manifest: Manifest) -> list[dict[str, Any]]:
    features = {"name": "features", "datatype": "FP32", "shape": [-1, manifest.feature_dim]}
    if manifest.targets:
        return [features, {"name": "value", "datatype": "FP32", "shape": [-1, len(manifest.targets)]}]
    k = -1 if manifest.user_labels else len(manifest.labels)  # as many as the user has
    return [
        features,
        {"name": "logits", "datatype": "FP32", "shape": [-1, k]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, k]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "labels", "datatype": "BYTES", "shape": [-1, k]},
    ]


def _part(part: InputSpec) -> dict[str, Any]:
    """Describe a part of a fused input; a request has one of them or more."""
    told = part.model_dump(mode="json", include={"name", "unit", "modality", "channel_layout", "media", "padding"})
    return {**told, "sample_rate": part.sample_rate or None, "stride": part.stride if part.sample_rate else None}


def _described(model: LoadedModel, registry: Registry) -> dict[str, Any]:
    manifest = model.bundle.manifest
    spec = manifest.input
    versions = registry.candidates(model.name)
    return {
        "name": model.name,
        "versions": [str(m.version) for m in reversed(versions)],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": s.name, "datatype": s.datatype, "shape": list(s.shape)} for s in spec.parts or (spec,)],
        "outputs": _tensors(manifest),
        "parameters": {
            **_of_output(manifest),
            **({"outputs": {n: _of_output(manifest.of_output(n)) for n in manifest.names}} if manifest.outputs else {}),
            "sample_rate": spec.sample_rate or None,
            "unit": spec.unit,
            "modality": spec.modality,
            "channel_layout": spec.channel_layout,
            "media": None if spec.media is None else spec.media.model_dump(),
            "content_types": list(accepted(spec)),
            **({"parts": [_part(part) for part in spec.parts]} if spec.parts else {}),
            "stride": spec.stride if spec.sample_rate else None,
            "bundle_digest": model.bundle.digest,
            "description": manifest.description,
            "licence": manifest.licence,
        },
    }
