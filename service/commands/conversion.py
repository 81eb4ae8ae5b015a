"""`headway bundle convert`: recordings, files or synthetic windows through the precision gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from exporters import bundle as bundles
from exporters.bundle import Bundle
from exporters.int8 import Labelled, quantise
from exporters.precision import Agreement, PrecisionError, convert
from models.data.paired import load_parts, pair
from models.data.recordings import load_folder
from models.data.windows import WindowSpec, windows
from models.evaluation.subjects import check_signal
from service.commands.judging import collected, recorded, together

MOST_WINDOWS = 4096
JUDGED_SHARE = 3
"""Of files and texts every so many of a label judge an INT8 variant; the others give the ranges of activations."""


def run_conversion(
    model: Path, models: Path, *, precision: str, data: Path | None, subjects: str, held_out: str | None, seed: int
) -> str:
    """Convert a bundle and say what the gate measured.

    Raises:
        PrecisionError: there is no data to measure with, or no variant passes the gate.
    """
    if precision == "int8":
        return _int8(model, models, data, subjects, held_out, seed)
    some = None if data is None else _some(_windows(bundles.load(bundles.resolve(model)), data, subjects), seed)
    path, found = convert(model, models, windows=some, seed=seed)
    kind = "synthetic" if some is None else "recorded"
    return f"{found.windows} {kind} windows, {_said(found)}\nwritten to {path}"


def _int8(model: Path, models: Path, data: Path | None, subjects: str, held_out: str | None, seed: int) -> str:
    if data is None:
        raise PrecisionError("int8 needs --data: ranges of activations and accuracy are measured on real windows")
    bundle = bundles.load(bundles.resolve(model))
    spec = bundle.manifest.input
    if spec.media is not None or (spec.parts and not data.is_dir()):
        ranges, judged = _files(bundle, data, seed)
    elif held_out is None:
        raise PrecisionError("int8 needs --held-out: globs of the people in --data that the variant is judged on")
    elif spec.parts:
        ranges = _windows(bundle, data, subjects, but=held_out)
        judged = together(bundle.manifest, bundle.file, data, held_out)
    else:
        ranges, judged = _windows(bundle, data, subjects, but=held_out), recorded(bundle.manifest, data, held_out)
    path, found, task = quantise(model, models, _some(ranges, seed), judged, seed=seed)
    personal = ""
    if task.personal is not None and task.personal_int8 is not None:
        personal = f", personal heads {task.personal:.2%} → {task.personal_int8:.2%}"
    return (
        f"{task.people} people: shared head right {task.shared:.2%} → {task.shared_int8:.2%}{personal}\n"
        f"{found.windows} recorded windows, {_said(found)}\nwritten to {path}"
    )


def _said(found: Agreement) -> str:
    kept = "heads decide alike: the feature space is kept" if found.same else "heads differ: a feature space of its own"
    return (
        f"{found.heads} heads: largest error {found.max_error:.1e} standard deviations, "
        f"{found.decisions:.3%} of decisions the same; {kept}"
    )


def _some(x: np.ndarray, seed: int) -> np.ndarray:
    return x[np.sort(np.random.default_rng(seed).permutation(len(x))[:MOST_WINDOWS])]


def _windows(bundle: Bundle, data: Path, subjects: str, but: str | None = None) -> np.ndarray:
    """Windows of recordings, whatever their labels; `but`: globs of people who are left out."""
    spec = bundle.manifest.input
    if spec.parts:
        return _packed(bundle, data, subjects, but)
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
    spec = bundle.manifest.input
    if not data.is_dir():
        return together(bundle.manifest, bundle.file, data, subjects).x
    recordings = load_parts(data, spec, subjects)
    left = {rec.stem for own in load_parts(data, spec, but).values() for rec in own} if but is not None else set()
    kept = {name: [rec for rec in own if rec.stem not in left] for name, own in recordings.items()}
    if not all(kept.values()):
        raise PrecisionError("--held-out leaves nobody of --subjects to take ranges from")
    people, _ = pair(kept, {part.name: part for part in spec.parts}, bundle.manifest.labels)
    return np.concatenate([person.packed(spec) for person in people])


def _files(bundle: Bundle, data: Path, seed: int) -> tuple[np.ndarray, Labelled]:
    """Rows of files or texts: those that give ranges, and those that judge."""
    reads = together if bundle.manifest.input.parts else collected
    found = reads(bundle.manifest, bundle.file, data, "*", seed=seed)
    order = np.random.default_rng(seed).permutation(len(found.y))
    nth = np.zeros(len(found.y), np.int64)
    for c in np.unique(found.y):
        own = order[found.y[order] == c]
        nth[own] = np.arange(len(own))
    judge = nth % JUDGED_SHARE == 0
    return found.x[~judge], Labelled(found.x[judge], found.y[judge], found.user[judge], found.repetition[judge])
