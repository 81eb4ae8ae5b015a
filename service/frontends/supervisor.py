"""The primary's side: start front ends, give them connections, answer their questions, replace those that end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from service.answered import Answer, answer_of
from service.config import Settings
from service.engine.statistics import Cell
from service.errors import HeadwayError
from service.frontends.board import Board
from service.frontends.channel import Channel, ChannelClosed
from service.frontends.dealer import Dealer
from service.frontends.frontend import Frontend
from service.frontends.heads import Found, refusal
from service.frontends.observing import Observing
from service.interpreter import command
from service.loaded import BrokenModel, LoadedModel
from service.state import Services

log = logging.getLogger("headway")

LONGEST_PAUSE = 10.0
"""Seconds between attempts to replace a front end that keeps ending."""
PING_SECONDS, SILENCE_SECONDS = 5.0, 30.0
"""How often a front end is asked whether it is there, and for how long it may not say so before it is ended."""
START_SECONDS = 300.0
"""Time in which a front end must have loaded all models."""
GRACE_SECONDS = 10.0
"""For how long heads of a version that was unloaded can be asked for."""

Protocol = Callable[[], asyncio.Protocol]


def _longer(pause: float) -> float:
    return min(LONGEST_PAUSE, 2 * pause + 0.1)


class FrontendError(RuntimeError):
    """The front ends did not start."""


class Frontends:
    """All front ends of a service; belongs to the event loop of the primary."""

    def __init__(
        self, services: Services, settings: Settings, listener: socket.socket, path: str, protocol: Protocol
    ) -> None:
        self._services, self._settings, self._path = services, settings, path
        self._loop = asyncio.get_running_loop()
        self._board = Board(settings.frontends)
        self._frontends: dict[int, Frontend] = {}
        self._pauses = dict.fromkeys(range(settings.frontends), 0.0)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._serials: dict[int, LoadedModel] = {}
        self._ending = False

        def serve(connection: socket.socket) -> None:
            """Serve a connection here."""
            self._spawn_task(self._loop.connect_accepted_socket(protocol, connection))

        self._dealer = Dealer(listener, self._board, self._frontends.values, serve)

    async def start(self) -> None:
        """Start them and accept connections.

        Raises:
            FrontendError: none could be started.
        """
        models = self._services.models
        self._services.resolver.on_move = self._board.changed
        self._services.resolver.on_forget = partial(self._forget, erased=False)
        self._services.erased_elsewhere = partial(self._forget, erased=True)
        self._observing = Observing(self._services.following, self._frontends.values)
        self._services.answered_elsewhere = self._answered
        models.on_change = self._changed
        on_unload = models.on_unload

        def unloaded(model: LoadedModel) -> None:
            on_unload(model)
            # Front ends end a version by themselves, and may still ask for heads for the last requests to it.
            for output in model.each:
                self._loop.call_later(GRACE_SECONDS, self._serials.pop, output.serial, None)

        models.on_unload = unloaded
        starting = (self._start(number) for number in self._pauses)
        started = await asyncio.gather(*starting, return_exceptions=True)
        for number, outcome in enumerate(started):
            if isinstance(outcome, OSError):
                log.error("front end %d cannot be started: %s", number, outcome)
                self._spawn_task(self._start_again(number))
            elif isinstance(outcome, BaseException):
                raise outcome
        if True not in started:
            raise FrontendError("no front end could be started; the log says why")
        self._spawn_task(self._watch())
        self._dealer.start()

    async def stop(self, seconds: float, forced: Callable[[], bool]) -> None:
        """Accept no more, and let every front end answer what it has; those that take longer are ended."""
        self._ending = True
        self._dealer.stop()
        for frontend in list(self._frontends.values()):
            with contextlib.suppress(ChannelClosed):
                frontend.channel.post("drain")
        deadline = time.monotonic() + seconds + 1.0
        while (left := self._alive()) and time.monotonic() < deadline and not forced():  # noqa: ASYNC110 - processes
            await asyncio.sleep(0.02)
        for frontend in left:
            log.error("front end %d did not end in time", frontend.number)
            frontend.process.kill()
        for frontend in self._frontends.values():
            frontend.channel.close()
            frontend.process.wait()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _alive(self) -> list[Frontend]:
        return [frontend for frontend in self._frontends.values() if frontend.process.poll() is None]

    async def _start(self, number: int) -> bool:
        """Start one front end and tell it all models; returns whether it is ready.

        Raises:
            OSError: the system cannot start a process.
        """
        ours, theirs = socket.socketpair()
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - a process is begun, not waited for
                command("service.frontends.worker", str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        frontend = Frontend(number, process)
        self._frontends[number] = frontend
        handlers = {"heads": self._heads, "taken": frontend.taken, "observed": self._observing.observed}
        frontend.channel = Channel(ours, handlers, lambda: self._ended(frontend))
        channel, settings = frontend.channel, self._settings.model_dump(mode="json")
        try:
            begun = channel.call("start", {"settings": settings, "number": number, "path": self._path}, [self._board])
            self._observing.begin(channel)
            # All at once: what changes from here on comes behind it.
            told = [
                self._tell(channel, m.name, m.version, m) for ms in self._services.models.by_name().values() for m in ms
            ]
            async with asyncio.timeout(START_SECONDS):
                await asyncio.gather(begun, *told)
        except (ChannelClosed, RuntimeError, TimeoutError) as e:
            why = str(e) or f"it was not ready after {START_SECONDS:g} s"
            log.error("front end %d (process %d) did not start: %s", number, process.pid, why)
            channel.close()
            return False
        frontend.ready = True
        self._services.metrics.frontends.set(len(self._dealer.ready()))
        log.info("front end %d is ready (process %d)", number, process.pid)
        return True

    def _tell(
        self, channel: Channel, name: str, version: int, model: LoadedModel | BrokenModel | None
    ) -> asyncio.Future[Any]:
        """Tell a front end what a version is now."""
        content: dict[str, Any] = {"name": name, "version": version}
        if isinstance(model, LoadedModel):
            self._serials.update({output.serial: output for output in model.each})
            content |= {
                "path": str(Path(self._settings.models / name / str(version)).resolve()),
                "digest": model.bundle.digest,
                "serials": [output.serial for output in model.each],
                "inline": model.scheduler.inline,
                "max_batch": model.scheduler.max_batch,
                "layouts": [list(output.memory.layout) for output in model.each],
            }
            return channel.call("load", content, [output.memory for output in model.each])
        if model is not None:
            content["reason"] = model.reason
        return channel.call("unload", content)

    async def _changed(self, name: str, version: int, model: LoadedModel | BrokenModel | None) -> None:
        """Bring every front end to a change before it is answered; one that cannot follow is replaced."""

        async def tell(frontend: Frontend) -> None:
            """Tell one."""
            try:
                await self._tell(frontend.channel, name, version, model)
            except (ChannelClosed, RuntimeError) as e:
                log.error("front end %d cannot serve model %s version %s: %s", frontend.number, name, version, e)
                frontend.process.kill()

        await asyncio.gather(*map(tell, self._frontends.values()))

    async def _heads(self, content: dict[str, Any], fds: list[int]) -> Found:
        """Make heads resident that a front end asks for, and say where they are."""
        model, users, version = self._serials.get(content["serial"]), content["users"], content["version"]
        if model is None:
            return refusal("the version was unloaded meanwhile", len(users))
        resolver, table = self._services.resolver, model.memory.table

        async def one(user: str) -> list[int | str]:
            """Find one user's head."""
            try:
                held = resolver.resident(model, [user], version, "shared")
                if held is None:
                    held = await resolver.fetched(model, [user], version, "shared")
            except HeadwayError as e:
                return [type(e).__name__, e.message]
            (head,) = held
            handle = table.handle(head.slot)
            resolver.release(model, held)  # its lease begins
            return [head.version, handle, *head.own]

        return list(await asyncio.gather(*map(one, users)))

    async def _answered(self, process: int, number: str) -> Answer | None:
        """Ask a front end for a prediction that it answered."""
        frontend = self._frontends.get(process - 1)
        if frontend is None:
            return None
        try:
            found = await frontend.channel.call("answered", {"id": number})
        except (ChannelClosed, RuntimeError):
            return None
        return None if found is None else answer_of(found)

    def _forget(self, user: str, *, erased: bool) -> None:
        """Let front ends drop the heads that they remember of a user, or all; that those are void they know already."""
        for frontend in self._frontends.values():
            with contextlib.suppress(ChannelClosed):
                frontend.channel.post("forget", {"user": user, "erased": erased})

    def _ended(self, frontend: Frontend) -> None:
        """Replace a front end whose channel was closed."""
        frontend.ready = False
        self._services.metrics.frontends.set(len(self._dealer.ready()))
        while frontend.untaken:
            self._dealer.give(frontend.untaken.popleft())
        self._spawn_task(self._replace(frontend))

    async def _replace(self, frontend: Frontend) -> None:
        number, process = frontend.number, frontend.process
        if not self._ending:
            process.kill()
        status = await asyncio.to_thread(process.wait)
        self._board.closed[number] = 0
        for model in self._serials.values():
            model.memory.counts[1 + number, Cell.PENDING] = 0
        if self._ending:
            return
        lived = time.monotonic() - frontend.begin
        self._pauses[number] = 0.0 if lived > LONGEST_PAUSE else _longer(self._pauses[number])
        self._services.metrics.frontend_ends.inc()
        log.error("front end %d (process %d) ended with status %d and is replaced", number, process.pid, status)
        await self._start_again(number)

    async def _start_again(self, number: int) -> None:
        """Start a front end after its pause, which grows as long as that does not work."""
        while not self._ending:
            await asyncio.sleep(self._pauses[number])
            try:
                await self._start(number)  # one that ends after this begins the next attempt
                return
            except OSError as e:
                log.error("front end %d cannot be started: %s", number, e)
                self._pauses[number] = _longer(self._pauses[number])

    async def _watch(self) -> None:
        """End front ends that do not answer any more."""

        async def ping(frontend: Frontend) -> None:
            """Ask one."""
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    await frontend.channel.call("ping")
            except TimeoutError:
                log.error("front end %d has not answered for %g s and is ended", frontend.number, SILENCE_SECONDS)
                frontend.process.kill()
            except (ChannelClosed, RuntimeError):
                return  # it is being replaced

        while True:
            await asyncio.sleep(PING_SECONDS)
            await asyncio.gather(*(ping(f) for f in list(self._frontends.values()) if f.ready))

    def _spawn_task(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
