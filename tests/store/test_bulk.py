"""Users moved without a service, by one process or by a Ray cluster: as a service does it, once, and after a kill."""

import asyncio
import shutil
import subprocess
import sys

import asyncpg
import numpy as np
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from models.cluster import OnRay
from service.app import create_app
from service.cli import app as command
from service.commands import bulk
from service.commands.bulk import BulkError, Wanted, recalibrated
from service.config import Settings
from service.personal import operations
from service.personal.schema import audit, users, versions
from service.personal.store import Store
from tests.conftest import running
from tests.service.test_users import body
from tests.tiny import write_tiny_bundle
from tests.upgraded import write_bridged_bundle, write_upgraded_bundle

MODEL = "/v2/models/tiny"
OFFSET = np.array([1.0, 1.0, 0.0, 0.0])
NAMES = [f"u{i:02d}" for i in range(10)]


async def calibrated(settings, rng):
    """Ten users with heads in version 1, every third of whom has their windows kept."""
    write_tiny_bundle(settings.models)
    async with running(create_app(settings)) as client:
        for i, name in enumerate(NAMES):
            if i % 3 == 0:
                kept = await client.put(f"{MODEL}/users/{name}", json={"retention": "inputs"})
                assert kept.status_code == 200, kept.text
            sent = body(rng, offset=OFFSET, repetitions=3)
            assert (await client.post(f"{MODEL}/users/{name}/calibrations", json=sent)).status_code == 201


async def written(url):
    """All that moving users writes, without ids and times."""
    store = await Store.open(url)
    try:
        async with store.transaction() as c:
            heads = [
                (
                    row.user,
                    row.feature_space,
                    row.version,
                    row.head,
                    row.statistics,
                    row.report["origin"],
                    row.report["by"],
                )
                for row in await c.execute(select(versions).order_by(versions.c.user, versions.c.feature_space))
                if "by" in row.report
            ]
            where = users.c.user, users.c.feature_space, users.c.active, users.c.last
            pointers = (await c.execute(select(*where).order_by(*where))).all()
            lines = [
                (row.pseudonym, row.event, row.verdict, row.details)
                for row in await c.execute(select(audit).order_by(audit.c.pseudonym, audit.c.id))
                if row.by.startswith("operation")
            ]
        return heads, [tuple(p) for p in pointers], lines
    finally:
        await store.close()


@pytest.fixture
async def sqlite(tmp_path, rng):
    settings = Settings(models=tmp_path / "models", store=f"sqlite+aiosqlite:///{tmp_path}/one.db")
    await calibrated(settings, rng)
    write_bridged_bundle(settings.models)
    return settings


@pytest.fixture
async def postgresql(tmp_path, rng, postgres_server):
    settings = Settings(models=tmp_path / "models", store=await asyncio.to_thread(postgres_server.database))
    await calibrated(settings, rng)
    write_bridged_bundle(settings.models)
    return settings


async def test_without_a_service_users_are_moved_as_a_service_moves_them(sqlite, tmp_path):
    shutil.copy(tmp_path / "one.db", tmp_path / "other.db")
    other = sqlite.model_copy(update={"store": f"sqlite+aiosqlite:///{tmp_path}/other.db"})
    seen = []
    dry, _ = await recalibrated(sqlite, Wanted("tiny", dry_run=True))
    assert (dry.moved, dry.dry_run) == (10, True)
    found, listed = await recalibrated(sqlite, Wanted("tiny"), progress=lambda *told: seen.append(told))
    assert (found.state, found.moved, found.total, listed, seen[-1]) == ("done", 10, 10, [], (10, 10))
    async with running(create_app(other)) as client:
        begun = (await client.post(f"{MODEL}/users:recalibrate")).json()["operation"]
        while (await client.get(f"/v2/operations/{begun}")).json()["state"] == "running":
            await asyncio.sleep(0.05)
    one, two = await written(sqlite.store), await written(other.store)
    assert one == two
    assert {row[-1] for row in one[0]} == {"inputs", "bridge"}
    again, _ = await recalibrated(sqlite, Wanted("tiny"))
    assert again.total == 0


class Killed(BaseException):
    """What ends a process."""


async def killed_after(settings, count, monkeypatch, wanted=None):
    """Move some users, and be killed."""
    real, done = Store.commit, []

    async def commit(self, scope, user, new):
        if len(done) == count:
            raise Killed
        done.append(user)
        return await real(self, scope, user, new)

    monkeypatch.setattr(Store, "commit", commit)
    with pytest.raises(Killed):
        await recalibrated(settings, wanted or Wanted("tiny"))
    monkeypatch.setattr(Store, "commit", real)
    return done


async def test_after_a_kill_the_same_command_goes_on_and_moves_nobody_twice(postgresql, monkeypatch):
    monkeypatch.setattr(operations, "LEASE_SECONDS", 0.4)
    moved = await killed_after(postgresql, 4, monkeypatch)
    found, _ = await recalibrated(postgresql, Wanted("tiny"))
    assert (found.state, found.moved, found.total) == ("done", 10, 10)
    heads, _, lines = await written(postgresql.store)
    assert [row[0] for row in heads] == NAMES
    assert len(lines) == 10
    assert set(moved) < set(NAMES)


async def test_an_operation_of_a_service_is_left_to_it(postgresql, monkeypatch):
    monkeypatch.setattr(operations, "LEASE_SECONDS", 0.4)
    await killed_after(postgresql, 4, monkeypatch)
    with pytest.raises(BulkError, match=r"otherwise than asked for here: wait for it, or end it with DELETE /v2/oper"):
        await recalibrated(postgresql, Wanted("tiny", dry_run=True))


async def test_users_of_one_version_only_are_not_taken_for_all(postgresql, monkeypatch):
    monkeypatch.setattr(operations, "LEASE_SECONDS", 0.4)
    write_upgraded_bundle(postgresql.models, version=3, bend=0.1)
    one = Wanted("tiny", from_version=1)
    await killed_after(postgresql, 2, monkeypatch, one)
    with pytest.raises(BulkError, match="otherwise than asked for here"):
        await recalibrated(postgresql, Wanted("tiny"))
    found, _ = await recalibrated(postgresql, one)
    assert (found.state, found.moved, found.needs_enrolment) == ("done", 4, 6)


async def test_from_the_command_line_a_dry_run_says_what_would_be_in_one_line(sqlite):
    line = ["recalibrate", "--model", "tiny", "--store", sqlite.store, "--models", str(sqlite.models)]
    for more, said in ((["--dry-run"], "10 would be moved, 0 need"), ([], "10 moved, 0 need")):
        done = await asyncio.to_thread(CliRunner().invoke, command, [*line, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert f"done: {said} to enrol anew, 0 failed\n" in done.output
    done = await asyncio.to_thread(CliRunner().invoke, command, [*line, "--no-wait"])
    assert done.exit_code == 2
    assert "no-wait" in done.output


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
async def test_on_ray_heads_and_records_are_bit_for_bit_those_of_one_process(
    postgresql, postgres_server, tmp_path, monkeypatch
):
    pytest.importorskip("ray")
    import ray

    name = postgresql.store.rpartition("/")[2]
    connection = await asyncpg.connect(postgres_server.address("postgres"))
    await connection.execute(f"CREATE DATABASE {name}_ray TEMPLATE {name}")
    await connection.close()
    other = postgresql.model_copy(update={"store": f"{postgresql.store}_ray"})
    monkeypatch.setattr(bulk, "USERS_A_TASK", 4)
    await recalibrated(postgresql, Wanted("tiny"))
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=2**27,
    )
    try:
        async with running(create_app(other)) as client:  # a service on the same store, which follows
            assert (await client.get(f"{MODEL}/users/u03")).json()["state"] == "stale"
            with monkeypatch.context() as here:
                here.setattr(Store, "commit", None)  # only the cluster's processes can
                found, _ = await recalibrated(other, Wanted("tiny"), OnRay())
            assert (found.state, found.moved, found.total) == ("done", 10, 10)
            assert (await client.get(f"{MODEL}/users/u03")).json()["state"] == "calibrated"
        assert await written(postgresql.store) == await written(other.store)
        write_upgraded_bundle(tmp_path / "models", version=3, bend=0.1)
        left, listed = await recalibrated(other, Wanted("tiny"), OnRay())
    finally:
        ray.shutdown()
    # To a version without a bridge only those go whose windows are kept.
    assert (left.moved, left.needs_enrolment) == (4, 6)
    assert all("has no bridge" in reason for _, reason in listed)


async def test_what_cannot_be_is_a_sentence(sqlite):
    with pytest.raises(BulkError, match="there is no bundle of a model 'none'"):
        await recalibrated(sqlite, Wanted("none"))
    with pytest.raises(BulkError, match="compute the same feature space"):
        await recalibrated(sqlite, Wanted("tiny", from_version=2))
    with pytest.raises(BulkError, match="a SQLite store is written by one process: leave --ray out"):
        bulk.run_bulk(sqlite, Wanted("tiny"), ray=True, ray_address=None)
    done = CliRunner().invoke(command, ["recalibrate", "--model", "tiny", "--ray"])
    assert done.exit_code == 2
    assert "give --store" in done.output


def test_nodes_that_only_move_users_need_no_torch():
    code = "import sys, service.commands.bulk; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
