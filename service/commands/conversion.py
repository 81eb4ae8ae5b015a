"""`headway bundle convert`: recordings or synthetic windows through the precision gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from exporters import bundle as bundles
from exporters.precision import convert
from models.data.recordings import load_folder
from models.data.windows import WindowSpec, windows
from models.evaluation.subjects import check_signal

MOST_WINDOWS = 4096


def run_conversion(model: Path, models: Path, *, data: Path | None, subjects: str, seed: int) -> str:
    """Convert a bundle and say what the gate measured."""
    recorded = None
    if data is not None:
        spec = bundles.read_manifest(bundles.resolve(model))[0].input
        cut = WindowSpec(spec.window_shape[-1], spec.stride)
        people = load_folder(data, subjects)
        for rec in people:
            check_signal(rec, spec, rec.label_names)
        every = np.concatenate([windows(rec, cut).x for rec in people])
        some = np.random.default_rng(seed).permutation(len(every))[:MOST_WINDOWS]
        recorded = every[np.sort(some)].astype(spec.dtype)
    path, found = convert(model, models, windows=recorded, seed=seed)
    kept = "heads decide alike: the feature space is kept" if found.same else "heads differ: a feature space of its own"
    kind = "synthetic" if recorded is None else "recorded"
    return (
        f"{found.windows} {kind} windows, {found.heads} heads: largest error "
        f"{found.max_error:.1e} standard deviations, {found.decisions:.3%} of decisions the same; {kept}\n"
        f"written to {path}"
    )
