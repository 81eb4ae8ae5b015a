"""Ways to use more cores on one machine, measured against each other; see bench/prototypes for those not in service."""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench import heads, protocols
from bench.bundles import Case, models_folder
from bench.contenders import CONTENDERS, ORT, with_frontends
from bench.launch import Contender, Endpoint, clean_environment, touch, wait_until
from bench.places import HOME, LOGS, ROOT, STORES
from bench.processes import free_port, started
from bench.serving import common_arguments, compare, one_of

FRONTENDS = 2


def _prototype(
    name: str, setup: str, module: str, *options: str, options_of: Callable[[int], list[str]] = lambda _: []
) -> Contender:
    @contextmanager
    def start(model: Case, count: int, workers: int) -> Iterator[Endpoint]:
        port, log = free_port(), LOGS / f"layout-{name}.log"
        command = [sys.executable, "-m", f"bench.prototypes.{module}", *options, *options_of(count)]
        command += ["--models", str(models_folder(model.name)), "--port", str(port), "--stores"]
        command += [str(file) for file in _stores(model, count, workers)]
        settings = clean_environment(model, count) | {"PYTHONPATH": str(ROOT)}
        with started(command, log, settings, ROOT) as process:
            url = f"http://127.0.0.1:{port}"
            wait_until(f"{url}/v2/health/ready", process, log)
            touch(model, url, process.pid, count, everywhere=True)
            yield Endpoint(url, process.pid)

    return Contender(name, setup, lambda m: protocols.headway(m.name), start, None, ("headway", "uvicorn", *ORT))


def _stores(model: Case, count: int, copies: int) -> list[Path]:
    """Return SQLite files with the same users: a store has one writer."""
    original = STORES / f"{model.name}-{count}" / "headway.db"
    if not original.exists():
        heads.fill(original, model, count)
    with sqlite3.connect(original) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    folder = HOME / "layouts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = [folder / f"{i}.db" for i in range(copies)]
    for file in files:
        shutil.copyfile(original, file)
    return files


def _one_process() -> Contender:
    return with_frontends(1) if _has_frontends() else CONTENDERS["headway"]


def _has_frontends() -> bool:
    told = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve", "--frontends", "1", "--help"], capture_output=True, check=False
    )
    return told.returncode == 0


LAYOUTS: dict[str, Callable[[], Contender]] = {
    "one-process": _one_process,
    "loops-in-threads": lambda: _prototype(
        "loops-in-threads",
        "prototype: an event loop, session and heads a thread, threads of one process",
        "replicas",
        "--how",
        "threads",
    ),
    "one-engine": lambda: _prototype(
        "one-engine",
        "prototype: front-end processes, one engine process, shared memory between them",
        "one_engine",
        options_of=lambda count: ["--users", str(count)],
    ),
    "own-sessions": lambda: _prototype(
        "own-sessions",
        "prototype: processes with sessions and heads of their own that know nothing of each other",
        "replicas",
        "--how",
        "processes",
    ),
    "frontends": partial(with_frontends, FRONTENDS),
}


def main() -> None:
    """Run the comparison and write it to docs/benchmarks/layouts.{json,md} if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layouts", type=one_of(list(LAYOUTS)), default=list(LAYOUTS), help=f"of {','.join(LAYOUTS)}")
    common_arguments(parser)
    parser.set_defaults(models=["fixed", "semg-myo"], concurrency=[1, 32, 64], rounds=3)
    chosen = parser.parse_args()
    chosen.servers, chosen.bodies, chosen.rows, chosen.frontends = ["raw"], ["binary"], [1], []
    servers = [LAYOUTS[name]() for name in chosen.layouts]
    compare(chosen, servers, {"title": "Process layouts compared", "command": "python bench/layouts.py"})


if __name__ == "__main__":
    main()
