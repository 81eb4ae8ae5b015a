"""Overload: three times what Headway can do, for a minute. What is accepted must be answered soon, the rest refused.

The client shares the server's cores. It is given a higher priority, if it may have one, so that latencies are the
server's: a client elsewhere would not wait for a core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench import machine, protocols, targets
from bench.bundles import Case, case
from bench.heads import user_name
from bench.launch import headway
from bench.load import Body
from bench.open_loop import Answer, Connections, offer
from bench.places import RESULTS
from bench.processes import cost
from bench.targets import Target
from service.config import Settings

BODY_BYTES = 128 * 1024
"""About what a request may hold: rows are what costs, and one client must offer three times too many."""
MOST_ROWS = 64
IN_FLIGHT = (4, 16, 64)
"""Requests under way in the closed loops of which the best is the peak."""
PEAK_SECONDS = 4.0
SETTLE_SECONDS = 0.5
"""In which a server notices that connections were closed, before new ones are opened."""
RECOVERY_SECONDS = 10.0

GOODPUT = {"lite0": 0.9}
SMALL_GOODPUT = 0.6
"""Least share of the peak: refusing costs as much as serving where the model is small."""
REFUSED_MS, RECOVERED_S, GROWTH_MIB = 10.0, 1.0, 24.0
QUEUE_SLACK = 1.25
"""Of the time in which a full queue is served at the rate that was measured."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that a closed loop gets: requests a second, processor seconds of the server a request."""

    rate: float
    cpu: float
    in_flight: int


def main() -> None:
    """Run the overload, print it against the targets and write it; exit status 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fixed", help="fixed, semg-myo or lite0")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    parser.add_argument("--factor", type=float, default=3.0, help="of the peak that is offered")
    parser.add_argument("--rows", type=int, help=f"of a request; by default as many as fit, {MOST_ROWS} at most")
    parser.add_argument("--queue-rows", type=int, help="`headway serve --queue-rows`; by default Headway's own")
    parser.add_argument("--frontends", type=int, help="of Headway; by default what it chooses itself")
    parser.add_argument("--out", type=Path, help="by default docs/benchmarks/overload-MODEL.json")
    chosen = parser.parse_args()
    model = case(chosen.model)
    rows = chosen.rows or max(1, min(MOST_ROWS, BODY_BYTES // model.windows(1).nbytes))
    options = () if chosen.queue_rows is None else ("--queue-rows", str(chosen.queue_rows))
    with headway(model, chosen.users, options=options, frontends=chosen.frontends) as service:
        niceness = _go_first()
        found = uvloop.run(_measure(model, service.url, service.pid, rows, chosen))
    queue = chosen.queue_rows or int(Settings.model_fields["queue_rows"].default)
    found |= {"machine": machine.describe(), "model": model.name, "users": chosen.users, "rows_a_request": rows}
    found |= {"seconds": chosen.seconds, "factor": chosen.factor, "frontends": chosen.frontends, "queue_rows": queue}
    found |= {"answering_processes": service.answering, "client_niceness": niceness}
    judged = _targets(found)
    targets.write(chosen.out or RESULTS / f"overload-{model.name}.json", found, judged)
    sys.exit(1 if targets.missed(judged) else 0)


def _go_first() -> int:
    """Raise the priority of this process, and not of the server, which has been started; returns its niceness."""
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    return os.nice(0)


async def _measure(model: Case, url: str, pid: int, rows: int, chosen: argparse.Namespace) -> dict[str, Any]:
    path, bodies = f"/v2/models/{model.name}/infer", _bodies(model, chosen.users, rows)
    usual = await _alone(url, path, bodies)
    peak = max([await _peak(url, path, bodies, pid, n) for n in IN_FLIGHT], key=lambda p: p.rate)
    print(f"peak {peak.rate * rows:.0f} rows/s with {peak.in_flight} in flight, {usual * 1e3:.1f} ms alone", flush=True)
    memory: list[list[float]] = []
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(pid, memory, stop), daemon=True)
    watcher.start()
    before, client_before = cost(pid), time.process_time()
    offering = asyncio.create_task(_cores(pid, chosen.seconds))
    answers, late = await offer(url, path, bodies, chosen.factor * peak.rate, chosen.seconds)
    used, client = cost(pid).cpu - before.cpu, time.process_time() - client_before
    recovered = await _recovery(url, path, bodies[0], usual)
    stop.set()
    watcher.join()
    await asyncio.sleep(SETTLE_SECONDS)
    later = await _peak(url, path, bodies, pid, peak.in_flight)
    kinds = {s: [a for a in answers if a.status == s] for s in sorted({a.status for a in answers})}
    accepted, refused = kinds.get(200, []), kinds.get(429, [])
    in_time = sum(a.at + a.seconds <= chosen.seconds for a in accepted)
    best = (peak.rate + later.rate) / 2
    goodput = in_time / chosen.seconds
    return {
        "peak_rows_s": best * rows,
        "peak_before_and_after_rows_s": [peak.rate * rows, later.rate * rows],
        "offered_rows_s": len(answers) * rows / chosen.seconds,
        "offered_of_peak": len(answers) / chosen.seconds / best,
        "goodput_rows_s": goodput * rows,
        "goodput_of_peak": goodput / best,
        "answers": {str(s): len(a) for s, a in kinds.items()},
        "accepted_ms": _quantiles(accepted),
        "refused_ms": _quantiles(refused),
        "client_late_ms": {"p50": 1e3 * float(np.median(late)), "p99": 1e3 * float(np.quantile(late, 0.99))},
        "cpu_ms_a_request": peak.cpu * 1e3,
        "cpu_ms_a_refusal": (used - len(accepted) * peak.cpu) * 1e3 / len(refused) if refused else None,
        "server_cores_while_offered": await offering,
        "client_cores_while_offered": client / chosen.seconds,
        "unloaded_ms": usual * 1e3,
        "drained_after_s": max(a.at + a.seconds for a in answers) - chosen.seconds,
        "recovered_after_s": recovered,
        "memory_before_mib": before.memory / 2**20,
        "memory_most_mib": max(m for _, m in memory),
        "memory_growth_mib": _growth([m for at, m in memory if at <= chosen.seconds]),
        "memory_mib": memory,
    }


def _targets(found: dict[str, Any]) -> list[Target]:
    least = GOODPUT.get(found["model"], SMALL_GOODPUT)
    goodput, refused, accepted = found["goodput_of_peak"], found["refused_ms"], found["accepted_ms"]
    # Every process that answers has a queue of its own.
    rows = found["queue_rows"] * found["answering_processes"]
    bound = QUEUE_SLACK * 1e3 * rows / found["goodput_rows_s"] if found["goodput_rows_s"] else 0.0
    recovered, growth = found["recovered_after_s"], found["memory_growth_mib"]
    others = sum(n for status, n in found["answers"].items() if status not in ("200", "429"))
    refusal, late = found["cpu_ms_a_refusal"], found["client_late_ms"]["p99"]
    costs = "" if refusal is None else f"; CPU {found['cpu_ms_a_request']:.2f} ms a request, {refusal:.2f} a refusal"
    offered = f"{found['offered_of_peak']:.2f} × peak"
    long_enough = found["seconds"] >= 20
    return [
        Target("offered", f"{found['factor']} × peak", offered, found["offered_of_peak"] >= 0.9 * found["factor"]),
        Target("goodput of peak", f"≥ {least}", f"{goodput:.2f}{costs}", goodput >= least),
        _at_most("refused, p99", refused.get("p99"), REFUSED_MS, "ms", f"; client late by {late:.1f}"),
        _at_most("accepted, p99: bound of the queue", accepted.get("p99"), bound, "ms"),
        Target("neither answered nor refused", "0", str(others), others == 0),
        Target(
            "memory, last quarter against second",
            f"< {GROWTH_MIB:.0f} MiB",
            f"{growth:+.1f} MiB; {found['memory_before_mib']:.0f} before, {found['memory_most_mib']:.0f} at most",
            growth < GROWTH_MIB if long_enough else None,
        ),
        _at_most("recovery after the last answer", recovered, RECOVERED_S, "s"),
    ]


def _at_most(name: str, value: float | None, most: float, unit: str, more: str = "") -> Target:
    measured = "none" if value is None else f"{value:.2f} {unit}{more}"
    return Target(name, f"≤ {most:.4g} {unit}", measured, value is not None and value <= most)


async def _cores(pid: int, seconds: float) -> float:
    """Return how many cores the server keeps busy in so many seconds from now."""
    before, start = cost(pid, memory=False).cpu, time.perf_counter()
    await asyncio.sleep(seconds)
    return (cost(pid, memory=False).cpu - before) / (time.perf_counter() - start)


def _bodies(model: Case, count: int, rows: int) -> list[Body]:
    windows, rng = model.windows(rows), np.random.default_rng(0)
    draws = [rng.integers(0, count, rows).tolist() for _ in range(32)]
    return [protocols.headway_rows(model, windows, [user_name(i) for i in users]) for users in draws]


async def _alone(url: str, path: str, bodies: list[Body]) -> float:
    """Return the seconds of one request alone."""
    connections, seconds = Connections(url), []
    for body in bodies:
        start = time.perf_counter()
        await connections.post(path, body.filled(0), body.headers)
        seconds.append(time.perf_counter() - start)
    connections.close()
    return float(np.median(seconds))


async def _peak(url: str, path: str, bodies: list[Body], pid: int, in_flight: int) -> Peak:
    """Keep so many requests under way for a while, by the client that offers the overload too."""
    connections, done, sent = Connections(url), 0, 0
    before, start = cost(pid, memory=False).cpu, time.perf_counter()
    end = start + PEAK_SECONDS

    async def loop() -> None:
        nonlocal done, sent
        while time.perf_counter() < end:
            sent += 1
            body = bodies[sent % len(bodies)]
            status, _ = await connections.post(path, body.filled(0), body.headers)
            done += status == 200

    await asyncio.gather(*(loop() for _ in range(in_flight)))
    seconds = time.perf_counter() - start
    used = cost(pid, memory=False).cpu - before
    connections.close()
    await asyncio.sleep(SETTLE_SECONDS)
    return Peak(done / seconds, used / max(1, done), in_flight)


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


def _growth(mib: list[float]) -> float:
    """Return how much more the last quarter of the overload held than its second: the queue fills in the first."""
    quarter = max(1, len(mib) // 4)
    return float(np.median(mib[-quarter:]) - np.median(mib[quarter : 2 * quarter]))


def _quantiles(answers: list[Answer]) -> dict[str, float]:
    if not answers:
        return {}
    values = np.array([a.seconds for a in answers]) * 1e3
    return {name: float(np.quantile(values, q)) for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}


if __name__ == "__main__":
    main()
