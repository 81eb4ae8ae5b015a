"""A folder of this service's processes: their counters, and the socket of the primary."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from service.config import ConfigError

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
SOCKET = "primary.sock"
LONGEST_PATH = 100

_MEMORY = "/dev/shm"  # noqa: S108 - one of its own is made in it


@contextmanager
def shared_folder() -> Iterator[str]:
    """Make the folder, in memory where there is a file system for that, and remove it at the end.

    prometheus-client keeps counters in it that outlive their process; it reads the variable when it is imported.

    Raises:
        ConfigError: the temporary folder's path is too long.
    """
    # uvicorn gives a signal, when it has drained, to whoever had it before: by default that ends the process at once.
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    parent, prefix = _MEMORY if os.access(_MEMORY, os.W_OK) else None, f"headway-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as folder:
        if len(folder) + len(SOCKET) > LONGEST_PATH:
            raise ConfigError(f"the path {folder} is too long for a socket in it; set TMPDIR to a shorter one")
        os.environ[VARIABLE] = folder
        try:
            yield folder
        finally:
            del os.environ[VARIABLE]
            signal.signal(signal.SIGTERM, before)
