"""One server measured under wrk: its answers are checked first, then each load is a cell of the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.bundles import Case
from bench.heads import expected
from bench.launch import Contender, ContenderError, Endpoint
from bench.load import Body, post, wrk
from bench.processes import busy, cost, ended_children
from bench.protocols import Protocol
from service.engine.runtime import Runtime

CHECKED_USERS = 4
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Plan:
    """What a server is put under: kinds of bodies, connections, rows a request, seconds of warm-up and of each load."""

    bodies: Sequence[str]
    concurrency: Sequence[int]
    rows: Sequence[int]
    seconds: float
    warm_up: float


def cells(plan: Plan, model: Case, server: Contender, endpoint: Endpoint, count: int) -> list[dict[str, Any]]:
    """Measure a started server under every load of a plan, users 0 to `count` - 1 drawn uniformly."""
    found = []
    for kind, protocol in server.bodies(model).items():
        if kind not in plan.bodies:
            continue
        for rows in plan.rows:
            body, url = protocol.make(model, model.windows(rows)), endpoint.url + protocol.path
            check(model, protocol, url, body, rows, count)
            wrk(url, body, connections=max(plan.concurrency), seconds=plan.warm_up, users=count, seed=1)
            for connections in plan.concurrency:
                cell = loaded(endpoint, url, body, connections, plan.seconds, count)
                cell |= {"body": kind, "note": protocol.note, "rows": rows, "row_rate": rows * cell["rate"]}
                found.append(cell)
    return found


def loaded(endpoint: Endpoint, url: str, body: Body, connections: int, seconds: float, users: int) -> dict[str, Any]:
    """Put a server under one load and return what came of it and what it cost."""
    before, machine_before, client_before = cost(endpoint.pid, memory=False), busy(), ended_children()
    load = wrk(url, body, connections=connections, seconds=seconds, users=users, seed=2 + connections)
    all_busy, client = busy() - machine_before, ended_children() - client_before
    after = cost(endpoint.pid)
    server_cpu, requests = after.cpu - before.cpu, max(1, load.requests)
    return {
        "concurrency": connections, **load.as_dict(),
        "cpu_us": server_cpu * 1e6 / requests, "client_us": client * 1e6 / requests,
        "foreign_cores": max(0.0, (all_busy - client - server_cpu) / load.seconds),
        "memory": after.memory, "processes": after.processes,
    }  # fmt: skip


def check(model: Case, protocol: Protocol, url: str, body: Body, rows: int, count: int) -> None:
    """Refuse to time a server that answers something else than the user's own head would.

    Raises:
        ContenderError: an answer is not the expected one.
    """
    who = sorted({0, count - 1, *np.random.default_rng(0).integers(0, count, CHECKED_USERS).tolist()})
    features = Runtime(model.bundle.backbone).run(model.windows(rows))
    for user in who:
        answer = protocol.read(*post(url, body, user)).reshape(-1, model.classes)
        wanted = expected(features, [user] * rows, model.classes)
        error = float(np.abs(answer - wanted).max()) if answer.shape == wanted.shape else float("inf")
        if not error < TOLERANCE:
            raise ContenderError(f"{url} answers user {user} wrongly: off by {error:.2g}")


def shown(cell: dict[str, Any]) -> str:
    """Return a cell as a line of text."""
    beside = "" if cell["share"] is None else f", {cell['share']:.2f} of raw"
    bad = f", refused {cell['refused']}, failed {cell['failed']}" if cell["refused"] or cell["failed"] else ""
    rows = f"{cell['rows']} row{'s' * (cell['rows'] > 1)}"
    return (
        f"[{cell['round']}] {cell['model']} {cell['server']} {cell['note']}, {cell['users']} users, {rows}, "
        f"c={cell['concurrency']}: {cell['rate']:.0f}/s{beside}, p50 {cell['p50'] / 1e3:.2f} ms, "
        f"p99 {cell['p99'] / 1e3:.2f} ms, {cell['cpu_us']:.0f} CPU-µs, {cell['memory'] / 2**20:.0f} MiB{bad}"
    )
