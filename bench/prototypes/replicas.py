"""The service as it is, several times behind one port: each with its own loop, session, heads and copy of the store.

`--how processes` is one a process, `--how threads` one a thread of one process: what the interpreter lock leaves.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import uvicorn

from service.app import create_app
from service.config import Settings
from service.http import protocol_of
from service.state import Services

SWITCH_SECONDS = 1e-4
"""Between threads that want the interpreter: at Python's own 5 ms one loop waits that long for the other."""


class Server(uvicorn.Server):
    """uvicorn with the garbage collector set as `headway serve` sets it, and a call once it has started."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start."""
        await super().startup(sockets)
        self._on_start()
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 10, 10)


def listener(port: int) -> socket.socket:
    """Return a socket of which the kernel gives each new connection to one."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.listen(2048)
    return made


def serve(models: Path, store: Path, sock: socket.socket, started: Callable[[Services], None] = lambda _: None) -> None:
    """Serve until a signal, or for ever where this is not the main thread."""
    url = f"sqlite+aiosqlite:///{store}"
    settings = Settings(models=models, store=url, log_level="warning", frontends=1, threads=1)
    app = create_app(settings)
    services: Services = app.state.services
    options = {"ws": "none", "log_level": "warning", "access_log": False, "timeout_keep_alive": 75}
    config = uvicorn.Config(app, http=protocol_of(services.plane), **options)  # type: ignore[arg-type]
    Server(config, lambda: started(services)).run(sockets=[sock])


def main() -> None:
    """Serve from as many threads or processes as there are stores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--how", choices=("threads", "processes"), required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--stores", type=Path, nargs="+", required=True, help="SQLite files, one a replica")
    parser.add_argument("--port", type=int, required=True)
    chosen = parser.parse_args()
    sockets = [listener(chosen.port) for _ in chosen.stores]
    pairs = list(zip(chosen.stores, sockets, strict=True))
    if chosen.how == "threads":
        sys.setswitchinterval(SWITCH_SECONDS)
        for store, sock in pairs:
            threading.Thread(target=serve, args=(chosen.models, store, sock), daemon=True).start()
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        return
    for store, sock in pairs[1:]:
        if not os.fork():
            serve(chosen.models, store, sock)
            return
    serve(chosen.models, *pairs[0])


if __name__ == "__main__":
    main()
