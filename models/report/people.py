"""Sections on people: each user's gain, the guard's verdicts, confusion, and the map before and after."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from models.evaluation.run import GENERIC, PERSONAL, ZERO_SHOT
from models.report import svg
from models.report.inputs import EvaluationFile, RunFile
from models.report.page import Section, figure, paragraph, percent, table
from models.report.scored import LeftOut, Person
from models.report.svg import Axis, Panel

__all__ = ["before_and_after", "by_user", "confusion", "guard"]

MOST_BARS = 60
"""Users drawn in one figure, those with the least gain; the table has everybody."""
HARM_WORDS = (
    "A harmed user, whose personal head decides worse than the shared one, is marked with ▼, the loss in points and a "
    "broken outline."
)


def by_user(run: RunFile, evaluation: EvaluationFile | None, left_out: LeftOut | None) -> Section:
    """Shared and personal head of each user, the harmed ones marked; without users, the shared head by label."""
    if left_out is not None and left_out.served is None:
        return _by_label(run, left_out)
    parts: list[str] = []
    if evaluation is not None:
        generic = {u: s.accuracy for u, s in evaluation.users[GENERIC][ZERO_SHOT].items()}
        for i, (condition, by_user) in enumerate(evaluation.users[PERSONAL].items()):
            rows = [(u, 100 * generic[u], 100 * s.accuracy) for u, s in by_user.items()]
            parts += _user_bars(f"users-{i}", f"Evaluated people, personal head after {condition}", rows)
    if left_out is not None:
        rows = [(p.name, 100 * p.shared, 100 * p.served) for p in left_out.people]
        parts += _user_bars("users-own", "The run's own people, each left out, after one repetition", rows)
        parts += [paragraph(f"{name} is not among them: {why}.") for name, why in left_out.skipped]
    if parts:
        return Section("users", "By user", [paragraph(HARM_WORDS), *parts])
    return Section(
        "users", "By user", [paragraph("Give --evaluation, or --data for the run's own people, to see each user.")]
    )


def _by_label(run: RunFile, left_out: LeftOut) -> Section:
    total = left_out.shared.sum(1)
    rows = [
        (label, round(100 * float(right) / max(int(n), 1), 1), int(n))
        for label, right, n in zip(run.labels, left_out.shared.diagonal(), total, strict=True)
    ]
    rows.sort(key=lambda row: row[1])
    title = "Shared head by label, each example left out of the probe that decides about it"
    least = f"The least is {rows[0][0]} with {rows[0][1]} %"
    x = Axis("examples decided rightly, %", 0.0, 100.0, tuple((float(v), str(v)) for v in range(0, 101, 20)))
    drawn = svg.bars("labels", title, f"{title}. {least}.", [row[:2] for row in rows[:MOST_BARS]], x)
    cells = [(label, f"{right:.1f}", str(n)) for label, right, n in rows]
    parts = [paragraph("The data have no users, or too few: nobody can be personalised, and labels are drawn instead.")]
    parts.append(figure(drawn, f"{title}. {least}.", table(("label", "right, %", "examples"), cells, title)))
    return Section("users", "By label", parts)


def _user_bars(key: str, title: str, rows: Sequence[tuple[str, float, float]]) -> list[str]:
    rows = sorted(rows, key=lambda row: row[2] - row[1])
    harmed = [i for i, (_, before, after) in enumerate(rows) if after < before]
    said = (
        f"{len(harmed)} of {len(rows)} harmed" + (f": {', '.join(rows[i][0] for i in harmed)}" if harmed else "") + "."
    )
    x = Axis("accuracy, %", 0.0, 100.0, tuple((float(v), str(v)) for v in range(0, 101, 20)))
    drawn = svg.paired_bars(key, title, f"{title}. {said}", rows[:MOST_BARS], x, ("shared head", "personal head"))
    cells = [
        (user, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}", "harmed" if i in harmed else "")
        for i, (user, before, after) in enumerate(rows)
    ]
    head = ("user", "shared head, %", "personal head, %", "gain, points", "")
    caption = f"{title}; the least gain first. {said}"
    if len(rows) > MOST_BARS:
        caption += f" Drawn are the {MOST_BARS} with the least gain."
    return [f"<h3>{escape(title)}</h3>", figure(drawn, caption, table(head, cells, title, harmed))]


def guard(run: RunFile, evaluation: EvaluationFile | None, left_out: LeftOut | None) -> Section:
    """How often the guard promoted, blended, kept or found too little."""
    parts: list[str] = []
    if evaluation is not None and evaluation.outcomes:
        verdicts = sorted({v for by in evaluation.outcomes.values() for v in by})
        rows = [(c, *(str(by.get(v, 0)) for v in verdicts)) for c, by in evaluation.outcomes.items()]
        parts.append(
            table(("calibrated with", *verdicts), rows, "Verdicts on the evaluated people's calibrations (evidence)")
        )
    if left_out is not None and left_out.people:
        said = sorted({p.outcome for p in left_out.people})
        rows = [(v, str(sum(p.outcome == v for p in left_out.people))) for v in said]
        parts.append(table(("verdict", "people"), rows, "Verdicts on the run's own people, after one repetition"))
    if not parts and not run.hyper.pooled:
        parts.append(paragraph("Give --evaluation or --data to see what the guard decides."))
    if run.hyper.pooled:
        parts.append(paragraph("The prior is pooled: the guard has no record of people to go by."))
    return Section("guard", "What the guard decided", parts)


def confusion(run: RunFile, left_out: LeftOut | None) -> Section:
    """What the shared head and the served ones decide for each label."""
    if left_out is None:
        return Section("confusion", "Confusion", [paragraph(_wants_data(run))])
    people = f"{len(left_out.people)} people, each left out of prior and network"
    heads = [("shared", "Shared head", left_out.shared)]
    if left_out.served is None:
        people = "each example left out of the probe that decides about it"
    else:
        heads.append(("served", "Head served after one repetition", left_out.served))
    parts = [paragraph(left_out.checked)] if left_out.checked else []
    for key, who, counts in heads:
        total = counts.sum(1, keepdims=True)
        shares = counts / np.maximum(total, 1)
        right = counts.trace() / counts.sum()
        title = f"{who}: confusion"
        words = (
            f"{who}, {people}: {counts.sum():,} {_items(run)} that did not calibrate, {percent(right)} % right. "
            "Rows add up to 100 %."
        )
        rows = [(label, *(str(n) for n in row)) for label, row in zip(run.labels, counts, strict=True)]
        numbers = table(("true, decided →", *run.labels), rows, f"{who}: {_items(run)}")
        parts.append(figure(svg.heat(f"confusion-{key}", title, words, run.labels, shares), words, numbers))
    return Section("confusion", "Confusion", parts)


def before_and_after(run: RunFile, left_out: LeftOut | None) -> Section:
    """Maps of some people: the same examples beside the population's classes, and beside those of their own head."""
    if left_out is None:
        return Section("map", "Map before and after", [paragraph(_wants_data(run))])
    if not left_out.people:
        words = "The data have no users, or too few: there is no personal head to draw."
        return Section("map", "Map before and after", [paragraph(words)])
    everyone = left_out.people
    tighter = sum(p.after < p.before for p in everyone)
    words = (
        f"Each person is left out of the prior. Dots are {_items(run)} of theirs that did not calibrate, in the "
        "personal features; they lie at the same places in both maps, for personalisation moves no features. What it "
        "moves are the middles of the head's classes, the rings: before, the population's; after, those that one "
        "labelled repetition makes of them (the personal head, before the guard). The plane is drawn for each person "
        "by one rule: the two main axes of both kinds of middles, in units of the population's covariance within a "
        "person. Over the maps: the mean squared distance of dots from the middle of their own label, over that of "
        "the middles from each other's mean, in all directions of the middles, not in the plane alone. It is smaller "
        "where a head's classes fit the person."
    )
    mean = [float(np.mean([getattr(p, what) for p in everyone])) for what in ("before", "after")]
    parts = [
        paragraph(words),
        paragraph(
            f"Of {len(everyone)} people {tighter} lie closer to their own classes than to the population's; mean ratio "
            f"{mean[0]:.3f} before, {mean[1]:.3f} after."
        ),
        *(_map(run, i, p) for i, p in enumerate(left_out.mapped)),
    ]
    rows = [(p.name, f"{p.before:.3f}", f"{p.after:.3f}", p.outcome) for p in everyone]
    loose = [i for i, p in enumerate(everyone) if p.after >= p.before]
    parts.append(
        table(("person", "before", "after", "verdict of the guard"), rows, "Distance within labels over between", loose)
    )
    return Section("map", "Map before and after", parts)


def _map(run: RunFile, i: int, person: Person) -> str:
    m = person.map
    panels = [
        Panel(f"before: the population's classes, {person.before:.3f}", m.xy, m.y, m.before),
        Panel(f"after: the classes of their own head, {person.after:.3f}", m.xy, m.y, m.after),
    ]
    title = f"{person.name}, before and after personalisation"
    words = f"{title}. The plane shows {100 * m.kept:.0f} % of how the middles differ."
    rows = [
        (run.labels[c], *_point(m.xy[m.y == c].mean(0)), *_point(m.before[c]), *_point(m.after[c]))
        for c in np.unique(m.y)
    ]
    head = ("label", "dots, x", "y", "population, x", "y", "own head, x", "y")
    numbers = table(head, rows, f"{person.name}: middles on the map")
    return figure(svg.scatters(f"map-{i}", title, words, panels, run.labels), words, numbers)


def _point(xy: NDArray[np.float64]) -> tuple[str, ...]:
    return tuple(f"{v:.2f}" for v in xy)


def _items(run: RunFile) -> str:
    return "examples" if run.media else "windows"


def _wants_data(run: RunFile) -> str:
    what = "folder or table" if run.media else "folder of the recordings"
    return f"Give --data, the {what} that the run was trained on, to see this."
