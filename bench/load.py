"""The load: Debian's wrk, one thread, with bodies whose tail is made once and whose user is written in a request."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.places import ROOT

SCRIPT = ROOT / "bench" / "wrk" / "request.lua"


@dataclass(frozen=True, slots=True)
class Body:
    """A request body with a hole: `prefix`, the user's number by `shape` (C's) `repeat` times, `suffix`."""

    prefix: bytes
    shape: str
    suffix: bytes
    headers: dict[str, str]
    repeat: int = 1

    def filled(self, user: int) -> bytes:
        """Return the body of one user."""
        number = (self.shape % user).encode() if self.shape else b""
        return self.prefix + b",".join([number] * self.repeat) + self.suffix

    def store(self, folder: Path) -> None:
        """Write the parts where wrk's script reads them."""
        (folder / "prefix").write_bytes(self.prefix)
        (folder / "suffix").write_bytes(self.suffix)
        (folder / "headers").write_text("".join(f"{k}: {v}\n" for k, v in self.headers.items()))


@dataclass(frozen=True, slots=True)
class Load:
    """What came of a load: answers a second, latencies in µs, and what failed."""

    requests: int
    seconds: float
    rate: float
    p50: float
    p90: float
    p99: float
    max: float
    refused: int
    failed: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


class LoadError(RuntimeError):
    """The load could not be offered, or nothing came back."""


def wrk(
    url: str, body: Body, *, connections: int, seconds: float, users: int, seed: int = 0, draw: str = "uniform"
) -> Load:
    """Send one body after another on each of `connections` for a while, of users drawn `uniform` or by `zipf`.

    `refused` counts answers with a status over 399, `failed` time-outs and broken connections; neither is in `rate`.

    Raises:
        LoadError: wrk is missing or said nothing.
    """
    program = shutil.which("wrk")
    if program is None:
        raise LoadError("wrk is not installed: apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        body.store(Path(folder))
        command = [program, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"]
        command += ["--latency", "-s", str(SCRIPT), url, "--", folder, str(users), body.shape, str(seed)]
        command += [str(body.repeat), draw]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    line = next((part for part in done.stdout.splitlines() if part.startswith("RESULT ")), None)
    if line is None:
        raise LoadError(f"wrk said: {(done.stdout + done.stderr)[-500:]}")
    found = json.loads(line.removeprefix("RESULT "))
    length = found["duration_us"] / 1e6
    good = max(0, found["requests"] - found["status"])
    latencies = (found[name] for name in ("p50", "p90", "p99", "max"))
    return Load(good, length, good / length, *latencies, found["status"], found["timeout"] + found["socket"])


def post(url: str, body: Body, user: int) -> tuple[bytes, dict[str, str]]:
    """Send one request and return the answer's body and headers.

    Raises:
        LoadError: the server refused it, with what it said.
    """
    request = urllib.request.Request(url, body.filled(user), body.headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read(), {k.lower(): v for k, v in response.headers.items()}
    except urllib.error.HTTPError as e:
        raise LoadError(f"{url} answered {e.code}: {e.read()[:500]!r}") from e
