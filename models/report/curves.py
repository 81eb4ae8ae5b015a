"""Sections of curves: training by step, accuracy by labelled windows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from models.evaluation.run import GENERIC, PERSONAL, ZERO_SHOT
from models.report import svg
from models.report.inputs import EvaluationFile, Network, Personal, RunFile, Stage
from models.report.page import Section, details, figure, paragraph, percent, table
from models.report.svg import Axis, Series

__all__ = ["learning_curve", "training_curves"]

ACCURACY = "window accuracy, %"


def training_curves(run: RunFile) -> Section:
    """Loss of each network by step, and how left-out people fared; or why there are no curves."""
    parts: list[str] = []
    networks = run.networks or ()
    if run.media and not networks:
        parts.append(
            paragraph(
                "The encoder stays as it is and the probe is fitted to its one optimum: there are no steps to draw."
            )
        )
    elif run.networks is None:
        parts.append(
            paragraph(
                "This run kept no history (history.json): it was trained by an older Headway. Train anew for curves; "
                "what the record has of its networks is below."
            )
        )
    elif not networks:
        parts.append(paragraph(f"The recipe {run.provenance.config.get('recipe')} trained no network."))
    if networks:
        parts += _network_figures(networks, run.tasks)
    if run.provenance.stages:
        rows = [
            (
                name,
                str(s.steps),
                "–" if s.best_step is None else str(s.best_step),
                "–" if s.log_loss is None else f"{s.log_loss:.4f}",
                ", ".join(s.held_out) or "nobody",
            )
            for name, s in zip(_names(run.provenance.stages), run.provenance.stages, strict=True)
        ]
        head = ("network", "steps taken", "best step", "log-loss there", "left out")
        parts.append(table(head, rows, "Networks: each fold leaves people out; the final one has everybody"))
    return Section("curves", "Training curves", parts)


def _names(stages: Sequence[Stage]) -> list[str]:
    """Names of a run's networks as its curves have them; the record counts folds from 0."""
    folds = [s.stage for s in stages if re.fullmatch(r"fold \d+", s.stage)]
    return [f"fold {folds.index(s.stage) + 1} of {len(folds)}" if s.stage in folds else s.stage for s in stages]


def _network_figures(networks: Sequence[Network], tasks: Sequence[str]) -> list[str]:
    loss = [Series(n.network, tuple((float(s), v) for s, v in n.loss)) for n in networks if n.loss]
    parts = [_curve("loss", "Training loss", "training loss", loss)] if loss else []
    judged = [n for n in networks if n.validation]
    curves = (1, "log-loss", "log-loss, nats"), (2, "accuracy", ACCURACY)
    if tasks:  # each task's loss is in units of what it costs to know nothing
        curves = (1, "loss", "mean loss, of knowing nothing"), (2, "worth", "mean of accuracy or variance explained, %")
        parts.insert(0, paragraph(f"The networks learn {', '.join(tasks)} together; their curves are of all of these."))
    for at, key, what in curves:
        by = 100.0 if at == 2 else 1.0
        series = [Series(n.network, tuple((float(v[0]), by * v[at]) for v in n.validation)) for n in judged]
        if series:
            parts.append(
                _curve(f"left-out-{key}" if tasks else key, f"People left out of the fold: {key}", what, series)
            )
    return parts


def _curve(key: str, title: str, unit: str, series: Sequence[Series]) -> str:
    x = svg.axis("gradient step", [p[0] for s in series for p in s.points], low=0.0)
    y = svg.axis(unit, [p[1] for s in series for p in s.points])
    rows = [(s.name, f"{a:.0f}", f"{b:.4f}") for s in series for a, b in s.points]
    words = f"{title} by gradient step, a line a network: {', '.join(s.name for s in series)}."
    drawn = svg.lines(f"curve-{key}", title, words, series, x, y)
    return figure(drawn, f"{title}, a line a network.", table(("network", "step", unit), rows, title))


def learning_curve(run: RunFile, evaluation: EvaluationFile | None) -> Section:
    """Accuracy against labelled windows: of the evaluation, and of the run's own people left out."""
    parts: list[str] = []
    if evaluation is not None:
        parts.append(_evaluated_curve(evaluation))
        if evaluation.notes:
            notes = [(note,) for note in evaluation.notes]
            parts.append(details("Not every user is in every condition", table(("who and why",), notes, "Left out")))
    own = run.evaluation.personal
    for elsewhere, where in ((False, "later repetitions"), (True, "other sessions")):
        rows = [p for p in own if p.other_sessions == elsewhere]
        if rows:
            parts.append(_own_curve(run, rows, "other" if elsewhere else "same", where))
    if run.hyper.evidence:
        parts.append(_evidence(run))
    if not parts:
        parts.append(paragraph("There is nothing to draw: no evaluation was given, and the population has no users."))
    return Section("learning-curve", "Accuracy by labelled windows", parts)


def _evaluated_curve(evaluation: EvaluationFile) -> str:
    shown = [c for c in evaluation.conditions if c != ZERO_SHOT]
    known = all(evaluation.labelled.get(c, 0) > 0 for c in shown)
    if known:
        places = {c: math.log10(evaluation.labelled[c]) for c in shown}
        ticks = {c: f"{evaluation.labelled[c]:.0f}" for c in shown}
        unit = "labelled windows a class (logarithmic), mean over users"
    else:
        places = {c: float(i) for i, c in enumerate(shown, 1)}
        ticks = {c: c for c in shown}
        unit = "what a user labelled"
    left, right = min(places.values(), default=1.0) - 0.6, max(places.values(), default=1.0)
    x = Axis(unit, left - 0.1, right + 0.1, ((left, "0"), *((places[c], ticks[c]) for c in shown)))
    generic = 100 * evaluation.table[GENERIC][ZERO_SHOT].mean.accuracy
    series = []
    for method in sorted(evaluation.table, key=lambda m: m != PERSONAL):
        row = evaluation.table[method]
        points = tuple((places[c], 100 * row[c].mean.accuracy) for c in shown if c in row)
        if method == GENERIC:
            points = ((left, generic), (right, generic))
        if points:
            series.append(Series(method, points, strong=method == PERSONAL))
    y = svg.axis(ACCURACY, [p[1] for s in series for p in s.points])
    title = f"Accuracy by labelled windows, {evaluation.table[GENERIC][ZERO_SHOT].users} people, mean"
    words = f"{title}: the personal head (thick) beside the generic (shared) one and baselines."
    head = ("method", *(f"{c} ({ticks[c]})" if known and c != ZERO_SHOT else c for c in evaluation.conditions))
    rows = [
        (
            m,
            *(
                f"{percent(s.mean.accuracy)} ± {100 * s.sd:.1f}" if (s := row.get(c)) else "–"
                for c in evaluation.conditions
            ),
        )
        for m, row in evaluation.table.items()
    ]
    said = words if known else f"{words} The evaluation did not say how many windows that is: steps are drawn alike."
    numbers = table(head, rows, "Window accuracy, %, mean ± sd over users; in brackets labelled windows a class")
    return figure(svg.lines("learning", title, words, series, x, y), said, numbers)


def _own_curve(run: RunFile, rows: Sequence[Personal], key: str, where: str) -> str:
    rows = sorted(rows, key=lambda p: (p.repetitions, p.windows or math.inf))
    names = [_shot(run, p) for p in rows]
    series = [
        Series("personal head, mean", tuple((i, 100 * p.personal) for i, p in enumerate(rows)), strong=True),
        Series("shared head, mean", tuple((i, 100 * p.generic) for i, p in enumerate(rows))),
        Series("personal head, worst person", tuple((i, 100 * p.personal_worst) for i, p in enumerate(rows))),
    ]
    x = Axis("what a person labelled", -0.3, len(rows) - 0.7, tuple((float(i), n) for i, n in enumerate(names)))
    y = svg.axis(ACCURACY, [v for s in series for _, v in s.points])
    title = f"The run's own people, each left out, scored on {where}"
    cells = [
        (n, str(p.users), f"{percent(p.personal)} ± {percent(p.personal_sd)}", percent(p.personal_worst),
         percent(p.generic), str(p.below_generic))
        for n, p in zip(names, rows, strict=True)
    ]  # fmt: skip
    head = ("labelled", "people", "personal head", "worst person", "shared head", "below the shared head")
    words = f"{title}; {run.evaluation.protocol}. Before the guard."
    return figure(
        svg.lines(f"own-{key}", title, words, series, x, y), words, table(head, cells, f"{ACCURACY}: {title}")
    )


def _shot(run: RunFile, p: Personal) -> str:
    many = f"{p.repetitions} repetition{'s' if p.repetitions > 1 else ''}"
    what = "example" if run.media else "window"
    return f"{p.windows} {what}{'s' if p.windows > 1 else ''} a class" if p.windows else many


def _evidence(run: RunFile) -> str:
    rows = [
        (
            str(e.windows),
            str(e.repetitions),
            str(e.users),
            f"{100 * e.gain:+.2f}",
            f"{100 * e.lower:+.2f}",
            percent(e.floor),
        )
        for e in sorted(run.hyper.evidence, key=lambda e: (e.windows, e.repetitions))
    ]
    head = ("windows a class", "repetitions", "people", "gain, points", "at least (95 %)", "worst person, %")
    return table(head, rows, "The record that the guard goes by: personal over shared head, people left out")
