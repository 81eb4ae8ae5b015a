"""The load: Debian's wrk, one thread, with bodies whose tail is made once and whose user is written in a request."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.places import HOME, ROOT

SCRIPT = ROOT / "bench" / "wrk" / "request.lua"


@dataclass(frozen=True, slots=True)
class Body:
    """A request body with a hole for the user's number: `prefix`, the number by `shape` (C's), `suffix`."""

    prefix: bytes
    shape: str
    suffix: bytes
    headers: dict[str, str]

    def filled(self, user: int) -> bytes:
        """Return the body of one user."""
        number = (self.shape % user).encode() if self.shape else b""
        return self.prefix + number + self.suffix

    def store(self, folder: Path) -> Path:
        """Write the parts where wrk's script reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prefix").write_bytes(self.prefix)
        (folder / "suffix").write_bytes(self.suffix)
        (folder / "headers").write_text("".join(f"{k}: {v}\n" for k, v in self.headers.items()))
        return folder


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


def wrk(url: str, body: Body, *, connections: int, seconds: float, users: int, seed: int = 0) -> Load:
    """Send one body after another on each of `connections` for a while.

    `refused` counts answers with a status over 399, `failed` time-outs and broken connections; neither is in `rate`.

    Raises:
        LoadError: wrk is missing or said nothing.
    """
    program = shutil.which("wrk")
    if program is None:
        raise LoadError("wrk is not installed: apt-get install wrk")
    folder = body.store(HOME / "requests" / f"{abs(hash((body.prefix, body.suffix)))}")
    command = [program, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"]
    command += ["--latency", "-s", str(SCRIPT), url, "--", str(folder), str(users), body.shape, str(seed)]
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
