"""`headway report`: a training run, and what an evaluation found of it, as one HTML page."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from models.files import write_atomically
from models.report.inputs import ReportError, RunFile, check_belongs, read_evaluation, read_run
from models.report.left_out import score_left_out
from models.report.scored import LeftOut
from models.report.sections import report
from service.commands.progress import steps

console = Console()


def run_report(
    run: Path,
    *,
    data: Path | None,
    evaluation: Path | None,
    out: Path | None,
    cache: Path | None = None,
    task: str | None = None,
) -> None:
    """Write the page, beside the run's files unless `out` says where.

    Raises:
        ReportError: there is no finished run, the evaluation is not one or not of this run, or the data are
            not the run's.
    """
    record = read_run(run, task)
    if record.tasks and (data is not None or evaluation is not None):
        raise ReportError(f"{run} is a run of several tasks, whose page has its own figures only; leave --data away.")
    figures, belongs = None, ""
    if evaluation is not None:
        figures = read_evaluation(evaluation)
        belongs = check_belongs(record, figures, evaluation)
    text = report(record, figures, None if data is None else _left_out(record, data, cache), belongs)
    page = text.encode("utf-8", "replace")  # JSON may hold halves of surrogate pairs
    file = out or run / "report.html"
    if file.is_dir():
        raise ReportError(f"{file} is a folder; --out is the file to write, for example {file / 'report.html'}.")
    write_atomically(file, page)
    console.print(f"written to {file} ({len(page) / 1024:.0f} KiB)", highlight=False)


def _left_out(record: RunFile, data: Path, cache: Path | None) -> LeftOut:
    """Score the run's own people, or labels where there are none, on the data that it was trained on."""
    if record.media:
        from models.data.collections import load_collection
        from models.report.media_left_out import score_media

        collection = load_collection(data, int(record.provenance.config["seed"]))
        with steps("left out", console) as progress:
            return score_media(record, collection, cache, progress)
    from models.data.recordings import load_folder

    recordings = load_folder(data, ",".join(s["stem"] for s in record.provenance.subjects))
    with steps("left-out people", console) as progress:
        return score_left_out(record.folder, recordings, progress)
