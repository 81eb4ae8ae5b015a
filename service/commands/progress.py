"""Progress bars of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


@contextmanager
def steps(title: str, console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """Show one bar and yield `step(what, done, total)`, which moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task(title, total=None)

        def step(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{title}: {what}", completed=done, total=total)

        yield step


@contextmanager
def stages(console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each stage and yield `tick(stage, done, total)`, which moves it."""
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
