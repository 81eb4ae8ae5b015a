"""The demo's table, picture and last words."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from rich.console import Console
from rich.table import Table

from service.commands.demo import Curve, Story


def report(story: Story, out: Path, console: Console) -> None:
    """Print what the demo found and write `learning_curve.png` into `out`."""
    picture = out / "learning_curve.png"
    draw(story.curve, picture, f"{story.model}: {len(story.subjects)} people the model never saw")
    console.print()
    console.print(_table(story.curve))
    if any("insufficient" in said for said in story.curve.outcomes.values()):
        console.print("insufficient: the guard found too little to promote on, and the generic head goes on serving")
    for line in _harm(story):
        console.print(line, highlight=False)
    console.print(f"[bold]Guard[/], given the same windows with random labels: {story.guard}", highlight=False)
    console.print(f"[bold]Rollback[/]: {story.rollback}", highlight=False)
    console.print(f"[bold]Latency[/] from /metrics: {story.latency}", highlight=False)
    console.print(
        f"[bold]Time[/]: {story.seconds['whole loop']:.0f} s for the whole loop. Picture: {picture}", highlight=False
    )
    console.print(
        "\nTry next:\n"
        "  make serve                                  the shipped bundle on port 8000, with three curl lines\n"
        "  make demo DATA=synth                        synthetic users, from data to personal heads\n"
        "  .venv/bin/headway train --data DIR --out runs/mine    your own recordings (docs/recordings.md)\n"
        "  .venv/bin/headway --help",
        highlight=False,
    )


def _table(curve: Curve) -> Table:
    table = Table(title="Accuracy of held-out people, mean (lowest)")
    table.add_column("labelled windows")
    for column in curve.columns:
        table.add_column(column, justify="right")
    table.add_column("guard", justify="right")
    table.add_row("none: generic head", *(_cell(curve.generic[c]) for c in curve.columns), "")
    for shots, scores in curve.personal.items():
        outcomes = curve.outcomes[shots]
        said = ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes))
        table.add_row(f"{shots}: served head", *(_cell(scores[c]) for c in curve.columns), said)
    return table


def _cell(values: list[float]) -> str:
    return f"{np.mean(values):.1%} ({min(values):.1%})"


def _harm(story: Story) -> list[str]:
    """Say for each column what personal heads gained, and whom they cost more than a point."""
    lines = []
    curve = story.curve
    for column in curve.columns:
        for shots, scores in curve.personal.items():
            gains = np.array(scores[column]) - np.array(curve.generic[column])
            harmed = [f"{s} {g:+.1%}" for s, g in zip(story.subjects, gains, strict=True) if g < -0.01]
            if harmed:
                lines.append(f"[yellow]{shots}, {column}: below generic by more than a point: {', '.join(harmed)}[/]")
        last = list(curve.personal.values())[-1][column]
        gain = np.mean(last) - np.mean(curve.generic[column])
        lines.append(f"[bold]Gain[/] on {column}, with all calibration windows: {gain:+.1%} on average")
    return lines


def draw(curve: Curve, path: Path, title: str) -> None:
    """Draw accuracy against labelled windows a class, generic and personal, a panel a column."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(curve.columns), figsize=(5.2 * len(curve.columns), 4), sharey=True, squeeze=False
    )
    x = [curve.per_class[shots] for shots in curve.personal]
    for axis, column in zip(axes[0], curve.columns, strict=True):
        scores = np.array([curve.personal[shots][column] for shots in curve.personal])
        axis.plot(x, 100 * scores, color="tab:blue", alpha=0.25, linewidth=1)
        axis.plot(x, 100 * scores.mean(1), "o-", color="tab:blue", label="personal head (mean; each person thin)")
        axis.axhline(
            100 * float(np.mean(curve.generic[column])), color="tab:gray", linestyle="--", label="generic head (mean)"
        )
        axis.set_xscale("log")
        axis.set_xticks(x, [f"{n:.0f}" for n in x], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("labelled windows a class")
        axis.set_title(column)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("accuracy, %")
    axes[0][0].legend(loc="lower right")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
