"""People kept out of all training, who say what a run that was chosen among many is worth."""

import fnmatch
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from models.data.collections import Collection
from models.data.recordings import Recordings
from models.data.windows import WindowSpec, windows
from models.training.config import TrainingError
from models.training.features import features_of
from models.training.media_run import MediaRun
from models.training.run import Run

__all__ = ["Asked", "alike", "by_users", "of_items", "of_recordings", "without"]

Asked = dict[str, float]
"""How many people were asked, and the accuracy that the shared head had: their mean, and the worst of them."""
BLOCK = 1024


def without(subjects: str, held_out: str) -> str:
    """Globs of recordings, less those that are held out.

    Raises:
        TrainingError: `held_out` names nobody, or has a `!`.
    """
    return ",".join([subjects, *(f"!{glob}" for glob in _globs(held_out))])


def _globs(held_out: str) -> list[str]:
    """Each glob of people held out; with what leaves people out again, some would be on both sides."""
    globs = [glob.strip() for glob in held_out.split(",") if glob.strip()]
    if not globs or any(glob.startswith("!") for glob in globs):
        raise TrainingError(f"--held-out '{held_out}': globs of the people to hold out were expected, without a '!'.")
    return globs


def alike(people: Sequence[Recordings], apart: Sequence[Recordings]) -> None:
    """Check, before anything is trained, that those held out can be asked about what the others train.

    Raises:
        TrainingError: they were recorded otherwise, or have labels that none of the others has.
    """
    first, known = people[0], {rec.label_names[i] for rec in people for i in np.unique(rec.label)}
    for rec in apart:
        if (rec.channels, rec.fs, rec.modality) != (first.channels, first.fs, first.modality):
            raise TrainingError(
                f"{rec.stem} is held out, and has {rec.channels} channels of {rec.modality} at {rec.fs:g} Hz; "
                f"{first.stem} has {first.channels} of {first.modality} at {first.fs:g} Hz."
            )
        unknown = sorted({rec.label_names[i] for i in np.unique(rec.label)} - known)
        if unknown:
            raise TrainingError(f"{rec.stem} is held out, and has labels that nobody else has: {', '.join(unknown)}.")


def by_users(collection: Collection, held_out: str) -> tuple[Collection, Collection]:
    """Part a collection into users whose names match no glob, and those who match one.

    Raises:
        TrainingError: the globs are none, nobody is on one side, or a label has no example among those not held out.
    """
    globs = _globs(held_out)
    held = np.array([any(fnmatch.fnmatchcase(name, glob) for glob in globs) for name in collection.users], bool)
    if not held.any() or held.all():
        there = ", ".join(collection.users) or "none"
        raise TrainingError(f"--held-out '{held_out}' leaves nobody on one side; the users of the data: {there}.")
    rest, apart = _of(collection, ~held), _of(collection, held)
    lost = np.setdiff1d(np.arange(len(collection.labels)), rest.y)
    if len(lost):
        raise TrainingError(f"Only people who are held out have '{collection.labels[int(lost[0])]}'; hold out others.")
    return rest, apart


def _of(collection: Collection, wanted: NDArray[np.bool_]) -> Collection:
    """The items of some users."""
    kept = np.flatnonzero(wanted[collection.user])
    return replace(
        collection,
        items=tuple(collection.items[i] for i in kept),
        y=collection.y[kept],
        users=tuple(name for name, keep in zip(collection.users, wanted, strict=True) if keep),
        user=(np.cumsum(wanted) - 1)[collection.user[kept]],
        repetition=collection.repetition[kept],
    )


def of_recordings(run: Run, people: Sequence[Recordings]) -> Asked:
    """Ask people with recordings, who are `alike`: share of their windows that the shared head gets right."""
    backbone, spec = run.backbone(), WindowSpec(run.signal.length, run.signal.stride)
    hits = []
    for rec in people:
        found = windows(rec, spec)
        y = np.array([run.labels.index(n) if n in run.labels else -1 for n in rec.label_names])[found.y]
        with torch.inference_mode():
            blocks = [backbone(torch.from_numpy(found.x[i : i + BLOCK])).numpy() for i in range(0, len(y), BLOCK)]
        hits.append(_hits(run, np.concatenate(blocks), y).mean())
    return _asked(hits)


def of_items(run: MediaRun, apart: Collection) -> Asked:
    """Ask users of images, sounds or texts: share of their items that the shared head gets right."""
    z, _ = features_of(run.backbone(), apart)
    hit = _hits(run, z, apart.y)
    return _asked([hit[apart.user == u].mean() for u in range(len(apart.users))])


def _hits(run: Run | MediaRun, z: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray((z @ run.prior.generic_weight.T + run.prior.generic_bias).argmax(1) == y)


def _asked(shares: Sequence[float]) -> Asked:
    return {"people": len(shares), "shared": float(np.mean(shares)), "worst": float(np.min(shares))}
