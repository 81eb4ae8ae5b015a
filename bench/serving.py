"""Serving compared in one run, interleaved: raw ONNX Runtime, other servers, Headway. `make bench`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, raw, report
from bench.bundles import Case, case
from bench.contenders import CONTENDERS
from bench.launch import Contender, ContenderError, Endpoint
from bench.load import Body, LoadError, post, wrk
from bench.places import RESULTS
from bench.processes import busy, cost, ended_children
from bench.protocols import Protocol
from bench.users import expected
from service.commands.process import ServiceStartError
from service.engine.runtime import Runtime

CHECKED_USERS = 4
TOLERANCE = 1e-3
FAILURES = (ContenderError, LoadError, ServiceStartError, ValueError)


def main() -> None:
    """Run the comparison and write it to docs/benchmarks/serving.{json,md} and plots."""
    chosen = _arguments()
    results: dict[str, Any] = {"machine": machine.describe(), "options": _options(chosen), "raw": [], "cells": []}
    results |= {"failures": {}, "versions": {}}
    for number in range(chosen.rounds):
        for name in chosen.models:
            _round(chosen, results, case(name), number)
    print(report.table(results))


def _round(chosen: argparse.Namespace, results: dict[str, Any], model: Case, number: int) -> None:
    """Measure every server once, the raw limit before and after each: a shared machine changes within minutes."""
    with_raw = "raw" in chosen.servers
    limit = _raw(chosen, results, model, number) if with_raw else None
    for name in chosen.servers:
        if name == "raw":
            continue
        cells = _measure(chosen, results, model, CONTENDERS[name], number)
        if limit is not None:
            after = _raw(chosen, results, model, number)
            for cell in cells:
                cell["raw"] = (limit + after) / 2
                cell["share"] = cell["rate"] / cell["raw"]
            limit = after
        results["cells"] += cells
        for cell in cells:
            print(_line(cell), flush=True)
        if chosen.out is not None:
            report.write(results, chosen.out)


def _raw(chosen: argparse.Namespace, results: dict[str, Any], model: Case, number: int) -> float:
    rates = raw.rate(model, chosen.raw_seconds)
    results["raw"].append({"round": number, "model": model.name, "rates": rates})
    shown = ", ".join(f"batch {batch} {rate:.0f}" for batch, rate in rates.items())
    print(f"[{number}] {model.name} raw: {shown} rows/s", flush=True)
    return max(rates.values())


def _measure(
    chosen: argparse.Namespace, results: dict[str, Any], model: Case, server: Contender, number: int
) -> list[dict[str, Any]]:
    """Start a server for each number of users and measure it; what cannot be measured is noted with the reason."""
    cells: list[dict[str, Any]] = []
    for count in chosen.users:
        if count > server.most_users:
            continue
        labels = {"round": number, "model": model.name, "server": server.name, "users": count, "share": None}
        try:
            results["versions"][server.name] = {"setup": server.setup, **server.versions()}
            with server.start(model, count, chosen.workers) as endpoint:
                cells += [labels | cell for cell in _cells(chosen, model, server, endpoint, count)]
        except FAILURES as e:
            results["failures"][f"{server.name}, {model.name}, {count} users"] = str(e)
            print(f"[{number}] {server.name}, {model.name}: {e}", flush=True)
    return cells


def _cells(
    chosen: argparse.Namespace, model: Case, server: Contender, endpoint: Endpoint, count: int
) -> list[dict[str, Any]]:
    cells = []
    window = model.windows(1)[0]
    for kind, protocol in server.bodies(model).items():
        if kind not in chosen.bodies:
            continue
        body, url = protocol.make(model, window), endpoint.url + protocol.path
        _check(model, protocol, url, body, count)
        wrk(url, body, connections=max(chosen.concurrency), seconds=chosen.warm_up, users=count, seed=1)
        for connections in chosen.concurrency:
            before, machine_before, client_before = cost(endpoint.pid, memory=False), busy(), ended_children()
            load = wrk(url, body, connections=connections, seconds=chosen.seconds, users=count, seed=2 + connections)
            all_busy, client = busy() - machine_before, ended_children() - client_before
            after = cost(endpoint.pid)
            server_cpu = after.cpu - before.cpu
            cells.append({
                "body": kind, "note": protocol.note, "concurrency": connections, **load.as_dict(),
                "cpu_us": server_cpu * 1e6 / max(1, load.requests), "client_us": client * 1e6 / max(1, load.requests),
                "foreign_cores": max(0.0, (all_busy - client - server_cpu) / load.seconds),
                "memory": after.memory, "processes": after.processes,
            })  # fmt: skip
    return cells


def _check(model: Case, protocol: Protocol, url: str, body: Body, count: int) -> None:
    """Refuse to time a server that answers something else than the user's own head would.

    Raises:
        ContenderError: an answer is not the expected one.
    """
    who = sorted({0, count - 1, *np.random.default_rng(0).integers(0, count, CHECKED_USERS).tolist()})
    features = Runtime(model.bundle.backbone).run(model.windows(1))
    wanted = expected(np.repeat(features, len(who), 0), who, model.classes)
    for user, row in zip(who, wanted, strict=True):
        answer = protocol.read(*post(url, body, user))
        error = float(np.abs(answer[0] - row).max()) if answer.shape == (1, model.classes) else float("inf")
        if not error < TOLERANCE:
            raise ContenderError(f"{url} answers user {user} wrongly: off by {error:.2g}")


def _line(cell: dict[str, Any]) -> str:
    beside = "" if cell["share"] is None else f", {cell['share']:.2f} of raw"
    bad = f", refused {cell['refused']}, failed {cell['failed']}" if cell["refused"] or cell["failed"] else ""
    return (
        f"[{cell['round']}] {cell['model']} {cell['server']} {cell['note']}, {cell['users']} users, "
        f"c={cell['concurrency']}: {cell['rate']:.0f}/s{beside}, p50 {cell['p50'] / 1e3:.2f} ms, "
        f"p99 {cell['p99'] / 1e3:.2f} ms, {cell['cpu_us']:.0f} CPU-µs, {cell['memory'] / 2**20:.0f} MiB{bad}"
    )


def _arguments() -> argparse.Namespace:
    servers = ["raw", *CONTENDERS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=_names(servers), default=servers, help=f"of {','.join(servers)}")
    parser.add_argument("--models", type=_names(None), default=["fixed"], help="of fixed,semg-myo,lite0")
    parser.add_argument("--bodies", type=_names(["binary", "json"]), default=["binary", "json"], help="binary,json")
    parser.add_argument("--concurrency", type=_numbers, default=[1, 8, 64], help="connections")
    parser.add_argument("--users", type=_numbers, default=[1000], help="calibrated users, drawn uniformly")
    parser.add_argument("--seconds", type=float, default=4, help="of one measurement")
    parser.add_argument("--raw-seconds", type=float, default=1.0, help="of the raw session, a batch size")
    parser.add_argument("--warm-up", type=float, default=2, help="seconds of load before the measurements of a body")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="processes or instances that a server is given")
    parser.add_argument("--out", type=Path, help=f"write NAME.json, NAME.md and plots, e.g. {RESULTS / 'serving'}")
    return parser.parse_args()


def _names(known: list[str] | None) -> Any:
    def read(text: str) -> list[str]:
        found = [part.strip() for part in text.split(",") if part.strip()]
        for name in found:
            if known is not None and name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return found

    return read


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _options(chosen: argparse.Namespace) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(chosen).items()} | {
        "at": time.strftime("%FT%TZ", time.gmtime())
    }


if __name__ == "__main__":
    main()
