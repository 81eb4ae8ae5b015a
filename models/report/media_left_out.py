"""A run's images, texts or sounds, left out: of its people each, and where there are none a part of every label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.data.collections import Collection
from models.heads.head import softmax
from models.report.inputs import ReportError, RunFile
from models.report.scored import Examples, LeftOut, Scorer

if TYPE_CHECKING:
    from models.training.media_run import MediaRun

__all__ = ["score_media"]

FROZEN = ("linear-probe", "cached-features")
"""Recipes that leave the encoder as it is; those of others have seen everybody, and nobody is left out of them."""


def score_media(
    run: RunFile, collection: Collection, cache: Path | None, progress: Callable[[str, int, int], None]
) -> LeftOut:
    """Score a run's data by probes, and people's heads by priors, that they had no part in.

    A person calibrates with the first of their repetitions as a service would do it, guard included; all else is
    scored. Pooled data have no people: only the probe is scored, by the folds of the training.

    Raises:
        ReportError: these are not the run's data, or its recipe trained the encoder.
        TrainingError: an item cannot be read.
    """
    from models.backbones.probe import EVIDENCE_FLOOR
    from models.training.features import features_of
    from models.training.media_run import load_media_run
    from models.training.pooling import probe_prior, space_of
    from models.training.probe_fit import folds_of, left_out_logits

    recipe = run.provenance.config.get("recipe", run.provenance.recipe or FROZEN[0])
    if recipe not in FROZEN:
        raise ReportError(
            f"{run.folder} was trained by the recipe {recipe}, which changed the encoder on everybody's data: nothing "
            "of them is left out. Leave --data away."
        )
    media = load_media_run(run.folder)
    encoder = media.backbone().encoder
    checked = _known_again(run, media, collection)
    found, _ = features_of(encoder, collection, cache, lambda done, total: progress("features", done, total))
    z = found.astype(np.float64)
    z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    y, user, labels = collection.y, collection.user, collection.labels
    pooled, personal = run.hyper.pooled, int(run.provenance.config["personal"])
    folds = folds_of(y, user, not pooled, int(run.provenance.config["seed"]))
    _, _, logits = left_out_logits(space_of(z, y, personal).reduced(z), y, len(labels), folds)
    if pooled:
        progress("done", len(collection), len(collection))
        confusion = np.zeros((len(labels), len(labels)), np.int64)
        np.add.at(confusion, (y, logits.argmax(1)), 1)
        return LeftOut(confusion, checked=checked)
    evidence = np.log(np.maximum(softmax(logits), np.exp(EVIDENCE_FLOOR)))  # as the graph has it
    scorer = Scorer(len(labels))
    for u, name in enumerate(collection.users):
        progress(name, u, len(collection.users))
        own = user == u
        shown = own & (collection.repetition == collection.repetition[own].min())
        if shown.sum() == own.sum():
            scorer.skip(name, "one repetition only: nothing is left to score")
            continue
        space = space_of(z[~own], y[~own], personal)
        prior = probe_prior(
            space.personal(z[~own]), y[~own], user[~own], collection.repetition[~own], labels, run.hyper
        )
        features = np.concatenate([space.personal(z), evidence], 1)
        first, rest = (Examples(features[m], y[m], collection.repetition[m]) for m in (shown, own & ~shown))
        scorer.score(name, prior, first, rest)
    progress("done", len(collection.users), len(collection.users))
    left_out = scorer.found(collection.users, checked)
    if left_out is None:
        raise ReportError("Nobody can be scored: {}: {}.".format(*scorer.skipped[0]))
    return left_out


def _known_again(run: RunFile, media: MediaRun, collection: Collection) -> str:
    """Compare the data with what the run kept of them: numbers, labels, and the real inputs of the parity gate.

    Raises:
        ReportError: they are not the run's data.
    """
    from models.data.media import MediaError, reader_of

    told = run.provenance.data
    here = {"items": len(collection), "kind": collection.kind, "users": len(collection.users)}
    other = [f"{here[what]} {what}, not {told[what]}" for what in here if what in told and told[what] != here[what]]
    if tuple(collection.labels) != run.labels:
        other.append(f"labels {', '.join(collection.labels)}, not {', '.join(run.labels)}")
    if other:
        raise ReportError(f"These are not the data of the run in {run.folder}: {'; '.join(other)}.")
    reader = reader_of(media.input, media.files)
    assert reader is not None
    picked = np.linspace(0, len(collection) - 1, len(media.items)).astype(int)
    try:
        found = reader.read([collection.read(int(i)) for i in picked])
    except MediaError as e:
        raise ReportError(f"These are not the data of the run in {run.folder}: {e}.") from e
    if found.shape != media.items.shape or not np.array_equal(found, media.items):
        raise ReportError(
            f"These are not the data of the run in {run.folder}: the {len(picked)} items that it kept are others."
        )
    return (
        f"That these are the data of the training was told by their numbers, their labels, and {len(picked)} of "
        f"{len(collection)} items, which are the same as read."
    )
