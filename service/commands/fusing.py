"""`headway fuse`: members and what goes together to a fused bundle, and what left-out people would get."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from rich.console import Console
from rich.table import Table

from exporters import bundle as bundles
from exporters.fuse import fuse_recordings
from exporters.fuse_items import fuse_items
from models.training.config import TrainingError
from models.training.fusion import How
from service.commands.progress import stages

console = Console()
POOLED = "fewer than 3 users, the prior is pooled; left-out parts of every label: mean (worst)"


def run_fusion(
    members: Sequence[str],
    data: Sequence[str],
    models: Path,
    *,
    name: str,
    how: str,
    personal: int,
    subjects: str,
    seed: int,
    description: str,
    command: str,
) -> None:
    """Fuse, and print accuracy on left-out people by which inputs are there."""
    if how not in get_args(How):
        raise TrainingError(f"--how is {how!r}; it can be {' or '.join(get_args(How))}")
    named = _named(members, "--member")
    told: dict[str, Any] = {
        "name": name,
        "how": cast("How", how),
        "personal": personal,
        "description": description,
        "command": command,
    }
    with stages() as tick:
        if table := _table(data):
            if subjects != "*":
                raise TrainingError("--subjects are files of recordings; of a table leave rows out.")
            path = fuse_items(named, table, models, seed=seed, tick=tick, **told)
        else:
            path = fuse_recordings(named, _named(data, "--data"), models, subjects=subjects, tick=tick, **told)
    found = bundles.load(path).manifest
    rows = found.evaluation["present"]
    columns = [key for key in rows[0] if key != "there"]
    users = found.evaluation["users"]
    shown = Table("inputs", *columns, title=f"{users} left-out people: mean (worst)" if users else POOLED)
    for row in rows:
        cells = (f"{row[c]['mean']:.1%} ({row[c]['worst']:.1%})" if c in row else "" for c in columns)
        shown.add_row(" + ".join(row["there"]), *cells)
    console.print(shown)
    console.print(f"written to {path}", highlight=False)


def _table(data: Sequence[str]) -> Path | None:
    """The one table of all members, where `--data` is not a folder for each."""
    if len(data) == 1 and ("=" not in data[0] or Path(data[0]).is_file()):
        return Path(data[0])
    return None


def _named(values: Sequence[str], option: str) -> dict[str, Path]:
    """Read NAME=PATH, each name once."""
    found: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or not name or not path or name in found:
            what = "names a member twice" if name in found else "is not NAME=PATH"
            raise TrainingError(f"{option} {value!r} {what}; for example {option} emg=runs/emg")
        found[name] = Path(path)
    return found
