"""A real service in a process of its own, for the demo and for evaluations over HTTP."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.interpreter import command

START_SECONDS = 60.0
ANNOUNCEMENT = re.compile(r"headway serves .* at (\S+)\s+\(docs: \S+, metrics: (\S+?)\)")


class ServiceStartError(RuntimeError):
    """The service did not become ready; the message holds what it said."""


@dataclass(frozen=True, slots=True)
class RunningService:
    """Where a started service answers."""

    url: str
    metrics_url: str
    pid: int


@contextmanager
def running_service(models: Path, store: Path | str, *options: str) -> Iterator[RunningService]:
    """Start `headway serve` on free ports, wait until it is ready, and end it with SIGTERM.

    Args:
        models: folder of bundles.
        store: folder for a SQLite store, which is made, or the URL of any store.
        options: of `headway serve`.

    Raises:
        ServiceStartError: it ended or was not ready in time.
    """
    if isinstance(store, Path):
        store.mkdir(parents=True, exist_ok=True)
        store = f"sqlite+aiosqlite:///{store.resolve()}/headway.db"
    line = command("service.cli", "serve", "--models", str(models), "--store", store)
    line += ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", *options]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADWAY_")} | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    lines: list[str] = []
    reader = threading.Thread(target=_collect, args=(process, lines), daemon=True)
    reader.start()
    try:
        yield _announced(process, lines)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)
        if process.stdout is not None:
            process.stdout.close()


def _collect(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)  # noqa: PERF402 - line by line, as they come


def _announced(process: subprocess.Popen[str], lines: list[str]) -> RunningService:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for line in list(lines):
            found = ANNOUNCEMENT.search(line)
            if found and _ready(found[1]):
                return RunningService(found[1], found[2], process.pid)
        if process.poll() is not None:
            break
        time.sleep(0.05)
    said = "".join(lines)[-2000:].strip() or "nothing"
    raise ServiceStartError(f"the service did not become ready; it said: {said}")


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v2/health/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
