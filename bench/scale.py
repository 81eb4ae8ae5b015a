"""A million users in PostgreSQL behind several replicas: hit rate, latency, bytes a user, load on the store.

`python -m bench.scale` starts PostgreSQL itself; with `--store URL` it takes one, and fills it if it holds no users.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import asyncpg
import httpx
import numpy as np
import orjson
from prometheus_client.parser import text_string_to_metric_families

from bench import heads, machine, measure, targets
from bench.bundles import Case, case, models_folder
from bench.load import Body, wrk
from bench.places import RESULTS
from bench.processes import cost
from bench.protocols import Protocol, headway
from bench.targets import Target
from service.commands.process import RunningService, running_service
from service.personal.records import head_to_bytes
from service.personal.store import Store
from tests.postgres import postgres

CHUNK = 5_000
OF_A_USER = ("tenant", "model", "feature_space", "user")
THROUGHPUT = 0.95
"""Of 100,000 hot users among all that are stored, against one: the least share of the answers a second."""
WARM_UP_SECONDS = 3.0
CALIBRATIONS_AT_ONCE = 12


@dataclass(frozen=True, slots=True)
class Access:
    """How users are drawn: of so many, `uniform` or by `zipf`; `everyone` of them is asked for once before."""

    name: str
    users: int
    draw: str = "uniform"
    touched: bool = False


def main() -> None:
    """Fill, serve, measure, and write the figures; exit status 1 if a target is missed."""
    chosen = _arguments()
    model = case("semg-myo")
    with ExitStack() as stack:
        url = chosen.store or stack.enter_context(_own_postgres())
        found: dict[str, Any] = {
            "machine": machine.describe(),
            "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(chosen).items() if k != "store"},
            "at": time.strftime("%FT%TZ", time.gmtime()),
            "filled": asyncio.run(_fill(url, model, chosen.users)),
        }
        print(f"store: {found['filled']}", flush=True)
        replicas = [stack.enter_context(_replica(model, url, chosen)) for _ in range(chosen.replicas)]
        protocol = headway(model.name)["binary"]
        for replica in replicas:
            body = protocol.make(model, model.windows(1))
            measure.check(model, protocol, replica.url + protocol.path, body, 1, chosen.users)
        accesses = [
            Access("one user", 1),
            Access(f"{chosen.hot:,} hot users", chosen.hot, touched=True),
            Access(f"{chosen.users:,} users, Zipf", chosen.users, "zipf"),
            Access(f"{chosen.users:,} users, uniform", chosen.users),
        ]
        for access in accesses:
            _warm(access, replicas, model, protocol)
        found["cells"] = _cells(accesses, replicas, url, model, protocol, chosen)
        found["calibrations"] = asyncio.run(_calibrations(replicas, url, model, chosen.seconds))
        print(found["calibrations"], flush=True)
        found["memory"] = [cost(replica.pid).memory for replica in replicas]
    judged = _targets(found["cells"], accesses)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.with_suffix(".md").write_text(_report(found, accesses, judged))
    targets.write(chosen.out.with_suffix(".json"), found, judged)
    sys.exit(1 if targets.missed(judged) else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000, help="stored, each with one head")
    parser.add_argument("--hot", type=int, default=100_000, help="of them, asked for in one of the measurements")
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--resident", type=int, default=200_000, help="heads that a replica keeps in memory")
    parser.add_argument("--connections", type=int, default=16, help="to each replica")
    parser.add_argument("--seconds", type=float, default=10, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", help="URL of a PostgreSQL database; by default a server is started for the run")
    parser.add_argument("--out", type=Path, default=RESULTS / "scale", help="write NAME.json and NAME.md")
    return parser.parse_args()


@contextmanager
def _own_postgres() -> Iterator[str]:
    with postgres() as server:
        yield server.database()


@contextmanager
def _replica(model: Case, url: str, chosen: argparse.Namespace) -> Iterator[RunningService]:
    options = ("--store", url, "--frontends", "1", "--resident-heads", str(chosen.resident))
    with (
        tempfile.TemporaryDirectory(prefix="headway-replica-") as folder,
        running_service(models_folder(model.name), Path(folder), *options) as service,
    ):
        yield service


async def _fill(url: str, model: Case, count: int) -> dict[str, Any]:
    """Write users with one version each, by COPY; returns what they take."""
    await (await Store.open(url)).close()
    connection = await asyncpg.connect(_plain(url))
    begin = time.monotonic()
    try:
        await connection.execute("SET synchronous_commit = off")
        there = await connection.fetchval("SELECT count(*) FROM users")
        for first in range(there, count, CHUNK):
            await _copy(connection, model, range(first, min(first + CHUNK, count)))
        await connection.execute("VACUUM ANALYZE")
        tables = await connection.fetch(
            "SELECT relname AS name, pg_total_relation_size(relid) AS bytes FROM pg_stat_user_tables"
        )
        stored = await connection.fetchval("SELECT count(*) FROM users")
    finally:
        await connection.close()
    sizes = {row["name"]: int(row["bytes"]) for row in tables}
    return {
        "users": stored,
        "seconds": round(time.monotonic() - begin, 1),
        "tables": sizes,
        "bytes_a_user": round(sum(sizes.values()) / stored),
        "bytes_a_head": len(head_to_bytes(heads.head(0, model.classes, model.dim))),
    }


async def _copy(connection: Any, model: Case, chunk: range) -> None:
    scope = (model.scope.tenant, model.scope.model, model.scope.feature_space)
    owners = [(*scope, heads.user_name(i)) for i in chunk]
    blobs = [head_to_bytes(heads.head(i, model.classes, model.dim)) for i in chunk]
    tables: dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]] = {
        "users": (("active", "base", "last", "created", "updated"), [(*o, 1, 1, 1, 0.0, 0.0) for o in owners]),
        "versions": (
            ("version", "calibration_id", "created", "head", "digest", "report"),
            [
                (*owner, 1, f"bench-{i}", 0.0, blob, hashlib.sha256(blob).hexdigest(), "{}")
                for i, owner, blob in zip(chunk, owners, blobs, strict=True)
            ],
        ),
        "activations": (("version", "at"), [(*o, 1, 0.0) for o in owners]),
    }
    for table, (columns, records) in tables.items():
        await connection.copy_records_to_table(table, records=records, columns=[*OF_A_USER, *columns])


def _plain(url: str) -> str:
    return url.replace("postgresql+asyncpg://", "postgresql://")


def _warm(access: Access, replicas: Sequence[RunningService], model: Case, protocol: Protocol) -> None:
    """Bring a replica's heads into memory as the load would have."""
    if access.touched:
        from bench.launch import touch

        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(touch, model, r.url, r.pid, access.users, 1) for r in replicas]:
                done.result()


def _cells(
    accesses: Sequence[Access],
    replicas: Sequence[RunningService],
    url: str,
    model: Case,
    protocol: Protocol,
    chosen: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Measure all ways of access in turns; every other round goes backwards."""
    cells = []
    body = protocol.make(model, model.windows(1))
    for number in range(chosen.rounds):
        for access in accesses if number % 2 else accesses[::-1]:
            if access.touched:
                _warm(access, replicas, model, protocol)
            _loads(access, replicas, protocol, body, chosen.connections, WARM_UP_SECONDS, 7)
            cell = {"round": number, "access": access.name}
            cell |= _measured(access, replicas, url, protocol, body, chosen, number)
            cells.append(cell)
            print(_line(cell), flush=True)
    return cells


def _measured(
    access: Access,
    replicas: Sequence[RunningService],
    url: str,
    protocol: Protocol,
    body: Body,
    chosen: argparse.Namespace,
    seed: int,
) -> dict[str, Any]:
    cache, store = [_cache(r) for r in replicas], asyncio.run(_store_counts(url))
    cpu = [cost(r.pid, memory=False).cpu for r in replicas]
    loads = _loads(access, replicas, protocol, body, chosen.connections, chosen.seconds, seed)
    after, store_after = [_cache(r) for r in replicas], asyncio.run(_store_counts(url))
    used = sum(cost(r.pid, memory=False).cpu for r in replicas) - sum(cpu)
    hits, misses = (sum(b[i] - a[i] for a, b in zip(cache, after, strict=True)) for i in (0, 1))
    requests, seconds = sum(load.requests for load in loads), statistics.mean(load.seconds for load in loads)
    return {
        "rate": sum(load.rate for load in loads),
        "p50": statistics.median(load.p50 for load in loads),
        "p99": max(load.p99 for load in loads),
        "bad": sum(load.refused + load.failed for load in loads),
        "hit_rate": hits / max(1.0, hits + misses),
        "cpu_us": used * 1e6 / max(1, requests),
        **{name: (store_after[name] - store[name]) / seconds for name in store},
    }


def _loads(
    access: Access,
    replicas: Sequence[RunningService],
    protocol: Protocol,
    body: Body,
    connections: int,
    seconds: float,
    seed: int,
) -> list[Any]:
    """Put all replicas under load at once, a client each."""

    def one(number: int) -> Any:
        where = replicas[number].url + protocol.path
        return wrk(
            where, body, connections=connections, seconds=seconds, users=access.users,
            seed=1000 * seed + number, draw=access.draw,
        )  # fmt: skip

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, range(len(replicas))))


def _cache(replica: RunningService) -> tuple[float, float]:
    """Look-ups of heads so far that found them in memory, and that did not."""
    with urlopen(replica.metrics_url, timeout=10) as answer:
        text = answer.read().decode()
    found = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    return found["headway_head_cache_hits_total"], found["headway_head_cache_misses_total"]


async def _store_counts(url: str) -> dict[str, float]:
    """Transactions, rows and pages of the database so far, and its processor time in seconds."""
    connection = await asyncpg.connect(_plain(url))
    try:
        await connection.execute("SELECT pg_stat_clear_snapshot()")
        row = await connection.fetchrow(
            "SELECT xact_commit AS transactions, tup_fetched AS rows, blks_read AS pages_read, blks_hit AS pages_hit "
            "FROM pg_stat_database WHERE datname = current_database()"
        )
    finally:
        await connection.close()
    return {name: float(value) for name, value in row.items()}


async def _calibrations(replicas: Sequence[RunningService], url: str, model: Case, seconds: float) -> dict[str, Any]:
    """Calibrate new users, five windows a class each, at every replica as fast as it answers."""
    labels = [label for label in model.bundle.manifest.labels for _ in range(5)]
    windows = model.windows(len(labels))
    tensor = {
        "name": "input", "datatype": "FP32", "shape": list(windows.shape),
        "parameters": {"binary_data_size": windows.nbytes},
    }  # fmt: skip
    text = orjson.dumps({"labels": labels, "inputs": [tensor], "activate": "always"})
    content = text + windows.tobytes()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    stages: list[dict[str, float]] = []
    taken: list[float] = []
    refused = 0

    async def client(number: int, http: httpx.AsyncClient, until: float) -> None:
        nonlocal refused
        replica = replicas[number % len(replicas)]
        count = 0
        while time.monotonic() < until:
            user = f"c{os.getpid()}-{number}-{count}"
            count += 1
            begin = time.monotonic()
            answer = await http.post(
                f"{replica.url}/v2/models/{model.name}/users/{user}/calibrations", content=content, headers=headers
            )
            if answer.status_code != 201:
                refused += 1
                continue
            taken.append(time.monotonic() - begin)
            stages.append(answer.json()["timings_ms"])

    begin, before = time.monotonic(), await _store_counts(url)
    async with httpx.AsyncClient(timeout=60) as http:
        await asyncio.gather(*(client(n, http, begin + seconds) for n in range(CALIBRATIONS_AT_ONCE)))
    lasted, after = time.monotonic() - begin, await _store_counts(url)
    return {
        "rate": len(taken) / lasted,
        "p50_ms": 1e3 * float(np.median(taken)),
        "p99_ms": 1e3 * float(np.quantile(taken, 0.99)),
        "refused": refused,
        "stages_ms": {name: float(np.median([s[name] for s in stages])) for name in stages[0]},
        "transactions_each": (after["transactions"] - before["transactions"]) / max(1, len(taken)),
    }


def _line(cell: dict[str, Any]) -> str:
    return (
        f"[{cell['round']}] {cell['access']}: {cell['rate']:.0f}/s, hits {cell['hit_rate']:.1%}, "
        f"p50 {cell['p50'] / 1e3:.2f} ms, p99 {cell['p99'] / 1e3:.2f} ms, {cell['cpu_us']:.0f} CPU-µs, "
        f"store: {cell['transactions']:.0f} transactions/s, {cell['rows']:.0f} rows/s, bad {cell['bad']}"
    )


def _targets(cells: list[dict[str, Any]], accesses: Sequence[Access]) -> list[Target]:
    at = {(cell["round"], cell["access"]): cell for cell in cells}
    rounds = sorted({number for number, _ in at})
    one, hot = accesses[0].name, accesses[1].name
    ratios = [at[r, hot]["rate"] / at[r, one]["rate"] for r in rounds]
    share = statistics.median(ratios)
    return [
        Target(
            f"{hot} against one: answers/s",
            f"≥ {THROUGHPUT}",
            f"{share:.3f} ({min(ratios):.2f} to {max(ratios):.2f})",
            share >= THROUGHPUT,
        ),
        Target("requests refused or failed", "0", str(sum(c["bad"] for c in cells)), not any(c["bad"] for c in cells)),
    ]


def _report(found: dict[str, Any], accesses: Sequence[Access], judged: Sequence[Target]) -> str:
    where, options, filled, made = found["machine"], found["options"], found["filled"], found["calibrations"]
    lines = ["# A million users behind replicas" if options["users"] == 10**6 else "# Many users behind replicas", ""]
    lines.append(
        f"`python -m bench.scale`, {found['at']}, commit {where['commit'][:12]}: {where['processor']}, "
        f"{where['cores']} cores, which {options['replicas']} replicas (one process each, "
        f"{options['resident']:,} heads in memory), "
        f"PostgreSQL and a load client for each replica share. Bundle semg-myo, one window a request, binary, "
        f"{options['connections']} connections a replica, {options['rounds']} rounds of {options['seconds']:g} s; "
        "medians."
    )
    lines += ["", targets.table(judged)]
    lines += ["| users drawn | answers/s | hits | p50 ms | p99 ms | CPU-µs | store: transactions/s | rows/s |"]
    lines.append("|--|" + "--:|" * 7)
    for access in accesses:
        cells = [c for c in found["cells"] if c["access"] == access.name]
        m = {f: statistics.median(c[f] for c in cells) for f in cells[0] if f not in ("round", "access")}
        lines.append(
            f"| {access.name} | {m['rate']:,.0f} | {m['hit_rate']:.1%} | {m['p50'] / 1e3:.2f} | {m['p99'] / 1e3:.2f} "
            f"| {m['cpu_us']:.0f} | {m['transactions']:,.0f} | {m['rows']:,.0f} |"
        )
    sizes = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in sorted(filled["tables"].items()))
    stages = ", ".join(f"{name} {value:.1f}" for name, value in made["stages_ms"].items())
    lines += [
        "",
        f"{filled['users']:,} users take {filled['bytes_a_user']:,} bytes each in PostgreSQL, with indices and without "
        f"statistics ({sizes}); a head is {filled['bytes_a_head']:,} bytes.",
        "",
        f"Replicas at the end: {', '.join(f'{m / 2**20:,.0f}' for m in found['memory'])} MiB.",
        "",
        f"Calibrations of new users, five windows a class, {CALIBRATIONS_AT_ONCE} at once: {made['rate']:.0f}/s, "
        f"p50 {made['p50_ms']:.0f} ms, p99 {made['p99_ms']:.0f} ms, {made['refused']} refused; "
        f"{made['transactions_each']:.1f} transactions each. Server time of one, median ms: {stages}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
