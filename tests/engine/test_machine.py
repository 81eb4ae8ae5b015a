"""Cores and memory as cgroups limit them, on folders that look like a machine's."""

import ctypes
import os
import re
import subprocess
import sys

import pytest

from service.engine.machine import Machine, this_machine

MEMINFO = {"proc/meminfo": "MemTotal:       16777216 kB\nMemFree: 1 kB\n"}
V2 = {"sys/fs/cgroup/cgroup.controllers": "cpu memory\n", **MEMINFO}
GIB = 2**30


@pytest.fixture
def machine(tmp_path):
    def make(files, affinity=8):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return this_machine(tmp_path, affinity)

    return make


def test_no_cgroups(machine):
    found = machine(MEMINFO)
    assert found == Machine(affinity=8, quota=None, memory=16 * GIB, cgroup=None)
    assert (found.cores, found.threads) == (8, 4)


def test_v2_in_a_container(machine):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}
    found = machine({**V2, **files, "sys/fs/cgroup/memory.max": f"{2 * GIB}\n"})
    assert (found.cgroup, found.quota, found.memory) == ("v2", 2.5, 2 * GIB)
    assert (found.cores, found.threads) == (2, 1)


def test_v2_takes_the_tightest_of_the_cgroup_and_those_above_it(machine):
    files = {
        "proc/self/cgroup": "0::/pods/one\n",
        "sys/fs/cgroup/pods/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/pods/one/cpu.max": "max 100000\n",
        "sys/fs/cgroup/pods/memory.max": "max\n",
        "sys/fs/cgroup/pods/one/memory.max": f"{4 * GIB}\n",
    }
    found = machine({**V2, **files})
    assert (found.quota, found.cores, found.memory) == (3.0, 3, 4 * GIB)


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_v1_with_the_hosts_path_seen_from_a_container(machine, mount):
    files = {
        "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/docker/abc\n",
        f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us": "400000\n",
        f"sys/fs/cgroup/{mount}/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    found = machine({**MEMINFO, **files})
    assert (found.cgroup, found.quota, found.cores) == ("v1", 4.0, 4)
    assert found.memory == 16 * GIB  # "no limit" is more than is installed


def test_v1_without_a_quota(machine):
    files = {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}
    assert machine({**MEMINFO, **files}).quota is None


@pytest.mark.parametrize("text", ["", "rubbish\n", "max\n", "0 0\n", "max 100000\n"])
def test_a_limit_that_is_none_or_cannot_be_read(machine, text):
    found = machine({**V2, "sys/fs/cgroup/cpu.max": text})
    assert (found.quota, found.cores) == (None, 8)


def test_less_than_a_core_is_one(machine):
    found = machine({**V2, "sys/fs/cgroup/cpu.max": "50000 100000\n"})
    assert (found.quota, found.cores, found.threads) == (0.5, 1, 1)


def test_affinity_below_the_quota(machine):
    assert machine({**V2, "sys/fs/cgroup/cpu.max": "800000 100000\n"}, affinity=2).cores == 2


def test_the_machine_this_runs_on():
    found = this_machine()
    assert 1 <= found.cores <= len(os.sched_getaffinity(0))
    assert found.memory is None or found.memory > 2**20


ARENAS = """
import ctypes, threading
from service.engine.machine import few_arenas
few_arenas()
libc, barrier = ctypes.CDLL(None), threading.Barrier(8)
libc.malloc.restype = ctypes.c_void_p
def allocate():
    barrier.wait()
    libc.malloc(1000)
    barrier.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not glibc")
def test_threads_share_few_arenas():
    def arenas(**variables):
        environment = {k: v for k, v in os.environ.items() if k not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")}
        told = subprocess.run(
            [sys.executable, "-c", ARENAS], env=environment | variables, stdout=subprocess.PIPE, text=True, check=True
        )
        return len(re.findall(r"<heap nr=", told.stdout))

    assert arenas() == 2
    assert arenas(MALLOC_ARENA_MAX="5") == 5
