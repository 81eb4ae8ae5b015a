"""`headway recalibrate --store …`: users are moved straight in the store, by this process or by a Ray cluster.

Each process does what a service does in the background (`service.personal.recalibrate`), as one with the others: under
one operation, whose rows say who has been moved. So a kill loses nothing, and services on the same store follow.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from rich.console import Console

from models.cluster import OnRay, Runner
from service.commands.progress import steps
from service.config import Settings
from service.errors import HeadwayError
from service.personal import operations as rows
from service.personal.calibrate import Calibrator
from service.personal.operations import NotOurs, Operation, OperationRunning, Operations
from service.personal.recalibrate import Recalibrator, sources_of
from service.personal.resolve import Resolver
from service.personal.store import Store
from service.registry import Registry

console = Console()
USERS_A_TASK = 2000
"""Users of one Ray task: the bundle is loaded for each, which takes a second or two."""
LISTED = 20


class BulkError(RuntimeError):
    """Users cannot be moved so; the message says why."""


@dataclass(frozen=True)
class Wanted:
    """What is to be done: users of a model (an output of it), of one version or of all older ones."""

    model: str
    task: str | None = None
    from_version: int | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class _Range:
    settings: Settings
    model: str
    operation: str
    me: str
    begin: str
    until: str | None


def run_bulk(settings: Settings, wanted: Wanted, *, ray: bool, ray_address: str | None) -> None:
    """Move users, and say what came of it.

    Raises:
        BulkError: there is no such model, another does it, or (on Ray) the store is for one process only.
        StoreError: the store cannot be opened, or does not answer.
        ClusterError: there is no such cluster.
    """
    runner: Runner | None = None
    if ray or ray_address:
        if settings.store.startswith("sqlite"):
            raise BulkError("a SQLite store is written by one process: leave --ray out, or move to PostgreSQL")
        settings = settings.model_copy(update={"models": settings.models.absolute()})
        runner = OnRay(ray_address)
    with steps("users", console) as step:
        found, listed = asyncio.run(recalibrated(settings, wanted, runner, lambda *told: step("", *told)))
    console.print(
        f"operation {found.id} {found.state}: {found.moved} {'would be moved' if found.dry_run else 'moved'}, "
        f"{found.needs_enrolment} need to enrol anew, {found.failed} failed {found.message}".rstrip(),
        highlight=False,
        soft_wrap=True,
    )
    for user, reason in listed[:LISTED]:
        console.print(f"  {user}: {reason}", highlight=False, markup=False)
    if len(listed) > LISTED:
        console.print(f"  … and more: GET /v2/operations/{found.id}/users", highlight=False)


async def recalibrated(
    settings: Settings, wanted: Wanted, runner: Runner | None = None, progress: Callable[[int, int], None] | None = None
) -> tuple[Operation, list[tuple[str, str]]]:
    """Move users, and return the operation with some of those who could not be, and why.

    With a `runner` ranges of users are moved side by side by its processes, which must reach the store.

    Raises:
        BulkError, StoreError: as `run_bulk`.
    """
    try:
        async with _opened(settings, wanted.model) as (registry, store, recalibrator):
            operations = recalibrator.operations
            operation = await _begun(registry, store, operations, wanted)
            signs = asyncio.create_task(_signs(operations, operation, progress or (lambda done, total: None)))
            try:
                if runner is not None:
                    await _ranges(settings, wanted.model, operations, operation, runner)
                await recalibrator.do(operation)  # without a runner everybody; else whoever came late
            finally:
                signs.cancel()
            found = await operations.get(operation.id) or operation
            outcomes = [
                await operations.users(found.id, each, "", LISTED + 1) for each in ("needs_enrolment", "failed")
            ]
            if progress is not None:
                progress(found.done, found.total)
            return found, [user for each in outcomes for user in each]
    except HeadwayError as e:
        raise BulkError(e.message) from e
    except NotOurs as e:
        raise BulkError(f"operation {e} was cancelled, or a service has taken it over; who was moved stays so") from e


async def _ranges(settings: Settings, model: str, operations: Operations, operation: Operation, runner: Runner) -> None:
    ranges = await operations.ranges(operation, USERS_A_TASK)
    jobs = [_Range(settings, model, operation.id, operations.me, begin, until) for begin, until in ranges]
    try:
        await asyncio.to_thread(runner.map, move_range, jobs, lambda stage, done, total: None)
    except asyncio.CancelledError:
        await operations.release(operation)  # which ends the others' work, too
        raise


def move_range(job: _Range, tick: object = None) -> None:
    """Move users of a range, in a process that may be on another machine; those who have been moved are left out."""
    asyncio.run(_moved(job))


async def _moved(job: _Range) -> None:
    try:
        async with _opened(job.settings, job.model, job.me) as (registry, _, recalibrator):
            operation = await recalibrator.operations.get(job.operation)
            if operation is None:
                raise NotOurs(job.operation)
            registry.get(job.model, operation.model_version)  # else it would be waited for
            await recalibrator.move_all(operation, job.begin, job.until)
    except HeadwayError as e:
        raise BulkError(f"on a node: {e.message}") from None


@asynccontextmanager
async def _opened(
    settings: Settings, model: str, me: str | None = None
) -> AsyncIterator[tuple[Registry, Store, Recalibrator]]:
    """The parts of a service that recalibration needs, for one model."""
    store, registry = await Store.open(settings.store, existing=True), Registry(settings)
    try:
        await registry.load(model)
        resolver = Resolver(store, registry.served)
        yield registry, store, Recalibrator(store, registry, Calibrator(store, resolver), resolver, share=1.0, me=me)
    finally:
        await asyncio.to_thread(registry.stop)
        await store.close()


async def _begun(registry: Registry, store: Store, operations: Operations, wanted: Wanted) -> Operation:
    """Begin an operation, or take over the one that a kill has left.

    Raises:
        BulkError: somebody does it.
    """
    output = registry.get(wanted.model).of(wanted.task).classifier()
    sources = await sources_of(registry, store, output, wanted.from_version)
    try:
        return await operations.create(output.scope, output.version, sources, wanted.dry_run, taken=True)
    except OperationRunning as e:
        identifier = str(e)
    for _ in range(10):  # until the lease of one who was killed has run out
        found = await operations.claim(identifier)
        if found is not None:
            asked = output.scope, output.version, set(sources), wanted.dry_run
            if (found.scope, found.model_version, set(found.sources), found.dry_run) != asked:
                await operations.release(found)
                break
            return found
        await asyncio.sleep(rows.LEASE_SECONDS / 8)
    raise BulkError(
        f"users of model {wanted.model!r} are being moved by operation {identifier}, by a service or otherwise than "
        f"asked for here: wait for it, or end it with DELETE /v2/operations/{identifier}; who was moved stays so"
    )


async def _signs(operations: Operations, operation: Operation, progress: Callable[[int, int], None]) -> None:
    """Show that the operation is being done, to other services and to who waits, until cancelled."""
    with contextlib.suppress(NotOurs):
        while True:
            await operations.extend(operation)
            if (found := await operations.get(operation.id)) is not None:
                progress(found.done, found.total)
            await asyncio.sleep(rows.LEASE_SECONDS / 10)
