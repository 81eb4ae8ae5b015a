"""Sections on people: each user's gain, the guard's verdicts, confusion, and the map before and after."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from models.evaluation.run import GENERIC, PERSONAL, ZERO_SHOT
from models.report import svg
from models.report.inputs import EvaluationFile, RunFile
from models.report.left_out import LeftOut
from models.report.page import Section, figure, paragraph, percent, table
from models.report.svg import Axis, Panel

__all__ = ["before_and_after", "by_user", "confusion", "guard"]

MOST_BARS = 60
"""Users drawn in one figure, those with the least gain; the table has everybody."""
HARM_WORDS = (
    "A harmed user, whose personal head decides worse than the shared one, is marked with ▼, the loss in points and a "
    "broken outline."
)


def by_user(evaluation: EvaluationFile | None, left_out: LeftOut | None) -> Section:
    """Shared and personal head of each user, the harmed ones marked."""
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


def _user_bars(key: str, title: str, rows: Sequence[tuple[str, float, float]]) -> list[str]:
    rows = sorted(rows, key=lambda row: row[2] - row[1])
    harmed = [i for i, (_, before, after) in enumerate(rows) if after < before]
    said = (
        f"{len(harmed)} of {len(rows)} harmed" + (f": {', '.join(rows[i][0] for i in harmed)}" if harmed else "") + "."
    )
    x = Axis("window accuracy, %", 0.0, 100.0, tuple((float(v), str(v)) for v in range(0, 101, 20)))
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
    if left_out is not None:
        said = sorted({p.outcome for p in left_out.people})
        rows = [(v, str(sum(p.outcome == v for p in left_out.people))) for v in said]
        parts.append(table(("verdict", "people"), rows, "Verdicts on the run's own people, after one repetition"))
    if not parts:
        parts.append(paragraph("Give --evaluation or --data to see what the guard decides."))
    if run.hyper.pooled:
        parts.append(paragraph("The prior is pooled: the guard has no record of people to go by."))
    return Section("guard", "What the guard decided", parts)


def confusion(run: RunFile, left_out: LeftOut | None) -> Section:
    """What the shared head and the served ones decide for each label."""
    if left_out is None:
        return Section("confusion", "Confusion", [paragraph(_wants_data(run))])
    people = f"{len(left_out.people)} people, each left out of prior and network"
    parts = []
    for key, who, counts in (
        ("shared", "Shared head", left_out.shared),
        ("served", "Head served after one repetition", left_out.served),
    ):
        total = counts.sum(1, keepdims=True)
        shares = counts / np.maximum(total, 1)
        right = counts.trace() / counts.sum()
        title = f"{who}: confusion"
        words = (
            f"{who}, {people}: {counts.sum():,} windows that did not calibrate, {percent(right)} % right. "
            "Rows add up to 100 %."
        )
        rows = [(label, *(str(n) for n in row)) for label, row in zip(run.labels, counts, strict=True)]
        numbers = table(("true, decided →", *run.labels), rows, f"{who}: windows")
        parts.append(figure(svg.heat(f"confusion-{key}", title, words, run.labels, shares), words, numbers))
    return Section("confusion", "Confusion", parts)


def before_and_after(run: RunFile, left_out: LeftOut | None) -> Section:
    """A map of some people's windows, as the population's classes and as their own place them."""
    if left_out is None:
        return Section("map", "Map before and after", [paragraph(_wants_data(run))])
    mapped = left_out.mapped
    y = np.concatenate([m.y for m in mapped])
    panels = [
        Panel("before: the population's classes", np.concatenate([m.before for m in mapped]), y),
        Panel("after: each person's own classes", np.concatenate([m.after for m in mapped]), y),
    ]
    names = ", ".join(m.name for m in mapped)
    words = (
        f"Windows that did not calibrate, of {names}, each left out of the prior. A window's place is its scores under "
        "a linear discriminant of the personal features: before, with class means and covariance of the population; "
        "after, with those that one labelled repetition makes of them (the personal head, before guard and "
        "temperature). Both panels have the same axes, the two main ones of all scores: "
        f"{100 * left_out.variance:.0f} % of their variance."
    )
    title = "Left-out people before and after personalisation"
    rows = [
        (m.name, run.labels[c], *_middle(m.before, m.y == c), *_middle(m.after, m.y == c))
        for m in mapped
        for c in np.unique(m.y)
    ]
    head = ("person", "label", "before, x", "y", "after, x", "y")
    numbers = table(head, rows, "Middle of each person's windows of a label")
    drawn = svg.scatters("map", title, words, panels, run.labels)
    return Section("map", "Map before and after", [figure(drawn, words, numbers)])


def _middle(xy: NDArray[np.float64], own: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(f"{v:.2f}" for v in xy[own].mean(0))


def _wants_data(run: RunFile) -> str:
    if run.media:
        return "This is drawn for runs on recordings; this one is on images, texts or sounds."
    return "Give --data, the folder of the recordings that the run was trained on, to see this."
