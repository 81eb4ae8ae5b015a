"""Serving compared in one run, interleaved: raw ONNX Runtime, other servers, Headway. `make bench`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from bench import machine, measure, raw, report
from bench.bundles import MAKERS, Case, case
from bench.contenders import CONTENDERS, with_frontends
from bench.launch import Contender, ContenderError
from bench.load import LoadError
from bench.measure import Plan
from bench.places import RESULTS
from service.commands.process import ServiceStartError

FAILURES = (ContenderError, LoadError, ServiceStartError, ValueError)


def main() -> None:
    """Run the comparison and write it to docs/benchmarks/serving.{json,md} and plots."""
    chosen = _arguments()
    servers = [server for name in chosen.servers for server in _servers(name, chosen.frontends)]
    compare(chosen, servers, {"title": "Serving compared", "command": "make bench"})


def compare(chosen: argparse.Namespace, servers: list[Contender], about: dict[str, str]) -> None:
    """Measure servers in rounds, print the table and write it; `about` is its title and command."""
    results: dict[str, Any] = {**about, "machine": machine.describe(), "options": _options(chosen), "raw": []}
    results |= {"cells": [], "failures": {}, "versions": {}}
    for number in range(chosen.rounds):
        for name in chosen.models:
            _round(chosen, results, case(name), servers, number)
    print(report.table(results))


def _servers(name: str, frontends: list[int]) -> list[Contender]:
    """Return the servers of a name: Headway is one for each number of front ends."""
    if name == "raw":
        return []
    return [with_frontends(n) for n in frontends] if name == "headway" and frontends else [CONTENDERS[name]]


def _round(
    chosen: argparse.Namespace, results: dict[str, Any], model: Case, servers: list[Contender], number: int
) -> None:
    """Measure every server once, the raw limit before and after each: a shared machine changes within minutes."""
    with_raw = "raw" in chosen.servers
    before = _raw(chosen, results, model, number) if with_raw else None
    for server in servers:
        cells = _measure(chosen, results, model, server, number)
        if before is not None:
            after = _raw(chosen, results, model, number)
            for cell in cells:
                cell["raw"] = (raw.limit(before, cell["rows"]) + raw.limit(after, cell["rows"])) / 2
                cell["share"] = cell["row_rate"] / cell["raw"]
            before = after
        results["cells"] += cells
        for cell in cells:
            print(measure.shown(cell), flush=True)
        if chosen.out is not None:
            report.write(results, chosen.out)


def _raw(chosen: argparse.Namespace, results: dict[str, Any], model: Case, number: int) -> dict[int, float]:
    rates = raw.rate(model, chosen.raw_seconds, raw.batches(chosen.rows))
    results["raw"].append({"round": number, "model": model.name, "rates": rates})
    shown = ", ".join(f"batch {batch} {rate:.0f}" for batch, rate in rates.items())
    print(f"[{number}] {model.name} raw: {shown} rows/s", flush=True)
    return rates


def _measure(
    chosen: argparse.Namespace, results: dict[str, Any], model: Case, server: Contender, number: int
) -> list[dict[str, Any]]:
    """Start a server for each number of users and measure it; what cannot be measured is noted with the reason."""
    cells: list[dict[str, Any]] = []
    plan = Plan(chosen.bodies, chosen.concurrency, chosen.rows, chosen.seconds, chosen.warm_up)
    for count in chosen.users:
        labels = {"round": number, "model": model.name, "server": server.name, "users": count, "share": None}
        try:
            if count > server.most_users:
                raise ContenderError(f"it is measured with {server.most_users} users at most")
            results["versions"][server.name] = {"setup": server.setup, **server.versions()}
            with server.start(model, count, chosen.workers) as endpoint:
                cells += [labels | cell for cell in measure.cells(plan, model, server, endpoint, count)]
        except FAILURES as e:
            results["failures"][f"{server.name}, {model.name}, {count} users"] = str(e)
            print(f"[{number}] {server.name}, {model.name}: {e}", flush=True)
    return cells


def _arguments() -> argparse.Namespace:
    servers = ["raw", *CONTENDERS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=one_of(servers), default=servers, help=f"of {','.join(servers)}")
    parser.add_argument("--bodies", type=one_of(["binary", "json"]), default=["binary", "json"], help="binary,json")
    parser.add_argument("--rows", type=_numbers, default=[1], help="windows of a request, all of one user")
    parser.add_argument(
        "--frontends", type=_numbers, default=[], help="of Headway, e.g. 1,2; by default what it chooses itself"
    )
    common_arguments(parser)
    return parser.parse_args()


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of every comparison."""
    parser.add_argument("--models", type=one_of(list(MAKERS)), default=["fixed"], help=f"of {','.join(MAKERS)}")
    parser.add_argument("--concurrency", type=_numbers, default=[1, 8, 64], help="connections")
    parser.add_argument("--users", type=_numbers, default=[1000], help="calibrated users, drawn uniformly")
    parser.add_argument("--seconds", type=float, default=4, help="of one measurement")
    parser.add_argument("--raw-seconds", type=float, default=1.0, help="of the raw session, a batch size")
    parser.add_argument("--warm-up", type=float, default=2, help="seconds of load before the measurements of a body")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="processes or instances that a server is given")
    parser.add_argument("--out", type=Path, help=f"write NAME.json, NAME.md and plots, e.g. {RESULTS / 'serving'}")


def one_of(known: list[str]) -> Any:
    """Return what reads an option of names with commas between, all of them known."""

    def read(text: str) -> list[str]:
        found = [part.strip() for part in text.split(",") if part.strip()]
        for name in found:
            if name not in known:
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
