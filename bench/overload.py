"""Overload: three times what Headway can do, for a minute. What is accepted must be answered soon, the rest refused."""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, protocols
from bench.bundles import Case, case
from bench.heads import user_name
from bench.launch import headway
from bench.load import Body
from bench.open_loop import Answer, Connections, offer
from bench.places import RESULTS
from bench.processes import cost

ROWS = 64
"""Rows of a request, of as many users: rows are what costs, and one client must offer three times too many."""
CLOSED_LOOP = 8
RECOVERY_SECONDS = 10.0


def main() -> None:
    """Run the overload and print and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fixed")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    parser.add_argument("--factor", type=float, default=3.0, help="of the capacity that is offered")
    parser.add_argument("--queue-rows", type=int, help="`headway serve --queue-rows`; by default Headway's own")
    parser.add_argument("--out", type=Path, default=RESULTS / "serving-overload.json")
    chosen = parser.parse_args()
    model = case(chosen.model)
    options = () if chosen.queue_rows is None else ("--queue-rows", str(chosen.queue_rows))
    with headway(model, chosen.users, options=options) as service:
        found = asyncio.run(_measure(model, service.url, service.pid, chosen))
    found |= {"machine": machine.describe(), "model": model.name, "users": chosen.users, "rows_a_request": ROWS}
    found |= {"seconds": chosen.seconds, "factor": chosen.factor}
    chosen.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({k: v for k, v in found.items() if k != "memory_mib"}, indent=1))


async def _measure(model: Case, url: str, pid: int, chosen: argparse.Namespace) -> dict[str, Any]:
    path = f"/v2/models/{model.name}/infer"
    bodies = _bodies(model, chosen.users)
    capacity, usual = await _capacity(url, path, bodies)
    memory: list[list[float]] = []
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(pid, memory, stop), daemon=True)
    watcher.start()
    before = cost(pid).memory
    answers = await offer(url, path, bodies, chosen.factor * capacity, chosen.seconds)
    recovery = await _recovery(url, path, bodies[0], usual)
    stop.set()
    watcher.join()
    kinds = {s: [a for a in answers if a.status == s] for s in sorted({a.status for a in answers})}
    whole = max(a.at + a.seconds for a in answers)
    return {
        "capacity_rows_s": capacity * ROWS,
        "offered_rows_s": len(answers) * ROWS / chosen.seconds,
        "goodput_rows_s": len(kinds.get(200, ())) * ROWS / whole,
        "goodput_of_capacity": len(kinds.get(200, ())) / whole / capacity,
        "answers": {str(s): len(a) for s, a in kinds.items()},
        "accepted_ms": _quantiles(kinds.get(200, [])),
        "refused_ms": _quantiles(kinds.get(429, [])),
        "unloaded_ms": usual * 1e3,
        "recovered_after_s": recovery,
        "memory_before_mib": before / 2**20,
        "memory_most_mib": max(m for _, m in memory),
        "memory_mib": memory,
    }


def _bodies(model: Case, count: int) -> list[Body]:
    windows, rng = model.windows(ROWS), np.random.default_rng(0)
    draws = [rng.integers(0, count, ROWS).tolist() for _ in range(32)]
    return [protocols.headway_rows(model, windows, [user_name(i) for i in users]) for users in draws]


async def _capacity(url: str, path: str, bodies: list[Body], seconds: float = 8.0) -> tuple[float, float]:
    """Return requests a second of a closed loop that keeps the server busy, and the seconds of one request alone."""
    connections, done = Connections(url), 0
    alone = []
    for body in bodies:
        start = time.perf_counter()
        await connections.post(path, body.filled(0), body.headers)
        alone.append(time.perf_counter() - start)
    end = time.perf_counter() + seconds

    async def loop(offset: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            body = bodies[(done + offset) % len(bodies)]
            status, _ = await connections.post(path, body.filled(0), body.headers)
            done += status == 200

    await asyncio.gather(*(loop(i) for i in range(CLOSED_LOOP)))
    connections.close()
    return done / seconds, float(np.median(alone))


async def _recovery(url: str, path: str, body: Body, usual: float) -> float | None:
    """Return seconds from the last answer until one alone takes at most twice the usual time; None: it never did."""
    connections, start = Connections(url), time.perf_counter()
    while (now := time.perf_counter()) - start < RECOVERY_SECONDS:
        status, _ = await connections.post(path, body.filled(0), body.headers)
        if status == 200 and time.perf_counter() - now <= 2 * usual:
            connections.close()
            return time.perf_counter() - start
        await asyncio.sleep(0.02)
    return None


def _watch(pid: int, memory: list[list[float]], stop: threading.Event) -> None:
    start = time.monotonic()
    while True:
        memory.append([round(time.monotonic() - start, 1), cost(pid).memory / 2**20])
        if stop.wait(1.0):
            return


def _quantiles(answers: list[Answer]) -> dict[str, float]:
    if not answers:
        return {}
    values = np.array([a.seconds for a in answers]) * 1e3
    return {name: float(np.quantile(values, q)) for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}


if __name__ == "__main__":
    main()
