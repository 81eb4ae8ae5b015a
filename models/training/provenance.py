"""Where a run comes from."""

import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

__all__ = ["commit", "provenance"]


def commit() -> str:
    """The commit of this source tree, or an empty string outside one."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def provenance(command: str, config: BaseModel, started: datetime, begin: float) -> dict[str, Any]:
    """What every run records: command, settings with the seed, commit, versions and times; `begin` is monotonic."""
    return {
        "command": command,
        "config": config.model_dump(mode="json"),
        "commit": commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begin, 1),
    }
