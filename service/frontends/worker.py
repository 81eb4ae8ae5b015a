"""A front end: the data plane in a process of its own. Started by the primary, with one end of a channel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from service import loading
from service.answered import Answered, message_of
from service.catalogue import Catalogue
from service.config import Settings
from service.data_plane import DataPlane
from service.engine.machine import few_arenas
from service.engine.memory import Layout, ModelMemory
from service.frontends.board import Board
from service.frontends.channel import Channel, ChannelClosed
from service.frontends.folder import VARIABLE
from service.frontends.heads import Found, RemoteHeads
from service.frontends.proxy import Proxy
from service.gate import Gate
from service.http import Protocol, config_of, keep_collections_short
from service.keys import Keyring
from service.loaded import BrokenModel, LoadedModel
from service.observability import Metrics
from service.personal.observations import Observations, Who, observed_message

log = logging.getLogger("headway")

ROWS_A_MESSAGE = 10
"""Rows of a user whose head follows them that go to the primary at once."""
MESSAGES_UNDER_WAY = 64
"""Such messages that the primary has not taken yet; more are dropped."""


class _Server(uvicorn.Server):
    """Ends when the primary says so."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals as `main` has set them."""
        yield


class Worker:
    """What a front end does for the primary."""

    def __init__(self, end: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        handlers = {
            "start": self._start,
            "load": self._load,
            "unload": self._unload,
            "connection": self._connection,
            "drain": self._drain,
            "forget": self._forget,
            "observe": self._observe,
            "advise": self._advise,
            "answered": self._answered,
            "ping": lambda content, fds: None,
        }
        self._channel = Channel(end, handlers, self._orphaned)
        self._catalogue = Catalogue()
        self._changing = asyncio.Lock()  # versions change in the order in which the primary says so
        self.ended = self._loop.create_future()

    def _start(self, content: dict[str, Any], fds: list[int]) -> None:
        """Take the settings and begin to serve."""
        self._settings = settings = Settings(**content["settings"])
        self._number: int = content["number"]
        form = f"%(asctime)s %(levelname)s %(name)s, front end {self._number}: %(message)s"
        logging.basicConfig(level=settings.log_level.upper(), format=form)
        board = Board(settings.frontends, fds[0])
        metrics = Metrics(self._catalogue)
        self._catalogue.on_batch = metrics.batch
        self._heads = RemoteHeads(self._ask, board)
        self._catalogue.on_unload = self._unloaded
        self._metrics = metrics
        self._plane = plane = DataPlane(self._catalogue, metrics, settings.max_body_bytes)
        plane.heads = self._heads
        plane.feedback = Answered(1 + self._number)
        self._observations = plane.observations = Observations(ROWS_A_MESSAGE, self._observed)
        self._saying = 0
        plane.keys = Keyring(settings.keys) if settings.keys else None
        number = self._number

        def closed() -> None:
            """Count a connection that is no more."""
            board.closed[number] += 1

        class Connection(Protocol):
            """A connection that the primary gave."""

            def connection_lost(self, exc: Exception | None) -> None:
                """Count it."""
                super().connection_lost(exc)
                closed()

        self._closed = closed

        Connection.plane = plane
        app: ASGIApp = Proxy(content["path"])
        if plane.keys is not None:
            app = Gate(app, plane.keys, metrics.refused)
        config = config_of(app, Connection, settings, lifespan="off")
        self._server = _Server(config)
        self._protocol = partial(
            Connection, config=config, server_state=self._server.server_state, app_state={}, _loop=self._loop
        )
        self._serving = self._loop.create_task(self._serve())

    async def _serve(self) -> None:
        try:
            await self._server.serve(sockets=[])
            await self._catalogue.retired()
            await asyncio.to_thread(self._catalogue.stop)
        finally:
            self.ended.set_result(None)

    async def _load(self, content: dict[str, Any], fds: list[int]) -> None:
        """Serve a version; returns when it is warmed up."""
        async with self._changing:
            outputs = zip(content["layouts"], content["serials"], fds, strict=True)
            places = [loading.Place(ModelMemory(Layout(*layout), fd), serial) for layout, serial, fd in outputs]
            follow = partial(
                loading.follow,
                Path(content["path"]),
                self._settings,
                self._catalogue.on_batch,
                places,
                max_batch=content["max_batch"],
                inline=content["inline"],
                process=1 + self._number,
            )
            model = await asyncio.to_thread(follow)
            if model.bundle.digest != content["digest"]:
                raise RuntimeError("the bundle has changed since the primary loaded it")
            self._catalogue.put(content["name"], content["version"], model)
            keep_collections_short()

    async def _unload(self, content: dict[str, Any], fds: list[int]) -> None:
        """Serve a version no more, and know why where it could not be served."""
        async with self._changing:
            name, version = content["name"], content["version"]
            if "reason" in content:
                self._catalogue.put(name, version, BrokenModel(name, version, content["reason"]))
            else:
                self._catalogue.take(name, version)

    def _connection(self, content: dict[str, Any], fds: list[int]) -> None:
        connection = socket.socket(fileno=fds[0])
        self._channel.post("taken")
        task = self._loop.create_task(self._connect(connection))
        self._server.server_state.tasks.add(task)
        task.add_done_callback(self._server.server_state.tasks.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:  # the client went away on the way here
            connection.close()
            self._closed()

    def _drain(self, content: dict[str, Any], fds: list[int]) -> None:
        """Answer what has come, then end."""
        self._plane.draining = True
        self._server.should_exit = True

    async def _ask(self, serial: int, users: list[str], version: int | None) -> Found:
        found: Found = await self._channel.call("heads", {"serial": serial, "users": users, "version": version})
        return found

    def _forget(self, content: dict[str, Any], fds: list[int]) -> None:
        """Let go of a user's heads; of one who was erased, of everything."""
        self._heads.forget_user(content["user"])
        if content["erased"]:
            self._plane.feedback.forget(content["user"])
            self._observations.forget(content["user"])

    def _observe(self, content: dict[str, Any], fds: list[int]) -> None:
        """Learn whose rows are observed from now on, and whose no more."""
        self._observations.wanted.update((model, user) for model, user in content["added"])
        for model, user in content["gone"]:
            self._observations.wanted.discard((model, user))
            self._observations.forget(user)

    def _advise(self, content: dict[str, Any], fds: list[int]) -> None:
        """Learn whose answers advise a calibration, or do no more."""
        known = {(model, user, output) for model, user, output in content["to"]}
        change = self._observations.advised.update if content["now"] else self._observations.advised.difference_update
        change(known)

    def _observed(self, who: Who) -> None:
        """Hand a user's rows to the primary, unless it is behind with those before: then they are dropped."""
        rows = self._observations.take(who)
        if rows is None or self._saying >= MESSAGES_UNDER_WAY:
            return
        with contextlib.suppress(ChannelClosed):
            said = self._channel.call("observed", observed_message(who, rows))
            self._saying += 1
            said.add_done_callback(self._said)

    def _said(self, answer: asyncio.Future[Any]) -> None:
        self._saying -= 1
        if not answer.cancelled():
            answer.exception()  # looked at: rows that were not taken are not worth a word

    def _answered(self, content: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        """Find a prediction that was answered here."""
        found = self._plane.feedback.find(content["id"])
        return None if found is None else message_of(found)

    def _unloaded(self, model: LoadedModel) -> None:
        self._metrics.forget(model)
        for output in model.each:
            self._heads.forget(output)

    def _orphaned(self) -> None:
        """End with the primary: what it has not told this process, nobody will. A folder it left is removed."""
        shutil.rmtree(os.environ[VARIABLE], ignore_errors=True)
        if hasattr(self, "_server"):
            self._plane.draining = self._server.should_exit = self._server.force_exit = True
        elif not self.ended.done():
            self.ended.set_result(None)


async def _run(fd: int) -> None:
    worker = Worker(socket.socket(fileno=fd))
    await worker.ended


def main() -> None:
    """Run a front end on the channel whose descriptor is the argument."""
    few_arenas()
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal sends them to all; the primary judges what they mean
        signal.signal(number, signal.SIG_IGN)
    config = uvicorn.Config(lambda: None)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_run(int(sys.argv[1])))


if __name__ == "__main__":
    main()
