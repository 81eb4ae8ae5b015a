"""From a bundle to a version that answers: verify, open, warm up."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from exporters import bundle as bundles
from exporters.bundle import Bundle, BundleError, Manifest
from service.config import Settings
from service.engine.head_bank import SPARE_SLOTS, HeadBank, capacity_of
from service.engine.head_table import HeadReader
from service.engine.jobs import BatchReport
from service.engine.machine import this_machine
from service.engine.memory import Layout, ModelMemory
from service.engine.output_heads import OutputHeads
from service.engine.runtime import Runtime
from service.engine.scheduler import ApplyHeads, Scheduler
from service.engine.statistics import ModelStatistics
from service.loaded import LoadedModel, columns_of, shared_of
from service.media import Media

INLINE_ROW_SECONDS = 0.001
"""A forward of one row shorter than this runs on the event loop: handing it to a thread and back costs more."""
BATCH_LOSS = 1.1
"""How much more time a row may take in a larger batch: noise, and what a batch saves around the forward."""
LEASE_SECONDS = 2.0
"""Time for which a head that a front end was told of stays where it is: longer than rows mostly wait."""

OnBatch = Callable[[LoadedModel, BatchReport], None]

_serials = itertools.count(1)


def threads_of(settings: Settings) -> int:
    """Threads of one forward: as set, or else by the machine."""
    if settings.threads:
        return settings.threads
    return this_machine().threads_of(max(1, settings.frontends)) if settings.device == "cpu" else 1


def load(path: Path, settings: Settings, on_batch: OnBatch) -> LoadedModel:
    """Load a version in the process that owns the store.

    Raises:
        BundleError, RuntimeUnavailable: it cannot be served; the message says why.
    """
    bundle = _read(path)
    cpu = settings.device == "cpu"
    runtime = _open(bundle, settings, 1 if cpu else settings.max_batch)
    row_seconds = _seconds(bundle, runtime, 1)
    quick = cpu and row_seconds < INLINE_ROW_SECONDS
    max_batch = settings.max_batch
    if cpu and not quick:
        max_batch = _largest_batch(bundle, runtime, row_seconds, settings)
    _seconds(bundle, runtime, max_batch)  # the first forward of a size is slower
    inline = settings.dispatch == "inline" or (settings.dispatch == "auto" and quick)
    places = [_room(each, settings, len(bundle.outputs) or 1) for each in bundle.outputs or (bundle,)]
    return _assemble(bundle, runtime, settings, places, on_batch, max_batch, inline=inline)


class Place(NamedTuple):
    """Where heads of one output are, its serial, and its bank in the process that owns the store."""

    memory: ModelMemory
    serial: int
    bank: HeadBank | None = None


def _room(bundle: Bundle, settings: Settings, outputs: int) -> Place:
    """Make room for the heads of one of so many outputs."""
    head = shared_of(bundle)
    k, d = head.weight.shape
    capacity = capacity_of(k, d, settings.resident_heads, settings.head_bank_bytes // outputs)
    followers = settings.frontends if settings.frontends > 1 else 0
    layout = Layout(capacity + SPARE_SLOTS, k, d, settings.max_batch, 1 + followers)
    memory = ModelMemory.shared(layout) if followers else ModelMemory(layout)
    bank = HeadBank(head, capacity, table=memory.table, lease=LEASE_SECONDS if followers else 0.0)
    return Place(memory, next(_serials), bank)


def follow(
    path: Path,
    settings: Settings,
    on_batch: OnBatch,
    places: Sequence[Place],
    *,
    max_batch: int,
    inline: bool,
    process: int,
) -> LoadedModel:
    """Load the same version in a front end, number `process` of those that share its memory.

    Raises:
        BundleError, RuntimeUnavailable: it cannot be served here.
    """
    bundle = _read(path)
    runtime = _open(bundle, settings, max_batch)
    return _assemble(bundle, runtime, settings, places, on_batch, max_batch, inline=inline, process=process)


def _assemble(
    bundle: Bundle,
    runtime: Runtime,
    settings: Settings,
    places: Sequence[Place],
    on_batch: OnBatch,
    max_batch: int,
    *,
    inline: bool,
    process: int = 0,
) -> LoadedModel:
    def report(batch: BatchReport) -> None:
        model.statistics.batch(batch)
        on_batch(model, batch)

    manifest = bundle.manifest
    statistics = [ModelStatistics(place.memory.counts[process]) for place in places]
    scores = [HeadReader(p.memory.table).scores if p.bank is None else p.memory.table.scores for p in places]
    apply_heads: ApplyHeads = scores[0]
    if bundle.outputs:
        apply_heads = OutputHeads([(columns_of(b.manifest), s) for b, s in zip(bundle.outputs, scores, strict=True)])
    scheduler = Scheduler(
        f"{manifest.name}-{manifest.version}",
        runtime.run,
        apply_heads,
        max_batch=max_batch,
        # Of a queue of the service's size each front end has its part.
        queue_rows=settings.queue_rows if process == 0 else max(max_batch, settings.queue_rows // settings.frontends),
        queue_seconds=settings.queue_seconds,
        max_delay=settings.max_delay_us / 1e6,
        padding=manifest.input.padding,
        inline=inline,
        on_batch=report,
        level=statistics[0].pending,
    )
    media = Media(bundle, settings.max_body_bytes)
    model, *outputs = (
        LoadedModel(alone, runtime, scheduler, memory, counts, serial, bank, media)
        for alone, (memory, serial, bank), counts in zip(
            (bundle, *bundle.outputs), (places[0], *places), (statistics[0], *statistics), strict=False
        )
    )
    model.outputs = tuple(outputs)
    return model


def _read(path: Path) -> Bundle:
    bundle = bundles.load(path)
    manifest = bundle.manifest
    if (manifest.name, str(manifest.version)) != (path.parent.name, path.name):
        raise BundleError(f"{path} holds {manifest.name} version {manifest.version}")
    _check_task(bundle)
    return bundle


def _check_task(bundle: Bundle) -> None:
    """Refuse a version of another task than the model's first one: clients of a model count on what it answers.

    So a version may have more outputs than those before it, and not fewer; the first one stays the first.
    """
    manifest, versions = bundle.manifest, list(_manifests(bundle.path.parent))
    first = versions[0]
    if first.task != manifest.task:
        raise BundleError(
            f"{bundle.path} is a {manifest.task} and version {first.version} a {first.task}: versions of a model are "
            "of one task; give it another name"
        )
    for other in versions:
        older, newer = sorted((other, manifest), key=lambda m: m.version)
        kept = _tasks(newer).items() >= _tasks(older).items()
        if not kept or older.output not in ("", newer.output):
            raise BundleError(
                f"{bundle.path} has {_told(manifest)} and version {other.version} {_told(other)}: a version may add "
                "outputs to those of the versions before it, behind them, and not take any away; give it another name"
            )


def _tasks(manifest: Manifest) -> dict[str, str]:
    """Task by output, where there are several."""
    return {name: manifest.of_output(name).task for name in manifest.names}


def _told(manifest: Manifest) -> str:
    return f"the outputs {', '.join(manifest.names)}" if manifest.outputs else "one output"


def _manifests(folder: Path) -> Iterator[Manifest]:
    """Manifests of a model's versions, the first version first; what cannot be read is not served."""
    for version in bundles.versions(folder):
        with contextlib.suppress(BundleError):
            yield bundles.read_manifest(folder / str(version))[0]


def _open(bundle: Bundle, settings: Settings, max_batch: int) -> Runtime:
    return Runtime.of(bundle, device=settings.device, threads=threads_of(settings), max_batch=max_batch)


def _largest_batch(bundle: Bundle, runtime: Runtime, row_seconds: float, settings: Settings) -> int:
    """Rows up to which a larger batch does not cost more time a row: on a CPU, images do not gain by company."""
    best, rows = row_seconds, 1
    while rows < settings.max_batch:
        larger = min(2 * rows, settings.max_batch)
        seconds = _seconds(bundle, runtime, larger) / larger
        if seconds > BATCH_LOSS * best:
            break
        best, rows = min(best, seconds), larger
    return rows


def _seconds(bundle: Bundle, runtime: Runtime, rows: int) -> float:
    """Seconds of a forward of so many rows, the best of some."""
    spec, taken = bundle.manifest.input, []
    zeros = np.zeros((rows, *spec.sized(None if spec.padding is None else spec.padding.multiple_of)), spec.dtype)
    for _ in range(5):
        begin = time.monotonic()
        runtime.run(zeros)
        taken.append(time.monotonic() - begin)
    return min(taken)
