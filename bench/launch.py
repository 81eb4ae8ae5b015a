"""Starting a server in its own environment, and Headway with so many calibrated users."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from bench import heads, protocols
from bench.bundles import Case, models_folder
from bench.load import Body
from bench.places import ENVIRONMENTS, LOGS, SERVERS, STORES
from bench.processes import free_port, owner, started
from bench.protocols import Protocol
from service.commands.process import running_service

START_SECONDS = 120.0
TOUCHED = 64
"""Users of one request that only brings their heads into memory."""
TRIES = 16
"""Connections that are opened for each process that should answer, before it is said not to."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class ContenderError(RuntimeError):
    """A server cannot be measured here; the message says why."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a started server answers, the process its tree grows from, and how many of it were seen to answer."""

    url: str
    pid: int
    answering: int = 1


@dataclass(frozen=True, slots=True)
class Contender:
    """A server: a sentence on its set-up, its bodies by kind, how it starts for so many users, its packages."""

    name: str
    setup: str
    bodies: Callable[[Case], dict[str, Protocol]]
    start: Callable[[Case, int, int], AbstractContextManager[Endpoint]]
    environment: str | None
    packages: tuple[str, ...]
    most_users: int = 10_000_000

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages it runs on."""
        program = "import importlib.metadata as m, json, sys; print(json.dumps([m.version(p) for p in sys.argv[1:]]))"
        said = subprocess.run(
            [python(self.environment), "-c", program, *self.packages], capture_output=True, text=True, check=False
        )
        if said.returncode:
            raise ContenderError(f"{self.name} is not installed: {said.stderr.strip().splitlines()[-1]}")
        return dict(zip(self.packages, json.loads(said.stdout), strict=True))


def python(environment: str | None) -> str:
    """Return the interpreter of a competitor's environment; None is this one.

    Raises:
        ContenderError: it was not made.
    """
    if environment is None:
        return sys.executable
    file = ENVIRONMENTS / environment / "bin" / "python"
    if not file.exists():
        log = ENVIRONMENTS / f"{environment}.log"
        said = f"; its installation said: {log.read_text()[-300:]}" if log.exists() else "; run `make bench-servers`"
        raise ContenderError(f"the environment {environment} is not there{said}")
    return str(file)


def clean_environment(model: Case, count: int) -> dict[str, str]:
    """Return the environment of a competitor: nothing of Headway's, the graph and the heads named."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HEADWAY_", "PYTHON"))}
    table = heads.table(model, count)
    return kept | ONE_THREAD | {
        "BENCH_GRAPH": str(model.graph),
        "BENCH_HEADS": str(table),
        "BENCH_USERS": str(count),
        "PYTHONPATH": str(SERVERS),
    }  # fmt: skip


def wait_until(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a URL answers 200.

    Raises:
        ContenderError: the server ended, or did not answer in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                if response.status == 200:
                    return
        except (OSError, urllib.error.URLError):
            pass
        time.sleep(0.1)
    raise ContenderError(f"{url} did not answer; the log ends with: {log.read_text(errors='replace')[-600:]}")


def served(
    environment: str,
    arguments: Callable[[int, int], list[str]],
    ready: str,
    prepare: Callable[[Case], Path] | None = None,
) -> Callable[[Case, int, int], AbstractContextManager[Endpoint]]:
    """Return how to start a competitor.

    Args:
        environment: name of its environment.
        arguments: of its interpreter, for a port and a number of workers.
        ready: path that answers 200 once it serves.
        prepare: writes what it reads and returns the folder to run in; by default that of the servers.
    """

    @contextmanager
    def start(model: Case, count: int, workers: int) -> Iterator[Endpoint]:
        port, log = free_port(), LOGS / f"{environment}.log"
        settings = clean_environment(model, count) | {"BENCH_PORT": str(port), "BENCH_WORKERS": str(workers)}
        command = [python(environment), *arguments(port, workers)]
        with started(command, log, settings, prepare(model) if prepare else SERVERS) as process:
            url = f"http://127.0.0.1:{port}"
            wait_until(url + ready, process, log)
            yield Endpoint(url, process.pid)

    return start


@contextmanager
def headway(
    model: Case,
    count: int,
    _workers: int = 0,
    *,
    options: Sequence[str] = (),
    frontends: int | None = None,
    models: Path | None = None,
    store: Path | None = None,
) -> Iterator[Endpoint]:
    """Start `headway serve` with a store of so many calibrated users, all of them in memory.

    `frontends` is its own option, given only if it is not None; `models` may hold others beside the one.
    """
    folder = store or STORES / f"{model.name}-{count}"
    if not (folder / "headway.db").exists():
        heads.fill(folder / "headway.db", model, count)
    chosen = () if frontends is None else ("--frontends", str(frontends))
    with running_service(models or models_folder(model.name), folder, *chosen, *options) as service:
        answering = touch(model, service.url, service.pid, count, frontends or None)
        yield Endpoint(service.url, service.pid, answering)


def touch(
    model: Case, url: str, pid: int, count: int, processes: int | None = None, *, everywhere: bool = False
) -> int:
    """Ask every process that answers for every user, so that heads are in memory; returns how many answered.

    Where it is not known how many `processes` there are, some tries are taken to find all. `everywhere` asks on many
    connections instead: in one process, too, connections may belong to different loops.

    Raises:
        ContenderError: fewer processes answer than should.
    """
    windows = np.repeat(model.windows(1), TOUCHED, 0)
    bodies = [
        protocols.headway_rows(model, windows[: len(users)], [heads.user_name(i) for i in users])
        for users in (range(first, min(count, first + TOUCHED)) for first in range(0, count, TOUCHED))
    ]
    path, parts = f"/v2/models/{model.name}/infer", urlsplit(url)
    owners: dict[int | None, http.client.HTTPConnection] = {}
    with ExitStack() as stack:
        for _ in range(TRIES * (processes or 1)):
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
            stack.callback(connection.close)
            _post(connection, path, bodies[0])
            who = owner(pid, parts.port or 80, connection.sock.getsockname()[1])
            owners.setdefault(len(owners) if everywhere else who, connection)
            if len(owners) == processes:
                break
        if processes is not None and len(owners) < processes:
            raise ContenderError(f"of {processes} processes that should answer at {url}, {len(owners)} do")
        for connection in owners.values():
            for body in bodies:
                _post(connection, path, body)
    return len(owners)


def _post(connection: http.client.HTTPConnection, path: str, body: Body) -> None:
    connection.request("POST", path, body.filled(0), body.headers)
    answer = connection.getresponse()
    said = answer.read()
    if answer.status != 200:
        raise ContenderError(f"{path} answered {answer.status}: {said[:300]!r}")
