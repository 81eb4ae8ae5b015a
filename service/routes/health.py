"""Liveness, readiness and the server's metadata. Never behind a key."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from service import __version__
from service.protocol.body import json_response
from service.state import ServicesOf

router = APIRouter(tags=["health"])

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "personal_heads",
    "schedule_policy",
    "statistics",
]


@router.get("/v2", summary="Name, version and extensions of the server")
async def server() -> dict[str, object]:
    """Say who answers."""
    return {"name": "headway", "version": __version__, "extensions": EXTENSIONS}


@router.get("/v2/health/live", summary="Whether the process answers")
async def live() -> dict[str, bool]:
    """Answer as long as the event loop turns."""
    return {"live": True}


@router.get("/v2/health/ready", summary="Whether all models are warmed up and the service is not draining")
async def ready(services: ServicesOf) -> Response:
    """Answer 200 when requests can be served, else 503 with the reasons."""
    problems = services.problems
    if problems:
        return json_response({"ready": False, "reasons": problems}, 503, {"Retry-After": "1"})
    return json_response({"ready": True})
