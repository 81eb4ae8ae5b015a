"""Fine-tuning recipes on images, texts and sounds: a network for each fold, one for everyone, and what comes behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.collections import Collection
from models.training.config import TrainingError
from models.training.loop import Tick
from models.training.media_run import MediaRun, load_media_run, save_media_run
from models.training.networks import PULL, Networks, Trained, Weights, tuned_run
from models.training.probe_fit import fit_probe, folds_of
from models.training.probing import WHAT, Head, Judge, assembled, fit_top, parity_items, usable
from models.training.runners import Where
from models.training.seen import items_of, note_items, told_items
from models.training.tuned import TuneConfig

__all__ = ["fine_tune", "restored_judges"]


def fine_tune(
    collection: Collection,
    config: TuneConfig,
    out: Path,
    *,
    cache: Path | None = None,
    progress: Tick | None = None,
    resume: bool = False,
    command: str = "",
    where: Where | None = None,
) -> MediaRun:
    """Fine-tune an encoder by a recipe, fit the population prior in its features, and write the run to `out`.

    A network for each fold is judged on what it left out (people, where there are three or more): this gives the number
    of steps, the temperature, and the record that the guard goes by. The final network learns from everything.

    Raises:
        TrainingError: the folder is in use or cannot be resumed, an item cannot be read, or the data do not fit.
        BackboneError: there is no such encoder, or a package is missing.
    """
    tuned_run(
        LabelNetworks,
        collection,
        config,
        out,
        cache=cache,
        progress=progress,
        resume=resume,
        command=command,
        where=where,
    )
    return load_media_run(out)


def restored_judges(run: MediaRun, collection: Collection, tick: Tick | None = None) -> tuple[Judge, ...]:
    """Networks of a finished run, each of which had left a part of its data out, as their checkpoints have them.

    `collection` is what the run was trained on, in the same order.

    Raises:
        TrainingError: a checkpoint is gone.
    """
    config = TuneConfig.model_validate(run.provenance["config"])
    tick = tick or (lambda stage, done, total: None)
    return LabelNetworks(collection, config, run.folder, Where(), None, tick).restored()


class LabelNetworks(Networks):
    """One run's work where every item has one label."""

    @property
    def collection(self) -> Collection:
        """The items with their labels."""
        assert isinstance(self.items, Collection)
        return self.items

    def folds(self) -> list[NDArray[np.bool_]]:
        """Masks of what networks leave out; a single one is the first part of five."""
        c, count = self.collection, self.config.folds
        parts = folds_of(c.y, c.user, self.people, self.config.seed, count if count > 1 else 5)[:count]
        seen = [np.unique(c.y[~part]) for part in parts]
        lost = next((np.setdiff1d(np.arange(len(c.labels)), s) for s in seen if len(s) < len(c.labels)), None)
        if lost is not None:
            raise TrainingError(
                f"'{c.labels[int(lost[0])]}' has examples in one of {len(parts)} folds only, so nothing is left to "
                "learn it from when that is left out; give more examples or people of it, other folds, or the recipe "
                "linear-probe."
            )
        return parts

    def check(self) -> None:
        """Raise `TrainingError` where nothing could be learned or scored."""
        usable(self.collection)

    def first_head(self, z: NDArray[np.float64], kept: NDArray[np.bool_]) -> Weights:
        """The head on features of length 1 `(n, d)` at its plateau for what is kept."""
        return fit_probe(z[kept], self.collection.y[kept], len(self.collection.labels), PULL)

    def write(self, trained: Trained, provenance: Callable[[str], dict[str, Any]]) -> None:
        """Fit generic head and prior, and write the run."""
        c, config, final = self.collection, self.config, trained.final[1]
        head = Head(final.weight, final.bias, trained.judges)
        fitted = fit_top(final.features, c, config.personal, config.seed, self.tick, head)
        probed = assembled(config.backbone, self.encoder, fitted)
        known, made = items_of(c), provenance("pooled" if fitted.prior.hyper.pooled else "users")
        record = {
            "preprocessing": WHAT[c.kind].replace("a linear probe", "a linear head"),
            "evaluation": fitted.evaluation,
            "provenance": {**made, "data": {**made["data"], **told_items(known)}},
        }
        note_items(self.out, known)
        save_media_run(self.out, probed, fitted.prior, parity_items(probed, c), record)
