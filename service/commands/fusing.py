"""`headway fuse`: members and paired recordings to a fused bundle, and what left-out people would get."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from rich.console import Console
from rich.table import Table

from exporters import bundle as bundles
from exporters.fuse import fuse_recordings
from models.training.config import TrainingError
from models.training.fusion import How
from service.commands.progress import stages

console = Console()


def run_fusion(
    members: Sequence[str],
    data: Sequence[str],
    models: Path,
    *,
    name: str,
    how: str,
    personal: int,
    subjects: str,
    description: str,
    command: str,
) -> None:
    """Fuse, and print accuracy on left-out people by which inputs are there."""
    if how not in get_args(How):
        raise TrainingError(f"--how is {how!r}; it can be {' or '.join(get_args(How))}")
    with stages() as tick:
        path = fuse_recordings(
            _named(members, "--member"),
            _named(data, "--data"),
            models,
            name=name,
            how=cast("How", how),
            personal=personal,
            subjects=subjects,
            description=description,
            command=command,
            tick=tick,
        )
    found = bundles.load(path).manifest
    rows = found.evaluation["present"]
    columns = [key for key in rows[0] if key != "there"]
    table = Table("inputs", *columns, title=f"{found.evaluation['users']} left-out people: mean (worst)")
    for row in rows:
        table.add_row(" + ".join(row["there"]), *(f"{row[c]['mean']:.1%} ({row[c]['worst']:.1%})" for c in columns))
    console.print(table)
    console.print(f"written to {path}", highlight=False)


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
