"""Starting a server in its own environment, and Headway with so many calibrated users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import protocols, users
from bench.bundles import Case, models_folder
from bench.load import post
from bench.places import ENVIRONMENTS, LOGS, SERVERS, STORES
from bench.processes import free_port, started
from bench.protocols import Protocol
from service.commands.process import running_service

START_SECONDS = 120.0
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class ContenderError(RuntimeError):
    """A server cannot be measured here; the message says why."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a started server answers, and the process its tree grows from."""

    url: str
    pid: int


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
    heads = users.table(model, count)
    return kept | ONE_THREAD | {
        "BENCH_GRAPH": str(model.graph),
        "BENCH_HEADS": str(heads),
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
    model: Case, count: int, workers: int, *options: str, models: Path | None = None, store: Path | None = None
) -> Iterator[Endpoint]:
    """Start `headway serve` with a store of so many calibrated users; `models` may hold others beside the one."""
    folder = store or STORES / f"{model.name}-{count}"
    if not (folder / "headway.db").exists():
        users.fill(folder / "headway.db", model, count)
    with running_service(models or models_folder(model.name), folder, *frontends(workers), *options) as service:
        touch(model, service.url, count)
        yield Endpoint(service.url, service.pid)


def touch(model: Case, url: str, count: int, rows: int = 64) -> None:
    """Ask once for every user, many in a request, so that heads are in memory when the measurement begins."""
    path = f"{url}/v2/models/{model.name}/infer"
    windows = np.repeat(model.windows(1), rows, 0)
    for first in range(0, count, rows):
        names = [users.user_name(i) for i in range(first, min(count, first + rows))]
        post(path, protocols.headway_rows(model, windows[: len(names)], names), 0)


def frontends(workers: int) -> tuple[str, ...]:
    """Return the option that sets the number of front ends, where this Headway has it."""
    told = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve", "--help"], capture_output=True, text=True, check=False,
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb"},
    )  # fmt: skip
    return ("--frontends", str(workers)) if "--frontends" in told.stdout else ()
