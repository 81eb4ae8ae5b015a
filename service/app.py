"""The application: wiring and lifespan only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from service import __version__, error_handlers
from service.config import Settings
from service.data_plane import DataPlane
from service.observability import Metrics, RequestScope
from service.personal.records import StoreError
from service.personal.store import Store
from service.registry import Registry
from service.routes import adaptations, calibrations, health, infer, metadata, repository, users
from service.state import Services
from service.verbs import Verbs

STORE_CHECK_SECONDS = 5.0


def create_app(settings: Settings, *, metrics_route: bool = True) -> FastAPI:
    """Build the application. Models load and the store opens when it starts.

    Args:
        settings: what to serve and how.
        metrics_route: whether `/metrics` is answered here, not only on a port of its own.
    """
    registry = Registry(settings)
    metrics = Metrics(registry, settings.device)
    own = Services(settings, registry, metrics, DataPlane(registry, metrics, settings.max_body_bytes))
    registry.on_batch, registry.on_unload = metrics.batch, metrics.forget

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        """Load the models and open the store; end both in order."""
        await asyncio.to_thread(registry.load_all)
        try:
            store = await Store.open(settings.store)
        except StoreError:
            await asyncio.to_thread(registry.stop)
            raise
        own.opened(store)
        watch = asyncio.create_task(_watch(store, metrics))
        try:
            yield
        finally:
            own.plane.draining = True
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await registry.retired()
            await asyncio.to_thread(registry.stop)
            await store.close()

    app = FastAPI(
        title="Headway",
        version=__version__,
        summary="One frozen backbone for all, a personal head for every user.",
        lifespan=lifespan,
    )
    app.state.services, app.state.settings = own, settings
    for part in (health, infer, calibrations, adaptations, users, repository, metadata):
        app.include_router(part.router)
    if metrics_route:

        @app.get("/metrics", tags=["health"], summary="Metrics for Prometheus")
        async def scrape(request: Request) -> Response:
            return Response(generate_latest(metrics.exposed), media_type=CONTENT_TYPE_LATEST)

    error_handlers.install(app)
    app.add_middleware(Verbs)
    app.add_middleware(RequestScope, metrics=metrics)
    return app


async def _watch(store: Store, metrics: Metrics) -> None:
    """Keep `headway_store_up` true to the store."""
    while True:
        try:
            await store.ping()
            metrics.store_up.set(1)
        except StoreError:
            metrics.store_up.set(0)
        await asyncio.sleep(STORE_CHECK_SECONDS)
