"""What a server costs: processor time, memory and descriptors of its whole process tree, from /proc."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor time in seconds, proportional memory in bytes, open descriptors and the number of processes."""

    cpu: float
    memory: int
    descriptors: int
    processes: int


def tree(root: int) -> list[int]:
    """Return a process, all its descendants, and the session it leads: a parent that ended is not in the way."""
    parents: dict[int, list[int]] = {}
    session: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
            if int(fields[3]) == root:
                session.append(int(entry.name))
    found, queue = {root: None}, [root, *session]
    while queue:
        pid = queue.pop()
        found[pid] = None
        queue += [child for child in parents.get(pid, []) if child not in found]
    return list(found)


def cost(root: int, *, memory: bool = True) -> Cost:
    """Return what a process tree has cost so far; without `memory` only the processor time, which is cheap to read.

    A worker that ended in between still counts, by what its parent is told of it.
    """
    cpu, resident, descriptors = 0.0, 0, 0
    pids = tree(root)
    for pid in pids:
        folder = Path("/proc") / str(pid)
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            cpu += sum(map(int, fields[11:15])) / TICKS
            if memory:
                resident += _proportional(folder)
                descriptors += sum(1 for _ in (folder / "fd").iterdir())
        except OSError:
            continue
    return Cost(cpu, resident, descriptors, len(pids))


def busy() -> float:
    """Return processor seconds that the machine has been busy, whoever it was for."""
    fields = [int(f) for f in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


def ended_children() -> float:
    """Return processor seconds of the children of this process that have ended: wrk's, in a measurement."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _proportional(folder: Path) -> int:
    """Return a process's memory, pages that it shares with others counted in part."""
    for line in (folder / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def owner(root: int, server_port: int, client_port: int) -> int | None:
    """Return which process of a tree answers an IPv4 connection on this machine; None: none has accepted it.

    Where a process hands connections to its children, it may have this one open for a moment yet: children come first.
    """
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ports = [int(fields[i].rpartition(":")[2], 16) for i in (1, 2)]
        if ports == [server_port, client_port]:
            wanted = f"socket:[{fields[9]}]"
            return next((pid for pid in reversed(tree(root)) if wanted in _open_files(pid)), None)
    return None


def _open_files(pid: int) -> Iterator[str]:
    with suppress(OSError):  # the process, or the file, is gone
        for file in (Path("/proc") / str(pid) / "fd").iterdir():
            with suppress(OSError):
                yield str(file.readlink())


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def started(
    command: list[str], log: Path, environment: Mapping[str, str], folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a session of its own, its output in a log; at the end its whole tree is gone."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=dict(environment), cwd=folder, start_new_session=True
        )
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[bytes], seconds: float = 10.0) -> None:
    """End a process tree: politely, then not. Only what was started here is signalled."""
    members = tree(process.pid)
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    time.sleep(0.2)
    for pid in members[1:]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
