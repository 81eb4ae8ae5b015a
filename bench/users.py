"""Many users against one, in one run, interleaved; beside them the naive way, a session a user."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import machine, measure, targets
from bench.bundles import Case, case
from bench.contenders import CONTENDERS
from bench.launch import Contender, Endpoint, headway
from bench.load import Body, wrk
from bench.places import RESULTS
from bench.processes import cost
from bench.targets import Target

THROUGHPUT, TAIL = 0.95, 1.2
"""Of many users against one: the least share of the answers a second, and the most of the 99th percentile."""
SETTLE_SECONDS = 3.0
MET_A_SECOND = 2500
"""Users a second of load before measuring: a front end asks for a head when it first meets the user."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A server with so many users, and how it is started."""

    name: str
    server: Contender
    users: int
    start: Callable[[], AbstractContextManager[Endpoint]]

    def body(self, model: Case) -> tuple[str, Body]:
        """Return the path and the body of its binary requests, one window each."""
        protocol = self.server.bodies(model)["binary"]
        return protocol.path, protocol.make(model, model.windows(1))


def main() -> None:
    """Run the comparison, print it and write it; exit status 1 if a target is missed."""
    chosen = _arguments()
    model = case(chosen.model)
    subjects = _subjects(model, chosen)
    versions = {s.server.name: {"setup": s.server.setup, **s.server.versions()} for s in subjects}
    found: dict[str, Any] = {
        "machine": machine.describe(),
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(chosen).items()},
        "at": time.strftime("%FT%TZ", time.gmtime()),
        "versions": versions,
        "memory": {s.name: _memory(model, s) for s in subjects},
    }
    found["cells"] = _cells(model, subjects, chosen)
    ratios = {c: _ratios(found["cells"], subjects, c) for c in chosen.concurrency}
    judged = [target for c, pairs in ratios.items() for target in _targets(c, pairs, chosen.users)]
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.with_suffix(".md").write_text(_report(found, subjects, judged))
    targets.write(chosen.out.with_suffix(".json"), found | {"ratios": ratios}, judged)
    sys.exit(1 if targets.missed(judged) else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fixed")
    parser.add_argument(
        "--users", type=_numbers, default=[1, 1000, 100_000], help="the last is compared with the first"
    )
    parser.add_argument("--sessions", type=int, default=1000, help="users of the naive way; 0 leaves it out")
    parser.add_argument("--concurrency", type=_numbers, default=[1, 32, 64], help="connections")
    parser.add_argument("--seconds", type=float, default=5, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frontends", type=int, help="of Headway; by default what it chooses itself")
    parser.add_argument("--out", type=Path, default=RESULTS / "users", help="write NAME.json and NAME.md")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _subjects(model: Case, chosen: argparse.Namespace) -> list[Subject]:
    ours, naive = CONTENDERS["headway"], CONTENDERS["session-a-user"]
    found = [
        Subject(f"headway, {n:,}", ours, n, partial(headway, model, n, frontends=chosen.frontends))
        for n in chosen.users
    ]
    if chosen.sessions:
        start = partial(naive.start, model, chosen.sessions, 2)
        found.append(Subject(f"session a user, {chosen.sessions:,}", naive, chosen.sessions, start))
    return found


def _memory(model: Case, subject: Subject) -> int:
    """Return the bytes of a server that runs alone, after some load: side by side, servers share pages."""
    path, body = subject.body(model)
    with subject.start() as endpoint:
        wrk(endpoint.url + path, body, connections=8, seconds=SETTLE_SECONDS, users=subject.users)
        used = cost(endpoint.pid).memory
    print(f"{subject.name}: {used / 2**20:.0f} MiB alone", flush=True)
    return used


def _cells(model: Case, subjects: Sequence[Subject], chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all servers, which are up together, in turns; every other round goes backwards."""
    cells = []
    with ExitStack() as stack:
        running = [(s, stack.enter_context(s.start())) for s in subjects]
        for subject, endpoint in running:
            path, body = subject.body(model)
            protocol = subject.server.bodies(model)["binary"]
            measure.check(model, protocol, endpoint.url + path, body, 1, subject.users)
            settle = max(SETTLE_SECONDS, subject.users / MET_A_SECOND)
            wrk(endpoint.url + path, body, connections=32, seconds=settle, users=subject.users)
        for number in range(chosen.rounds):
            for connections in chosen.concurrency:
                for subject, endpoint in running if number % 2 else running[::-1]:
                    path, body = subject.body(model)
                    url, users = endpoint.url + path, subject.users
                    cell = measure.loaded(endpoint, url, body, connections, chosen.seconds, users)
                    cells.append({"round": number, "subject": subject.name, **cell})
                    print(_line(cells[-1]), flush=True)
    return cells


def _line(cell: dict[str, Any]) -> str:
    return (
        f"[{cell['round']}] {cell['subject']}, c={cell['concurrency']}: {cell['rate']:.0f}/s, "
        f"p50 {cell['p50'] / 1e3:.2f} ms, p99 {cell['p99'] / 1e3:.2f} ms, {cell['cpu_us']:.0f} CPU-µs, "
        f"refused {cell['refused']}, failed {cell['failed']}"
    )


def _ratios(cells: list[dict[str, Any]], subjects: Sequence[Subject], connections: int) -> dict[str, list[float]]:
    """Return last against first number of users, round by round: the two were measured within seconds."""
    ours = [s.name for s in subjects if s.server.name == "headway"]
    at = {(c["round"], c["subject"]): c for c in cells if c["concurrency"] == connections}
    rounds = sorted({number for number, _ in at})
    return {f: [at[r, ours[-1]][f] / at[r, ours[0]][f] for r in rounds] for f in ("rate", "p50", "p99", "cpu_us")}


def _targets(connections: int, ratios: dict[str, list[float]], users: list[int]) -> list[Target]:
    rate, tail = (statistics.median(ratios[f]) for f in ("rate", "p99"))
    what = f"{users[-1]:,} users against {users[0]:,}, c={connections}"
    spread = {f: f"({min(ratios[f]):.2f} to {max(ratios[f]):.2f})" for f in ratios}
    return [
        Target(f"{what}: answers/s", f"≥ {THROUGHPUT}", f"{rate:.3f} {spread['rate']}", rate >= THROUGHPUT),
        Target(f"{what}: p99", f"≤ {TAIL}", f"{tail:.2f} {spread['p99']}", tail <= TAIL),
    ]


def _report(found: dict[str, Any], subjects: Sequence[Subject], judged: Sequence[Target]) -> str:
    where, options = found["machine"], found["options"]
    lines = ["# Users: many against one", ""]
    lines.append(
        f"`python bench/users.py`, {found['at']}, commit {where['commit'][:12]}: {where['processor']}, "
        f"{where['cores']} cores. Model {options['model']}, one window a request, binary, users drawn uniformly. All "
        f"servers were up together and measured in turns, {options['rounds']} rounds of {options['seconds']:g} s, "
        f"after {max(options['users']) / MET_A_SECOND:.0f} s of load in which front ends met most of the users; "
        "ratios are medians of the rounds' own (least to most). MiB: of the tree, with no other server up."
    )
    lines += ["", targets.table(judged), "| server, users | c | answers/s | p50 ms | p99 ms | CPU-µs | MiB |"]
    lines.append("|--|" + "--:|" * 6)
    for connections in options["concurrency"]:
        for subject in subjects:
            cells = [c for c in found["cells"] if (c["subject"], c["concurrency"]) == (subject.name, connections)]
            rate, p50, p99, cpu = (statistics.median(c[f] for c in cells) for f in ("rate", "p50", "p99", "cpu_us"))
            lines.append(
                f"| {subject.name} | {connections} | {rate:.0f} | {p50 / 1e3:.2f} | {p99 / 1e3:.2f} | {cpu:.0f} "
                f"| {found['memory'][subject.name] / 2**20:.0f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
