"""`headway report`: a training run, and what an evaluation found of it, as one HTML page."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from models.files import write_atomically
from models.report.inputs import ReportError, RunFile, read_evaluation, read_run
from models.report.left_out import LeftOut, score_left_out
from models.report.sections import report
from service.commands.progress import steps

console = Console()


def run_report(run: Path, *, data: Path | None, evaluation: Path | None, out: Path | None) -> None:
    """Write the page, beside the run's files unless `out` says where.

    Raises:
        ReportError: there is no finished run, the evaluation is not one, or the data are not the run's.
    """
    record = read_run(run)
    figures = None if evaluation is None else read_evaluation(evaluation)
    text = report(record, figures, None if data is None else _left_out(record, data))
    page = text.encode("utf-8", "replace")  # JSON may hold halves of surrogate pairs
    file = out or run / "report.html"
    if file.is_dir():
        raise ReportError(f"{file} is a folder; --out is the file to write, for example {file / 'report.html'}.")
    write_atomically(file, page)
    console.print(f"written to {file} ({len(page) / 1024:.0f} KiB)", highlight=False)


def _left_out(record: RunFile, data: Path) -> LeftOut:
    """Score the run's own people on the recordings that it was trained on."""
    if record.media:
        raise ReportError(
            f"{record.folder} is a run on images, texts or sounds; --data is for runs on recordings: leave it out."
        )
    from models.data.recordings import load_folder

    recordings = load_folder(data, ",".join(s["stem"] for s in record.provenance.subjects))
    with steps("left-out people", console) as progress:
        return score_left_out(record.folder, recordings, progress)
