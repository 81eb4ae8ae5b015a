"""Progress of the command line: bars on a terminal, a line now and then where the output goes to a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

LINE_SECONDS = 10.0
"""Between two lines of a stage."""
Step = Callable[[str, int, int], None]


@contextmanager
def steps(title: str, console: Console | None = None) -> Iterator[Step]:
    """Show one bar and yield `step(what, done, total)`, which moves it."""
    console = console or Console()
    if not console.is_terminal:
        line = _lines(console)
        yield lambda what, done, total: line(title, done, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task(title, total=None)

        def step(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{title}: {what}" if what else title, completed=done, total=total)

        yield step


@contextmanager
def stages(console: Console | None = None) -> Iterator[Step]:
    """Show a bar for each stage and yield `tick(stage, done, total)`, which moves it."""
    console = console or Console()
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bar:

        def tick(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)
            if done >= total:
                bar.stop_task(tasks[stage])

        yield tick


def _lines(console: Console) -> Step:
    """Print when a stage has ended, and how far it is every so many seconds."""
    began: dict[str, float] = {}
    said: dict[str, float] = {}
    ended: set[str] = set()

    def tick(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        first = began.setdefault(stage, now)
        if stage in ended or (done < total and now - said.setdefault(stage, now) < LINE_SECONDS):
            return
        said[stage] = now
        if done >= total:
            ended.add(stage)
        told = f"{done} of {total}" if total > 1 else "done"
        console.print(f"{stage}: {told} ({now - first:.0f} s)", highlight=False, markup=False, soft_wrap=True)

    return tick
