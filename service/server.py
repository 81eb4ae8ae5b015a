"""`headway serve`: uvicorn around the application, metrics on a port of their own, draining on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from prometheus_client import start_http_server

from exporters import bundle as bundles
from service.app import create_app
from service.config import ConfigError, Settings
from service.engine.machine import few_arenas
from service.frontends.folder import SOCKET, VARIABLE
from service.frontends.supervisor import FrontendError, Frontends
from service.http import config_of, keep_collections_short, protocol_of
from service.personal.store import Store
from service.state import Services

log = logging.getLogger("headway")

LOOPBACK = ("127.0.0.1", "::1", "localhost")

Announce = Callable[[str, str], None]


class _Server(uvicorn.Server):
    """Says "not ready" from the moment a signal arrives, while requests in flight finish.

    With front ends, `listener` is for the connections that they are given, and this server's own socket for them.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        services: Services,
        announce: Callable[[], None],
        listener: socket.socket | None = None,
    ) -> None:
        super().__init__(config)
        self._services, self._announce, self._listener = services, announce, listener
        self._frontends: Frontends | None = None
        self.failed = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain."""
        self._services.plane.draining = True
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say where the service listens."""
        await super().startup(sockets)
        if self.started and self._listener is not None:
            settings = self._services.settings
            self._frontends = Frontends(self._services, settings, self._listener, str(self.config.uds), self._protocol)
            try:
                await self._frontends.start()
            except FrontendError as e:
                log.error("%s", e)
                self.failed = self.should_exit = True
                return
        if self.started:
            keep_collections_short()
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let front ends end before what they need."""
        log.info("ending: what has come is answered, within %d s", self._services.settings.drain_seconds)
        if self._frontends is not None:
            await self._frontends.stop(self._services.settings.drain_seconds, lambda: self.force_exit)
        await super().shutdown(sockets)
        log.info("ended")

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


def serve(settings: Settings, announce: Announce) -> bool:
    """Serve until a signal; returns whether the start succeeded.

    Args:
        settings: what to serve and how.
        announce: called with the API's and the metrics' URLs when requests are answered.

    Raises:
        ConfigError: a port cannot be had.
        BundleError: there is nothing to serve.
        StoreError: the store cannot be opened.
    """
    few_arenas()
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiosqlite").setLevel(logging.WARNING)
    if not bundles.find(settings.models):
        raise bundles.BundleError(f"there are no bundles in {settings.models}; `headway export` writes them")
    asyncio.run(_check_store(settings.store))
    if settings.keys is None and settings.host not in LOOPBACK:
        log.warning("whoever reaches %s may predict, calibrate and erase: give keys with --keys", settings.host)
    listener = listen(settings.host, settings.port)
    port = listener.getsockname()[1]
    shared_port = settings.metrics_port in (port, settings.port) and settings.metrics_port != 0
    app = create_app(settings, metrics_route=shared_port)
    services: Services = app.state.services
    base = f"http://{_shown(settings.host)}:{port}"
    metrics_url = f"{base}/metrics"
    if not shared_port:
        try:
            http, _ = start_http_server(settings.metrics_port, settings.host, services.metrics.exposed)
        except OSError as e:
            raise ConfigError(
                f"metrics port {settings.metrics_port} cannot be had: {e.strerror}; choose another with --metrics-port"
            ) from e
        metrics_url = f"http://{_shown(settings.host)}:{http.server_port}/metrics"
    protocol, announced = protocol_of(services.plane), lambda: announce(base, metrics_url)
    if settings.frontends <= 1:
        server = _Server(config_of(app, protocol, settings), services, announced)
        server.run(sockets=[listener])
    else:
        path = str(Path(os.environ[VARIABLE]) / SOCKET)
        config = config_of(app, protocol, settings, uds=path, date_header=False, server_header=False)
        server = _Server(config, services, announced, listener)
        server.run()
    return server.started and not server.failed


async def _check_store(url: str) -> None:
    """Open and close the store, so that a wrong URL is a sentence and not a failed start-up."""
    store = await Store.open(url)
    await store.close()


def _shown(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int) -> socket.socket:
    """Open the socket of a service; port 0 takes a free one.

    Raises:
        ConfigError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as e:
        listener.close()
        raise ConfigError(f"port {port} on {host} cannot be had: {e.strerror}; choose another with --port") from e
    listener.set_inheritable(True)
    return listener
