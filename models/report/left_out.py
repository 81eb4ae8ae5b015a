"""A run's people as strangers: each left out of prior and network, calibrated with one repetition, and scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from models.data.recordings import Recordings
from models.data.windows import Windows, WindowSpec, shared_samples, windows
from models.report.scored import Examples, LeftOut, Scorer

__all__ = ["score_left_out"]


def score_left_out(
    folder: Path, recordings: Sequence[Recordings], progress: Callable[[str, int, int], None]
) -> LeftOut:
    """Score each person of a run under a prior and a network that they had no part in.

    A person calibrates with the first repetition of their first session as a service would do it, guard included; all
    other windows are scored.

    Raises:
        TrainingError: these are not the run's recordings, its checkpoints are gone, or nobody can be scored.
    """
    from models.training import TrainingError, load_run
    from models.training.strangers import strangers

    run = load_run(folder)
    spec = WindowSpec(run.signal.length, run.signal.stride)
    scorer = Scorer(len(run.labels))
    order = list(dict.fromkeys(r.subject for r in recordings))
    progress("windows and features", 0, len(order))
    for done, stranger in enumerate(strangers(run, recordings)):
        progress(stranger.name, done, len(order))
        own = _windows([r for r in recordings if r.subject == stranger.name], spec, run.labels)
        sitting = own.session == own.session[0]
        shown = sitting & (own.repetition == own.repetition[sitting].min())
        if shown.all():
            scorer.skip(stranger.name, "one repetition only: nothing is left to score")
            continue
        first, rest = (
            Examples(stranger.features(w.x), w.y, w.repetition) for w in (own.select(shown), own.select(~shown))
        )
        scorer.score(stranger.name, stranger.prior, first, rest, shared_samples(own.x[shown]))
    progress("done", len(order), len(order))
    found = scorer.found(order, "These are the recordings of the training, by their digests.")
    if found is None:
        raise TrainingError("Nobody can be scored: {}: {}.".format(*scorer.skipped[0]))
    return found


def _windows(files: Sequence[Recordings], spec: WindowSpec, labels: Sequence[str]) -> Windows:
    """A person's windows of all their files in order; a session is one of a file, labels are the run's."""
    found = [windows(rec, spec) for rec in files]
    index = [np.array([labels.index(n) if n in labels else -1 for n in rec.label_names]) for rec in files]
    return Windows(
        x=np.concatenate([w.x for w in found]),
        y=np.concatenate([names[w.y] for w, names in zip(found, index, strict=True)]),
        repetition=np.concatenate([w.repetition for w in found]),
        session=np.concatenate([1000 * i + w.session for i, w in enumerate(found)]),
        recording=np.concatenate([100_000 * i + w.recording for i, w in enumerate(found)]),
        start=np.concatenate([w.start for w in found]),
    )
