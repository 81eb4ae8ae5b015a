"""`headway bundle convert`: recordings, files or synthetic windows through the precision gate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from exporters import bundle as bundles
from exporters.bundle import Bundle
from exporters.gate import Agreement, Answers, PrecisionError
from exporters.int8 import Task, quantise_outputs
from exporters.precision import convert
from exporters.worth import Labelled
from models.data.paired import load_parts, pair
from models.data.recordings import load_folder
from models.data.windows import WindowSpec, windows
from models.evaluation.subjects import check_signal
from service.commands.judging import collected, judges, located, together
from service.commands.judging_outputs import of_table

MOST_WINDOWS = 4096
JUDGED_SHARE = 3
"""Of files and texts every so many of a label judge an INT8 variant; the others give the ranges of activations."""


def run_conversion(
    model: Path,
    models: Path,
    *,
    precision: str,
    data: Sequence[str],
    subjects: str,
    held_out: str | None,
    seed: int,
) -> str:
    """Convert a bundle and say what the gate measured.

    Raises:
        PrecisionError: there is no data to measure with, or no variant passes the gate.
    """
    bundle = bundles.load(bundles.resolve(model))
    if precision == "int8":
        return _int8(model, models, bundle, data, subjects, held_out, seed)
    some = None
    if data:
        one = len(data) == 1 and Path(data[0]).exists()  # whatever its labels are: none is looked at
        folders = [Path(data[0])] if one else list(located(bundle.manifest, data).values())
        some = _some(np.concatenate([_windows(bundle, folder, subjects) for folder in folders]), seed)
    path, found = convert(model, models, windows=some, seed=seed)
    kind = "synthetic" if some is None else "recorded"
    return f"{found.windows} {kind} windows, {_said(found)}\nwritten to {path}"


def _int8(
    model: Path, models: Path, bundle: Bundle, data: Sequence[str], subjects: str, held_out: str | None, seed: int
) -> str:
    if not data:
        raise PrecisionError("int8 needs --data: ranges of activations and accuracy are measured on real windows")
    spec = bundle.manifest.input
    found = located(bundle.manifest, data, together=not spec.parts)
    if spec.media is None and (not spec.parts or all(path.is_dir() for path in found.values())):
        if held_out is None:
            raise PrecisionError("int8 needs --held-out: globs of the people in --data that the variant is judged on")
        judged, _ = judges(bundle.manifest, bundle.file, found, held_out, seed)
        ranges = np.concatenate([_windows(bundle, path, subjects, but=held_out) for path in found.values()])
    elif bundle.manifest.outputs and "" in found:
        ranges, judged = _split(
            of_table(bundle.manifest, bundle.file, found[""], bundle.manifest.names, seed=seed), seed
        )
    else:
        parts = {name: _files(bundle, name, path, seed) for name, path in found.items()}
        judged = {name: labelled for name, (_, labelled) in parts.items()}
        rows = [x for x, _ in parts.values()]  # texts of another length do not go into one array
        ranges = np.concatenate([x for x in rows if x.shape[1:] == rows[0].shape[1:]])
    path, agreement, tasks = quantise_outputs(model, models, _some(ranges, seed), judged, seed=seed)
    told = [f"{f'{name}: ' if name else ''}{_worth(task)}" for name, task in tasks.items()]
    return "\n".join((*told, f"{agreement.windows} recorded windows, {_said(agreement)}", f"written to {path}"))


def _worth(task: Task) -> str:
    personal = ""
    if task.personal is not None and task.personal_int8 is not None:
        personal = f", personal heads {task.personal:.2%} → {task.personal_int8:.2%}"
    by = f"{task.people} people" if task.people else "inputs without users"
    if task.rmse:
        return f"{by}: shared head's RMSE {_numbers(task.rmse)} → {_numbers(task.rmse_int8)}"
    return f"{by}: shared head right {task.shared:.2%} → {task.shared_int8:.2%}{personal}"


def _said(found: Agreement) -> str:
    kept = "heads decide alike: the feature space is kept" if found.same else "heads differ: a feature space of its own"
    if not found.outputs:
        decided = f"{found.decisions:.3%} of decisions the same; {kept}"
    else:
        decided = "; ".join(_said_of(name, said, kept=found.keeps(name)) for name, said in found.outputs.items())
    return f"{found.heads} heads: largest error {found.max_error:.1e} standard deviations, {decided}"


def _said_of(name: str, said: Answers, *, kept: bool) -> str:
    how = f"{said.decisions:.3%} of decisions the same"
    if said.change is not None:
        how = f"values change by {said.change:.3%} of the shared head's usual error"
    space = "its feature space is kept" if kept else "a feature space of its own"
    return f"{f'{name}: ' if name else ''}{how}, {space}"


def _some(x: np.ndarray, seed: int) -> np.ndarray:
    return x[np.sort(np.random.default_rng(seed).permutation(len(x))[:MOST_WINDOWS])]


def _windows(bundle: Bundle, data: Path, subjects: str, but: str | None = None) -> np.ndarray:
    """Windows of recordings, whatever their labels; `but`: globs of people who are left out.

    Raises:
        PrecisionError: the model reads something else, or nobody is left.
    """
    spec = bundle.manifest.input
    if spec.parts:
        return _packed(bundle, data, subjects, but)
    if spec.media is not None:
        raise PrecisionError(
            f"model {bundle.manifest.name} reads {spec.media.kind}s, and fp16 is compared on recordings or on made-up "
            "inputs: leave --data out (--precision int8 reads it)"
        )
    left = {rec.stem for rec in load_folder(data, but)} if but is not None else set()
    people = [rec for rec in load_folder(data, subjects) if rec.stem not in left]
    for rec in people:
        check_signal(rec, spec, rec.label_names)
    if not people:
        raise PrecisionError("--held-out leaves nobody of --subjects to take ranges from")
    cut = WindowSpec(spec.window_shape[-1], spec.stride)
    return np.concatenate([windows(rec, cut).x for rec in people]).astype(spec.dtype)


def _packed(bundle: Bundle, data: Path, subjects: str, but: str | None) -> np.ndarray:
    """Rows of a fused bundle, of people who are not left out."""
    spec, manifest = bundle.manifest.input, bundle.manifest
    if not data.is_dir():
        return np.asarray(together(manifest, bundle.file, data, subjects).x)
    recordings = load_parts(data, spec, subjects)
    left = {rec.stem for own in load_parts(data, spec, but).values() for rec in own} if but is not None else set()
    kept = {name: [rec for rec in own if rec.stem not in left] for name, own in recordings.items()}
    if not all(kept.values()):
        raise PrecisionError("--held-out leaves nobody of --subjects to take ranges from")
    people, _ = pair(kept, {part.name: part for part in spec.parts}, manifest.labels)
    return np.concatenate([person.packed(spec) for person in people])


def _split(found: dict[str, Labelled], seed: int) -> tuple[np.ndarray, dict[str, Labelled]]:
    """Rows that give ranges, and what each output is judged on: one in so many of those that all share."""
    x = next(iter(found.values())).x
    judge = np.random.default_rng(seed).permutation(len(x)) % JUDGED_SHARE == 0
    at = np.cumsum(judge) - 1
    judged, shown = dict[str, Labelled](), x[judge]
    for name, labelled in found.items():
        assert labelled.rows is not None
        there = judge[labelled.rows]
        rows = at[labelled.rows[there]]
        judged[name] = Labelled(shown, labelled.y[there], labelled.user[there], labelled.repetition[there], rows)
    return x[~judge], judged


def _files(bundle: Bundle, output: str, data: Path, seed: int) -> tuple[np.ndarray, Labelled]:
    """Rows of files or texts: those that give ranges, and those that judge an output."""
    manifest = bundle.manifest.of_output(output) if output else bundle.manifest
    reads = together if manifest.input.parts else collected
    found = reads(manifest, bundle.file, data, seed=seed)
    order = np.random.default_rng(seed).permutation(len(found.y))
    nth = np.zeros(len(found.y), np.int64)
    for c in np.unique(found.y):
        own = order[found.y[order] == c]
        nth[own] = np.arange(len(own))
    judge = nth % JUDGED_SHARE == 0
    return found.x[~judge], Labelled(found.x[judge], found.y[judge], found.user[judge], found.repetition[judge])


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
