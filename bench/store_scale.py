"""Many users in one PostgreSQL, several services on it: hits, latency, bytes a user, what the store does for a request.

`python bench/store_scale.py --users 1000000 --out docs/benchmarks/store-scale.json` starts a PostgreSQL of its own,
fills it by COPY, and for each distribution of users starts the services anew, warms them up and measures. Load,
services and store share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np

from bench import protocols
from bench.bundles import Case, case, models_folder
from bench.heads import head, user_name
from bench.load import Body, wrk
from bench.machine import describe
from bench.processes import cost
from models.heads.head import Head
from service.commands.process import RunningService, running_service
from service.personal.records import head_to_bytes
from service.personal.store import Store
from tests.postgres import Postgres, postgres

CHUNK = 5000
OWNER = ("tenant", "model", "feature_space", "user")
COLUMNS = {
    "users": (*OWNER, "active", "base", "last", "created", "updated", "revision"),
    "versions": (*OWNER, "version", "calibration_id", "created", "head", "digest", "statistics", "report"),
    "activations": (*OWNER, "version", "at"),
}


async def fill(url: str, model: Case, count: int) -> None:
    """Write so many calibrated users, each with a head of their own and no statistics."""
    await (await Store.open(url)).close()
    connection = await asyncpg.connect(url)
    for first in range(0, count, CHUNK):
        rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in COLUMNS}
        for i, blob in _blobs(model, range(first, min(count, first + CHUNK))):
            owner = (model.scope.tenant, model.scope.model, model.scope.feature_space, user_name(i))
            digest = hashlib.sha256(blob).hexdigest()
            rows["users"].append((*owner, 1, 1, 1, 0.0, 0.0, 1))
            rows["versions"].append((*owner, 1, f"bench-{i}", 0.0, blob, digest, None, "{}"))
            rows["activations"].append((*owner, 1, 0.0))
        for name, columns in COLUMNS.items():
            await connection.copy_records_to_table(name, records=rows[name], columns=columns)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


def _blobs(model: Case, users: range) -> Iterator[tuple[int, bytes]]:
    """Heads as they are stored; the bytes before the numbers are the same for all."""
    k, d = model.classes, model.dim
    sample = head_to_bytes(Head(np.zeros((k, d)), np.zeros(k)))
    begin = len(sample) - 4 * k * (d + 1)
    assert head_to_bytes(head(users[0], k, d))[:begin] == sample[:begin]
    values = np.random.default_rng([7, users[0]]).standard_normal((len(users), k * (d + 1)), np.float32)
    for i, row in zip(users, values, strict=True):
        yield i, sample[:begin] + row.tobytes()


async def sizes(url: str, count: int) -> dict[str, float]:
    """Bytes a user of each table with its indexes."""
    connection = await asyncpg.connect(url)
    found = {
        name: await connection.fetchval("SELECT pg_total_relation_size($1::text::regclass)", name) for name in COLUMNS
    }
    await connection.close()
    return {name: size / count for name, size in found.items()}


async def counters(url: str) -> dict[str, int]:
    """What the store has done so far."""
    connection = await asyncpg.connect(url)
    row = await connection.fetchrow(
        "SELECT xact_commit, blks_read, blks_hit FROM pg_stat_database WHERE datname = current_database()"
    )
    await connection.close()
    return dict(row)


def looked_up(service: RunningService, model: str) -> dict[str, float]:
    """Hits and misses of a service's heads."""
    with urllib.request.urlopen(service.metrics_url, timeout=10) as answer:
        text = answer.read().decode()
    names = ("hits_total", "misses_total", "evictions_total")
    found = {n: re.search(rf'^headway_head_cache_{n}{{model="{model}"}} (\S+)', text, re.MULTILINE) for n in names}
    return {name: float(match[1]) if match else 0.0 for name, match in found.items()}


def measure(server: Postgres, url: str, model: Case, chosen: argparse.Namespace, *, zipf: bool) -> dict[str, Any]:
    """Start the services, warm them up, and measure them together."""
    body: Body = protocols.headway(model.name)["binary"].make(model, model.windows(1))
    path = protocols.headway(model.name)["binary"].path
    with ExitStack() as stack:
        options = ("--frontends", "1", "--threads", "1", "--resident-heads", str(chosen.resident))
        services = [
            stack.enter_context(running_service(models_folder(model.name), url, *options))
            for _ in range(chosen.services)
        ]

        def offered(seconds: float, seed: int) -> list[Any]:
            with ThreadPoolExecutor(len(services)) as pool:
                each = [
                    pool.submit(
                        wrk, s.url + path, body, connections=chosen.connections, seconds=seconds, users=chosen.users,
                        seed=seed + n, zipf=zipf,
                    )
                    for n, s in enumerate(services)
                ]  # fmt: skip
                return [future.result() for future in each]

        offered(chosen.warm, 1)
        before = [looked_up(s, model.name) for s in services]
        did, store_cpu = asyncio.run(counters(url)), cost(server.pid, memory=False).cpu
        loads = offered(chosen.seconds, 100)
        after = [looked_up(s, model.name) for s in services]
        done, store_cpu = asyncio.run(counters(url)), cost(server.pid, memory=False).cpu - store_cpu
        memory = [cost(s.pid).memory for s in services]
    counts = {name: sum(b[name] - a[name] for a, b in zip(before, after, strict=True)) for name in before[0]}
    answers = sum(load.requests for load in loads)
    return {
        "users_drawn": "zipf" if zipf else "uniform",
        "answers_a_second": answers / chosen.seconds,
        "refused": sum(load.refused for load in loads),
        "failed": sum(load.failed for load in loads),
        "hit_rate": 1 - counts["misses_total"] / max(1.0, counts["hits_total"] + counts["misses_total"]),
        "evictions_a_second": counts["evictions_total"] / chosen.seconds,
        "p50_ms": float(np.median([load.p50 for load in loads])) / 1e3,
        "p99_ms": max(load.p99 for load in loads) / 1e3,
        "store_transactions_a_second": (done["xact_commit"] - did["xact_commit"]) / chosen.seconds,
        "store_transactions_an_answer": (done["xact_commit"] - did["xact_commit"]) / max(1, answers),
        "store_blocks_read_an_answer": (done["blks_read"] - did["blks_read"]) / max(1, answers),
        "store_cpu_us_an_answer": 1e6 * store_cpu / max(1, answers),
        "memory_mib_a_service": [round(m / 2**20) for m in memory],
        "services": [load.as_dict() for load in loads],
    }


def main() -> None:
    """Fill, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--model", default="semg-myo")
    parser.add_argument("--services", type=int, default=3)
    parser.add_argument("--resident", type=int, default=100_000, help="heads in memory, a service")
    parser.add_argument("--connections", type=int, default=8, help="of the load, a service")
    parser.add_argument("--warm", type=float, default=40.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    model = case(chosen.model)
    with postgres() as server:
        url = server.database()
        begin = time.monotonic()
        asyncio.run(fill(url, model, chosen.users))
        result: dict[str, Any] = {
            "machine": describe(),
            "settings": {name: value for name, value in vars(chosen).items() if name != "out"},
            "fill_seconds": time.monotonic() - begin,
            "head_bytes": len(next(_blobs(model, range(1)))[1]),
            "bytes_a_user": asyncio.run(sizes(url, chosen.users)),
            "measured": [measure(server, url, model, chosen, zipf=zipf) for zipf in (True, False)],
        }
    text = json.dumps(result, indent=1)
    if chosen.out:
        chosen.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
