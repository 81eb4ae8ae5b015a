"""`headway calibrate` and `headway predict`: a subject's recordings against a running service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from models.data.recordings import Recordings, load
from models.data.windows import Windows, WindowSpec, first_windows, windows
from service.client import Client, ServiceError

console = Console()


def run_calibration(
    url: str,
    model: str,
    user: str,
    file: Path,
    session: str | None,
    repetitions: str,
    per_class: int | None,
    fields: dict[str, Any],
    task: str | None = None,
) -> None:
    """Send labelled windows of a file, for one of several outputs where there are some, and print what came of them."""
    rec = load(file)
    session = session or rec.session_names[0]
    with Client(url) as client:
        spec = _window_spec(client, model, rec, task)
        if per_class is not None:
            chosen = first_windows(rec, spec, per_class, session=session)
        else:
            chosen = windows(rec, spec, sessions={session}, repetitions=_numbers(repetitions))
        if not len(chosen):
            raise ValueError(f"{file} has no such windows; {_what_there_is(rec)}")
        names = [rec.label_names[i] for i in chosen.y]
        report = client.calibrate(model, user, chosen.x, names, chosen.repetition.tolist(), task=task, **fields)
    console.print(f"{report['outcome']} (version {report['version']}, {report['evidence']}): {report['reason']}")
    for warning in report["warnings"]:
        console.print(f"[yellow]warning:[/] {warning}")
    table = Table("label", "windows", "repetitions")
    for label, count in report["classes"].items():
        table.add_row(label, str(count["samples"]), str(count["repetitions"]))
    console.print(table)


def run_prediction(
    url: str,
    model: str,
    file: Path,
    user: str | None,
    session: str | None,
    repetitions: str | None,
    task: str | None = None,
) -> None:
    """Predict the windows of a file and print the accuracy of each label."""
    rec = load(file)
    session = session or rec.session_names[-1]
    with Client(url) as client:
        wanted = None if repetitions is None else _numbers(repetitions)
        chosen = windows(rec, _window_spec(client, model, rec, task), sessions={session}, repetitions=wanted)
        if not len(chosen):
            raise ValueError(f"{file} has no such windows; {_what_there_is(rec)}")
        labels = _output(client.metadata(model), task)["labels"]
        if foreign := sorted({rec.label_names[i] for i in np.unique(chosen.y)} - set(labels)):
            raise ValueError(
                f"{file} has windows labelled {', '.join(foreign)}, which model {model!r} does not know; "
                f"its labels are {', '.join(labels)}"
            )
        mark = "" if task is None else f"{task}."
        probabilities, answer = client.infer(model, chosen.x, user=user, output=f"{mark}probabilities")
    # The first output's have plain names in the answer.
    head, version = (answer.get(f"{mark}{name}", answer.get(name)) for name in ("head", "head_version"))
    hit = np.array(labels)[probabilities.argmax(1)] == np.array(rec.label_names)[chosen.y]
    console.print(_accuracy_table(chosen, rec, hit))
    by = "the shared head" if head == "shared" else f"{user}'s head, version {version}"
    which = "all repetitions" if repetitions is None else f"repetitions {repetitions}"
    console.print(f"{hit.mean():.1%} of {len(hit)} windows of session {session!r}, {which}, by {by}", highlight=False)
    if head == "personal" and session == rec.session_names[0] and repetitions is None:
        console.print(
            "[yellow]note:[/] windows that calibrated this head are among them, if they came from this session"
        )


def _what_there_is(rec: Recordings) -> str:
    parts = [
        f"{name} (repetitions {', '.join(map(str, sorted({int(r) for r in rec.repetition[rec.session == i]})))})"
        for i, name in enumerate(rec.session_names)
    ]
    return f"it has the sessions {', '.join(parts)}"


def _accuracy_table(chosen: Windows, rec: Recordings, hit: NDArray[np.bool_]) -> Table:
    table = Table("label", "windows", "right")
    for i, label in enumerate(rec.label_names):
        mask = chosen.y == i
        if mask.any():
            table.add_row(label, str(int(mask.sum())), f"{hit[mask].mean():.1%}")
    return table


def _output(metadata: dict[str, Any], task: str | None) -> dict[str, Any]:
    """What a model says of its output, or of one of several: the one named, else the first."""
    found: dict[str, Any] = metadata["parameters"]
    if task is None:
        return found
    outputs: dict[str, dict[str, Any]] = found.get("outputs", {})
    if task not in outputs:
        raise ServiceError(
            f"model {metadata['name']!r} has no output {task!r}; "
            + (f"it has {', '.join(outputs)}" if outputs else "its one output has no name: leave --task out")
        )
    return outputs[task]


def _window_spec(client: Client, model: str, rec: Recordings, task: str | None) -> WindowSpec:
    metadata = client.metadata(model)
    if _output(metadata, task).get("task") == "regression":
        raise ServiceError(f"model {model!r} is a regression there; recordings have labels, so it is called over HTTP")
    if len(metadata["inputs"]) > 1:
        named = ", ".join(entry["name"] for entry in metadata["inputs"])
        raise ServiceError(
            f"model {model!r} takes {named}, and this command sends recordings of one kind; `headway predict` takes a "
            "file or text for each (--file NAME=PATH, --text NAME=TEXT), and calibrations go over HTTP (docs/api.md)"
        )
    shape = metadata["inputs"][0]["shape"]
    if len(shape) != 3 or -1 in shape[1:]:
        raise ServiceError(f"model {model!r} takes {metadata['parameters']['modality']}; this command sends recordings")
    _, channels, length = shape
    rate = metadata["parameters"]["sample_rate"]
    if rec.channels != channels or abs(rec.fs - rate) > 1e-6 * rate:
        raise ServiceError(
            f"model {model!r} takes {channels} channels at {rate:g} Hz; "
            f"the recordings have {rec.channels} at {rec.fs:g} Hz"
        )
    return WindowSpec(length, metadata["parameters"]["stride"])


def _numbers(text: str) -> set[int]:
    """Read '0', '0,1' or '0-3'."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"--repetitions {text!r} cannot be read; examples: 0 or 0,1 or 0-3")
        found.update(range(int(first), int(last or first) + 1))
    return found
