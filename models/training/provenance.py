"""Where a run comes from."""

import subprocess
from pathlib import Path

__all__ = ["commit"]


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
