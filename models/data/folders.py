"""Making a folder of recordings whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from models.data.format import RecordingsError

__all__ = ["Progress", "fresh_folder"]

Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)` while a folder is being made."""


@contextmanager
def fresh_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends well, and vanishes when it does not.

    Raises `RecordingsError` when `out` is there already and not an empty folder.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecordingsError(f"{out} is there already and not empty; name a new folder, or remove it first.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise RecordingsError(f"The folder {out} cannot be made: {error.strerror}.") from error
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes folders that only their owner can enter
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
