"""`headway doctor`: what this machine will run on and why, found by doing what `headway serve` does to get ready."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import json
import logging
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata

import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from exporters.bundle import BundleError
from service.config import ConfigError, Settings
from service.engine.machine import this_machine
from service.engine.runtime import DEVICES
from service.keys import KeysError, read
from service.loaded import LoadedModel
from service.loading import threads_of
from service.personal import revision
from service.personal.database import Database, connect
from service.personal.records import StoreError
from service.personal.sqlite import SqliteDatabase
from service.personal.store import Store
from service.registry import Registry
from service.server import LOOPBACK, listen

BLAS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; one that is not `ok` keeps `headway serve` from becoming ready."""

    name: str
    found: str
    ok: bool = True


def run_doctor(settings: Settings, *, as_json: bool = False) -> bool:
    """Print what was found; returns whether `headway serve` with these settings would become ready."""
    found = list(examine(settings))
    ready = all(finding.ok for finding in found)
    console = Console()
    if as_json:
        rows = [asdict(finding) for finding in found]
        console.print_json(json.dumps({"ready": ready, "device": settings.device, "findings": rows}))
        return ready
    table = Table("", "", "found", show_header=False, box=None)
    for finding in found:
        table.add_row("[green]ok[/]" if finding.ok else "[red]NO[/]", finding.name, finding.found.replace("[", "\\["))
    console.print(table)
    console.print(
        "`headway serve` with these settings becomes ready"
        if ready
        else "[red]`headway serve` would not become ready[/]"
    )
    return ready


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything that a start needs, in order; nothing is left behind."""
    yield Finding("python", f"{platform.python_version()} ({platform.system()} {platform.machine()})")
    yield from _runtime(settings)
    yield from _machine(settings)
    yield _store(settings.store)
    yield from _ports(settings)
    yield _keys(settings)
    yield from _models(settings)


def _keys(settings: Settings) -> Finding:
    if settings.keys is None:
        exposed = settings.host not in LOOPBACK
        return Finding("keys", f"none: every request is answered{' from other machines, too' if exposed else ''}")
    try:
        found = read(settings.keys)
    except KeysError as e:
        return Finding("keys", str(e), ok=False)
    return Finding("keys", f"{len(found)} in {settings.keys}")


def _runtime(settings: Settings) -> Iterator[Finding]:
    available, asked = ort.get_available_providers(), DEVICES[settings.device]
    yield Finding("onnxruntime", f"{ort.__version__}; providers in this build: {', '.join(available)}")
    lacking = [name for name in asked if name not in available]
    why = f"; {', '.join(lacking)} is not in this build: install headway[cuda]" if lacking else ""
    yield Finding("device", f"{settings.device}: asks for {', then '.join(asked)}{why}", ok=not lacking)
    wheels = sorted(
        f"{name} {d.version}"
        for d in metadata.distributions()
        if (name := d.metadata["Name"] or "").startswith("nvidia-")
    )
    driver = "the driver's libcuda loads" if _loads("libcuda.so.1") else "no NVIDIA driver (libcuda.so.1 does not load)"
    yield Finding("cuda", f"{driver}; {', '.join(wheels) or 'no NVIDIA wheels'}")
    torch = importlib.util.find_spec("torch") is not None
    yield Finding("torch", "installed, never imported by the service" if torch else "not installed, and not needed")


def _machine(settings: Settings) -> Iterator[Finding]:
    machine = this_machine()
    quota = "no quota" if machine.quota is None else f"quota {machine.quota:g}"
    memory = "unknown" if machine.memory is None else f"{machine.memory / 2**30:.1f} GiB"
    yield Finding(
        "machine",
        f"{machine.cores} usable cores (affinity {machine.affinity}, {quota}, cgroup {machine.cgroup or 'none'}), "
        f"memory {memory}",
    )
    of_processes = "as set" if settings.frontends else "chosen by the machine"
    chosen = "as set" if settings.threads else "chosen by the machine"
    given = {name: os.environ[name] for name in BLAS if name in os.environ}
    blas = ", ".join(f"{name}={value}" for name, value in given.items()) or "1 (set by `headway serve`)"
    settings = settings.resolved()
    yield Finding(
        "processes",
        f"{settings.frontends} answering predictions, {of_processes}"
        + (", and one that keeps the store" if settings.frontends > 1 else ""),
    )
    yield Finding("threads", f"{threads_of(settings)} inside one forward, {chosen}; BLAS {blas}")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _store(url: str) -> Finding:
    try:
        return Finding("store", asyncio.run(_look_at(connect(url), url)))
    except (StoreError, OSError) as e:
        return Finding("store", str(e), ok=False)


async def _look_at(database: Database, url: str) -> str:
    """Open the store as a start does, but make nothing."""
    try:
        file = database.file.resolve() if isinstance(database, SqliteDatabase) else None
        if file is not None and not file.exists():
            with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".headway-"):
                return f"{file} will be made; its folder can be written"
        async with database.transaction() as c:
            found = await revision.found(c)
        if found is None:
            return f"{database.name} answers; its tables will be made"
    finally:
        await database.close()
    await (await Store.open(url)).close()
    return f"{file or database.name} opens and can be written"


def _ports(settings: Settings) -> Iterator[Finding]:
    wanted = {"port": settings.port}
    if settings.metrics_port != settings.port or not settings.port:
        wanted["metrics port"] = settings.metrics_port
    for name, port in wanted.items():
        try:
            listen(settings.host, port).close()
        except (ConfigError, OSError) as e:
            yield Finding(name, str(e), ok=False)
        else:
            yield Finding(name, f"{port} on {settings.host} is free" if port else f"a free one on {settings.host}")


def _models(settings: Settings) -> Iterator[Finding]:
    log = logging.getLogger("headway")
    quiet, log.disabled = log.disabled, True  # the reasons are in the findings
    registry = Registry(settings)
    try:
        registry.load_all()
        for name, versions in registry.by_name().items():
            for model in versions:
                title = f"{name} {model.version}"
                if isinstance(model, LoadedModel):
                    yield Finding(title, f"verified; bound to {model.runtime.provider}; {_placed(model)}")
                else:
                    yield Finding(title, model.reason, ok=False)
    except BundleError as e:
        yield Finding("models", str(e), ok=False)
    finally:
        registry.stop()
        log.disabled = quiet


def _placed(model: LoadedModel) -> str:
    placement = model.runtime.placement
    if placement is None:
        return "where its nodes ran is not known"
    shares = ", ".join(f"{share:.0%} on {name}" for name, share in placement.shares.items())
    return f"{sum(placement.nodes.values())} nodes ran, {shares}"
