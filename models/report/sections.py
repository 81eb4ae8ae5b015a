"""The report of a run as a page, from what was read; nothing here reads, trains or scores."""

from __future__ import annotations

from collections.abc import Sequence

from models.evaluation.run import GENERIC, PERSONAL, ZERO_SHOT
from models.report import svg
from models.report.curves import learning_curve, training_curves
from models.report.inputs import EvaluationFile, RunFile, Stage
from models.report.page import Section, details, page, paragraph, percent, table
from models.report.people import before_and_after, by_user, confusion, guard
from models.report.scored import LeftOut

__all__ = ["report"]


def report(
    run: RunFile, evaluation: EvaluationFile | None = None, left_out: LeftOut | None = None, belongs: str = ""
) -> str:
    """The page of a run; the same inputs give the same bytes.

    Args:
        run: the run's record, with its history where it kept one.
        evaluation: of the bundle that was exported from it, on people it never saw.
        left_out: its own people, or labels, each left out; made from the data of the training.
        belongs: how it is known that the evaluation is of this run (`check_belongs`).
    """
    sections = [
        _summary(run, evaluation, belongs),
        training_curves(run),
        learning_curve(run, evaluation),
        by_user(run, evaluation, left_out),
        guard(run, evaluation, left_out),
        confusion(run, left_out),
        before_and_after(run, left_out),
        _timings(run, evaluation),
        _made_of(run, evaluation),
    ]
    lead = "A training run of Headway, and what personal heads are worth on people whom the model did not see."
    return page(f"Training report: {run.name}", lead, sections)


def _summary(run: RunFile, evaluation: EvaluationFile | None, belongs: str) -> Section:
    zero, config = run.evaluation.zero_shot, run.provenance.config
    people = f"{run.evaluation.users} people" if run.evaluation.users else "no users: the prior is pooled"
    if run.tasks:
        people += f"; {run.task}, one of the tasks {', '.join(run.tasks)}"
    rows = [("population", people), ("labels", f"{len(run.labels)}: {', '.join(run.labels)}")]
    if run.signal is not None:
        s = run.signal
        rows.append(
            (
                "signal",
                f"{s.get('modality')}, {s.get('channels')} channels, {s.get('fs')} Hz, windows of {s.get('length')} "
                f"samples every {s.get('stride')}, {s.get('unit')}",
            )
        )
    rows.append(("recipe", f"{config.get('recipe', 'linear-probe')}, seed {config.get('seed')}"))
    rows.append(
        (
            f"shared head on left-out {zero.of}",
            f"{percent(zero.mean)} ± {percent(zero.sd)} %, worst {percent(zero.worst)} %",
        )
    )
    if zero.at_other_placements is not None:
        rows.append(("the same, sensor turned or flipped", f"{percent(zero.at_other_placements)} %"))
    if evaluation is not None:
        generic = evaluation.table[GENERIC][ZERO_SHOT]
        rows.append(
            (
                f"evaluated on {generic.users} people",
                f"shared head {percent(generic.mean.accuracy)} %, worst {percent(generic.worst)} % "
                f"({generic.worst_user})",
            )
        )
        for condition, found in evaluation.table[PERSONAL].items():
            rows.append(
                (
                    f"personal head, {condition}",
                    f"{percent(found.mean.accuracy)} %, worst {percent(found.worst)} % ({found.worst_user}), "
                    f"{len(found.harmed)} of {found.users} harmed",
                )
            )
    return Section(
        "summary",
        "In short",
        [table(("what", "value"), rows, "The run and its main figures"), *_held(run, evaluation, belongs)],
    )


def _held(run: RunFile, evaluation: EvaluationFile | None, belongs: str) -> list[str]:
    """Say whom the evaluation scored, and warn where they are the run's own people."""
    if evaluation is None:
        return [
            paragraph("No evaluation was given (--evaluation): figures below are of the run's own people, left out.")
        ]
    trained = {s.get("digest") for s in run.provenance.subjects}
    own = [s.get("stem", "") for s in evaluation.made_of.subjects if s.get("digest") in trained]
    said = [
        paragraph(
            f"Evaluated: the bundle {evaluation.made_of.model}, protocol {evaluation.protocol}: "
            f"{evaluation.description}. {evaluation.recordings_scored} recordings, {evaluation.windows_scored:,} "
            f"windows. {belongs}".strip()
        )
    ]
    if own:
        said.append(paragraph(f"NOT HELD OUT: this run was trained on {', '.join(own)}.", "harm"))
    return said


def _timings(run: RunFile, evaluation: EvaluationFile | None) -> Section:
    made = run.provenance
    rows = [
        ("training, all", f"{made.seconds:.1f}"),
        *((f"training, {k}", f"{v:.1f}") for k, v in made.timings.items()),
    ]
    if evaluation is not None and evaluation.made_of.seconds is not None:
        rows.append(("evaluation", f"{evaluation.made_of.seconds:.1f}"))
    parts = [table(("what", "seconds"), rows, f"Begun {made.started}, finished {made.finished}")]
    if made.timings:
        bars = [(k, round(v, 1)) for k, v in made.timings.items()]
        title = "Seconds of each stage of training"
        x = svg.axis("seconds", [v for _, v in bars], low=0.0)
        parts.insert(0, svg.bars("seconds", title, f"{title}; the table has the numbers.", bars, x))
        parts.append(paragraph("A resumed run's seconds are those of its last process."))
    else:
        parts.append(paragraph("The run did not record the seconds of its stages."))
    return Section("timings", "Timings", parts)


def _made_of(run: RunFile, evaluation: EvaluationFile | None) -> Section:
    made = run.provenance
    rows = [("training command", made.command or "–"), ("commit", made.commit or "–")]
    rows += [(f"version of {k}", v) for k, v in made.versions.items()]
    rows += [(k.replace("_", " "), _setting(k, v, made.stages)) for k, v in made.config.items()]
    rows += [(f"data, {k}", str(v)) for k, v in made.data.items()]
    rows += [(f"backbone, {k}", v) for k, v in made.backbone.items()]
    if evaluation is not None:
        told = evaluation.made_of
        rows += [("evaluation command", told.command), ("feature space", told.feature_space)]
        rows += [("configuration of heads", told.configuration)]
        rows += [(f"evaluation, version of {k}", v) for k, v in told.versions.items()]
    subjects = [(s.get("stem", ""), s.get("digest", "")) for s in made.subjects]
    parts = [table(("what", "value"), rows, "Commands, settings and versions")]
    if subjects:
        parts.append(details("People of the training", table(("file", "digest"), subjects, "Recordings, by content")))
    return Section("made-of", "What it was made of", parts)


def _setting(name: str, value: object, stages: Sequence[Stage]) -> str:
    """A setting in words; folds are at most as many as people, and without a network there are none."""
    if name != "folds":
        return str(value)
    folds = sum(bool(s.held_out) for s in stages)
    return str(value) if folds == value else f"{value} at most; {folds} networks were trained on folds"
