"""The application: wiring and lifespan only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request, Security
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from service import __version__, error_handlers
from service.config import Settings
from service.data_plane import DataPlane
from service.gate import Gate
from service.keys import Keyring
from service.observability import Metrics, RequestScope
from service.personal.records import StoreError
from service.personal.store import Store
from service.registry import Registry
from service.routes import (
    adaptations,
    calibrations,
    evaluations,
    feedback,
    health,
    infer,
    metadata,
    operations,
    portable,
    repository,
    samples,
    users,
    versions,
    whole_users,
)
from service.state import Services, known_query
from service.verbs import Verbs

STORE_CHECK_SECONDS = 5.0


def create_app(settings: Settings, *, metrics_route: bool = True) -> FastAPI:
    """Build the application. Models load and the store opens when it starts.

    Args:
        settings: what to serve and how.
        metrics_route: whether `/metrics` is answered here, not only on a port of its own.

    Raises:
        KeysError: the file of keys cannot be used.
    """
    registry = Registry(settings)
    metrics = Metrics(registry, settings.device)
    own = Services(settings, registry, metrics, DataPlane(registry, metrics, settings.max_body_bytes))
    keys = Keyring(settings.keys) if settings.keys else None
    own.plane.keys = keys
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
        await own.following.start()
        work = [_watch(store, metrics), store.follow(own.resolver.changed, own.resolver.lost), own.recalibrator.run()]
        tasks = [asyncio.create_task(each) for each in work]
        try:
            yield
        finally:
            own.plane.draining = True
            await own.following.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await registry.retired()
            await asyncio.to_thread(registry.stop)
            await store.close()

    app = FastAPI(
        title="Headway",
        version=__version__,
        summary="One frozen backbone for all, a personal head for every user.",
        lifespan=lifespan,
        # Described here, checked by `Gate`.
        dependencies=[Security(HTTPBearer(auto_error=False, scheme_name="key"))] if keys is not None else [],
    )
    app.state.services, app.state.settings = own, settings
    heads = calibrations, adaptations, versions, portable, whole_users, operations
    of_users = samples, feedback, evaluations, users, *heads
    for part in (health, infer, repository, metadata):
        app.include_router(part.router)
    for part in of_users:
        app.include_router(part.router, dependencies=[Depends(known_query)])
    if metrics_route:

        @app.get("/metrics", tags=["health"], summary="Metrics for Prometheus")
        async def scrape(request: Request) -> Response:
            return Response(generate_latest(metrics.exposed), media_type=CONTENT_TYPE_LATEST)

    error_handlers.install(app)
    app.add_middleware(Verbs)
    if keys is not None:
        app.add_middleware(Gate, keys=keys)
    app.add_middleware(RequestScope, metrics=metrics)
    return app


async def _watch(store: Store, metrics: Metrics) -> None:
    """Keep the metrics of the store true to it."""
    while True:
        metrics.store_staleness.set(store.staleness)
        try:
            await store.ping()
            metrics.store_up.set(1)
        except StoreError:
            metrics.store_up.set(0)
        await asyncio.sleep(STORE_CHECK_SECONDS)
