"""What this process may use of its machine: cores and memory, as cgroups and the scheduler's affinity limit them."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("sys/fs/cgroup")
MOST_THREADS = 4
MOST_FRONTENDS = 8
ARENAS = 2
M_ARENA_MAX = -8
"""Of glibc's malloc.h."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Limits of this process.

    Attributes:
        affinity: cores that the scheduler may put it on.
        quota: cores' worth of time that its cgroup may use, or None: no limit.
        memory: bytes that it may use, or None where nothing says.
        cgroup: "v2", "v1" or None: whose limits these are.
    """

    affinity: int
    quota: float | None
    memory: int | None
    cgroup: str | None

    @property
    def cores(self) -> int:
        """Cores that can be kept busy: at least 1, and a quota's fraction does not count."""
        return max(1, self.affinity if self.quota is None else min(self.affinity, math.floor(self.quota)))

    @property
    def threads(self) -> int:
        """Threads of one forward where none are asked for: half the cores, for the other half feeds the engine.

        At most 4. On the 2 cores that it was measured on, one thread was the fastest.
        """
        return min(MOST_THREADS, max(1, self.cores // 2))

    @property
    def frontends(self) -> int:
        """Processes that answer, where nobody says how many: one a core, at most 8."""
        return min(MOST_FRONTENDS, self.cores) if hasattr(os, "memfd_create") else 1

    def threads_of(self, frontends: int) -> int:
        """Threads of one forward in each of so many processes."""
        return self.threads if frontends == 1 else min(MOST_THREADS, max(1, self.cores // frontends))


def few_arenas() -> None:
    """Keep glibc's allocator to 2 arenas in this process, unless the environment says how many.

    By default each thread that allocates may get one, and models that are loaded and unloaded on changing threads leave
    holes in all of them. To be called before threads start; elsewhere than on glibc it does nothing.
    """
    if "MALLOC_ARENA_MAX" not in os.environ and "glibc.malloc.arena_max" not in os.environ.get("GLIBC_TUNABLES", ""):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


def this_machine(root: Path = Path("/"), affinity: int | None = None) -> Machine:
    """Read the limits under `root`, which a test may put in place of the file system's."""
    if affinity is None:
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    paths = _own_cgroups(root)
    if (root / CGROUPS / "cgroup.controllers").is_file():
        folders = list(_upwards(root / CGROUPS, paths.get("", "/")))
        quotas = [_quota_v2(folder / "cpu.max") for folder in folders]
        memories = [_number(folder / "memory.max") for folder in folders]
        version: str | None = "v2"
    else:
        cpu, memory = (_mount(root / CGROUPS, name) for name in ("cpu", "memory"))
        quotas = [_quota_v1(folder) for folder in _upwards(cpu, paths.get("cpu", "/"))]
        memories = [_number(f / "memory.limit_in_bytes") for f in _upwards(memory, paths.get("memory", "/"))]
        version = "v1" if cpu.is_dir() or memory.is_dir() else None
    limits = [limit for limit in (*memories, _installed(root)) if limit]
    return Machine(affinity, min((q for q in quotas if q), default=None), min(limits, default=None), version)


def _own_cgroups(root: Path) -> dict[str, str]:
    """Path of this process's cgroup by controller; of v2 under the empty name."""
    found: dict[str, str] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        found |= dict.fromkeys(controllers.split(","), path)
    return found


def _mount(cgroups: Path, controller: str) -> Path:
    joint = cgroups / "cpu,cpuacct"
    return joint if controller == "cpu" and joint.is_dir() else cgroups / controller


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The cgroup's folder and all above it, each of which limits it.

    In a container the path may be the host's, of which only the mount itself is seen: folders that are not there are
    passed over by those who read them.
    """
    folder = mount / path.lstrip("/")
    while folder != mount and mount in folder.parents:
        yield folder
        folder = folder.parent
    yield mount


def _quota_v2(file: Path) -> float | None:
    match _text(file).split():
        case [quota, period] if quota.isdecimal() and period.isdecimal() and int(period):
            return int(quota) / int(period)
    return None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _number(file: Path) -> int | None:
    """A limit; None where there is none: "max", -1, or no file."""
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _installed(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # no such limit, or none that may be read
        return ""
