"""The model repository: what is there, load and unload; and a model's configuration and statistics."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from exporters.bundle import Manifest
from service.config import Settings
from service.engine.statistics import shown
from service.errors import Unavailable
from service.loaded import LoadedModel
from service.protocol.body import json_response
from service.state import ModelName, ModelOf, ServicesOf, VersionOf

# Triton's client names no content type for its JSON.
router = APIRouter(tags=["repository"], strict_content_type=False)


class Index(BaseModel):
    """Which entries to list."""

    model_config = ConfigDict(extra="forbid")

    ready: bool = False


class Change(BaseModel):
    """Parameters of a load or unload; Triton's `unload_dependents` is taken, for nothing depends on a model here."""

    model_config = ConfigDict(extra="forbid")

    class Parameters(BaseModel):
        """None changes what is loaded: a bundle's configuration is its manifest."""

        model_config = ConfigDict(extra="forbid")

        unload_dependents: bool = False

    parameters: Parameters = Parameters()


@router.post("/v2/repository/index", summary="Versions in the models folder and whether they are served")
async def index(own: ServicesOf, wanted: Annotated[Index | None, Body()] = None) -> Response:
    """List every version, with the reason where one is not served."""
    entries = await own.models.index()
    if wanted is not None and wanted.ready:
        entries = [e for e in entries if e["state"] == "READY"]
    return json_response(entries)


@router.post("/v2/repository/models/{model}/load", summary="Load what is new of a model, and serve it")
async def load(own: ServicesOf, model: ModelName, change: Annotated[Change | None, Body()] = None) -> Response:
    """Serve the versions that are in the folder now; requests under way end on those they began on.

    A version that cannot be served is answered with the reason (422), and those that were served go on being served.
    """
    _accepting(own.draining)
    return json_response({"name": model, **await own.models.load(model)})


@router.post("/v2/repository/models/{model}/unload", summary="Stop serving a model")
async def unload(own: ServicesOf, model: ModelName, change: Annotated[Change | None, Body()] = None) -> Response:
    """Take a model out of service; requests under way are answered. Users' heads stay in the store."""
    _accepting(own.draining)
    return json_response({"name": model, "unloaded": await own.models.unload(model)})


@router.get("/v2/models/stats", summary="Statistics of all models")
async def all_statistics(own: ServicesOf) -> dict[str, Any]:
    """Count requests, rows, batches and durations since each version was loaded."""
    return {"model_stats": [_statistics(m) for m in own.models.loaded()]}


@router.get("/v2/models/{model}/stats", summary="Statistics of a model's versions")
async def statistics(own: ServicesOf, model: ModelName) -> dict[str, Any]:
    """The same of one model."""
    return {"model_stats": [_statistics(m) for m in reversed(own.models.candidates(model))]}


@router.get("/v2/models/{model}/versions/{version}/stats", summary="Statistics of one version")
async def version_statistics(model: VersionOf) -> dict[str, Any]:
    """The same of one version."""
    return {"model_stats": [_statistics(model)]}


@router.get("/v2/models/{model}/config", summary="How a model is served, in the words of Triton's model configuration")
async def config(own: ServicesOf, model: ModelOf) -> dict[str, Any]:
    """Describe inputs, outputs, batching and placement of the newest version."""
    return _config(model, own.models.settings)


@router.get("/v2/models/{model}/versions/{version}/config", summary="The same of one version")
async def version_config(own: ServicesOf, model: VersionOf) -> dict[str, Any]:
    """Describe one version."""
    return _config(model, own.models.settings)


def _accepting(draining: bool) -> None:
    if draining:
        raise Unavailable("the service is draining", retry_after=1)


def _statistics(model: LoadedModel) -> dict[str, Any]:
    return shown(model.name, model.version, model.memory.counts)


def _tensors(manifest: Manifest) -> list[dict[str, Any]]:
    """Describe the tensors of all outputs: the first one's by their plain names."""
    found = _outputs(manifest)
    for name in manifest.names[1:]:
        found += [{**o, "name": f"{name}.{o['name']}"} for o in _outputs(manifest.of_output(name))[1:]]
    return found


def _outputs(manifest: Manifest) -> list[dict[str, Any]]:
    k = -1 if manifest.user_labels else len(manifest.labels)
    sizes = {"features": manifest.feature_dim}
    sizes |= {"value": len(manifest.targets)} if manifest.targets else {"logits": k, "probabilities": k}
    numbers = [{"name": name, "data_type": "TYPE_FP32", "dims": [size]} for name, size in sizes.items()]
    if manifest.targets:
        return numbers
    return [
        *numbers,
        {"name": "label", "data_type": "TYPE_STRING", "dims": [1]},
        {"name": "labels", "data_type": "TYPE_STRING", "dims": [k]},
    ]


def _config(model: LoadedModel, settings: Settings) -> dict[str, Any]:
    manifest = model.bundle.manifest
    spec = manifest.input
    return {
        "name": model.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"all": {}},
        "max_batch_size": model.scheduler.max_batch,
        "input": [
            {"name": s.name, "data_type": f"TYPE_{s.datatype}", "dims": list(s.window_shape)}
            | ({"optional": True} if spec.parts else {})
            for s in spec.parts or (spec,)
        ],
        "output": _tensors(manifest),
        "dynamic_batching": {"max_queue_delay_microseconds": settings.max_delay_us, "priority_levels": 8},
        "instance_group": [
            {
                "count": max(1, settings.frontends),
                "kind": "KIND_CPU" if model.runtime.provider == "CPUExecutionProvider" else "KIND_GPU",
            }
        ],
        "parameters": {
            "provider": {"string_value": model.runtime.provider},
            "dispatch": {"string_value": "inline" if model.scheduler.inline else "thread"},
            "precision": {"string_value": manifest.precision},
            "bundle_digest": {"string_value": model.bundle.digest},
        },
    }
