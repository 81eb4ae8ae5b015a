"""Members of a fusion that read images, sounds or texts: runs judged by what had left each item out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.collections import Collection
from models.data.pairs import PairedItems
from models.heads.head import Head as GenericHead
from models.training.config import TrainingError
from models.training.features import features_of
from models.training.fine_tuning import restored_judges
from models.training.fused_population import Kind
from models.training.fusion_sources import FrozenSource, Tick
from models.training.media_run import MediaRun
from models.training.pooling import space_of
from models.training.probe_fit import folds_of, left_out_logits
from models.training.probing import FEWEST_PEOPLE, Judge, left_out, unit
from models.training.seen import items_of, noted_items

__all__ = ["ItemRunSource", "groups_of", "judges_of", "trained_on"]

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
FOLDS = 3
"""Parts of every label that are left out in turn, where there are no users: each has enough to calibrate with."""
FROZEN = ("linear-probe", "cached-features")


def trained_on(run: MediaRun, name: str, column: Collection) -> bool:
    """Whether a run was trained on a column of the table; false where it knows none of its items.

    Raises:
        TrainingError: it knows some of them only, or others too, so that not everything can be left out of it.
    """
    theirs, ours = (Counter(d for d, *_ in items) for items in (noted_items(run.folder), items_of(column)))
    shared = sum((theirs & ours).values())
    if shared and theirs != ours:
        raise TrainingError(
            f"The run {run.folder} of '{name}' was trained on {theirs.total()} items, of which {shared} are among the "
            f"{ours.total()} of the table: to leave each out of it, it must have been trained on just these "
            f"(--data TABLE --column {name}), or on none of them."
        )
    return bool(shared)


def judges_of(run: MediaRun, name: str, items: PairedItems, seed: int, tick: Tick) -> tuple[tuple[Judge, ...], Labels]:
    """What had left out parts of the run's items: its folds' networks, or its frozen encoder; and rows of these items.

    Logits are tempered, and those of a frozen encoder by probes that had not seen the item.

    Raises:
        TrainingError: the run's folds cannot be made again, or left not everything out.
    """
    column, rows = items.column(name), items.where(name)
    if run.provenance["config"]["recipe"] not in FROZEN:
        order = _in_order(run, name, column)
        told: dict[str, Any] = {
            "y": column.y[order],
            "user": column.user[order],
            "repetition": column.repetition[order],
        }
        found = restored_judges(run, replace(column, items=tuple(column.items[i] for i in order), **told), tick)
        judges = tuple(replace(j, features=unit(j.features)) for j in found)
        judged, logits, _ = left_out(judges, column.y[order])
        if not judged.all():
            raise TrainingError(
                f"The run {run.folder} of '{name}' left only some of its items out of a network (folds=1), so that not "
                "everyone can be judged; train it with folds=2 or more."
            )
        return tuple(replace(j, logits=logits) for j in judges), rows[order]
    z, _ = features_of(
        run.backbone().encoder, column, None, lambda done, total: tick(f"features of {name}", done, total)
    )
    features = unit(z.astype(np.float64))
    by_user = len(column.users) >= FEWEST_PEOPLE
    folds = folds_of(column.y, column.user, by_user, seed)
    reduced = space_of(features, column.y, run.prior.personal).reduced(features)
    _, _, logits = left_out_logits(reduced, column.y, len(column.labels), folds)
    return (Judge(np.ones(len(column), bool), features, logits),), rows


def _in_order(run: MediaRun, name: str, column: Collection) -> Labels:
    """Where in a column the items of a run are, in the run's order, by which its folds were drawn."""
    waiting: dict[tuple[str, str, str], list[int]] = {}
    for i, item in reversed(list(enumerate(items_of(column)))):
        waiting.setdefault(item, []).append(i)
    found = []
    for item in noted_items(run.folder):
        if not waiting.get(item):
            raise TrainingError(
                f"The run {run.folder} of '{name}' was fine-tuned on items of other labels or users than the table "
                "has, so that its folds cannot be told; train it on the table (--data TABLE --column "
                f"{name})."
            )
        found.append(waiting[item].pop())
    return np.array(found, np.int64)


def groups_of(
    items: PairedItems, judged: Sequence[tuple[Sequence[Judge], Labels]], seed: int
) -> tuple[Kind, list[Labels]]:
    """Rows of each person; without users of each fold, those of a run whose networks left folds out.

    `judged`: what left out parts of which rows, by member.
    """
    if len(items.users) >= FEWEST_PEOPLE:
        return "items", [np.flatnonzero(items.user == u) for u in range(len(items.users))]
    fold = np.full(len(items), -1)
    for judges, rows in judged:
        if len(judges) > 1:
            for f, judge in enumerate(judges):
                fold[rows[judge.out]] = f
            break
    else:
        for f, out in enumerate(folds_of(items.y, items.user, False, seed, FOLDS)):
            fold[out] = f
    count = int(fold.max()) + 1
    for c in np.unique(items.y):  # what that run did not read
        rest = np.flatnonzero((fold < 0) & (items.y == c))
        fold[rest] = np.arange(len(rest)) % count
    return "pooled", [np.flatnonzero(fold == f) for f in range(count)]


class ItemRunSource(FrozenSource):
    """A run that was trained on the items: each is judged by what had left out everything of its person or fold.

    Args:
        features, head, personal: as of a bundle, the run's export.
        groups: rows of each person or fold.
        judges: what had left items out; the logits are of each item by what had left that out.
        rows: of the judges' items.
        y: labels of all rows, by the joint labels.
        order: index of each joint label among the run's own.
        name: of the member, for messages.

    Raises:
        TrainingError: nothing had left out all items of a person or fold.
    """

    def __init__(
        self,
        features: Sequence[NDArray[np.floating]],
        head: GenericHead,
        personal: int,
        groups: Sequence[Labels],
        judges: Sequence[Judge],
        rows: Labels,
        y: Labels,
        order: Sequence[int],
        name: str,
    ) -> None:
        super().__init__(features, head, personal)
        self._groups, self._judges, self._rows, self._y = groups, judges, rows, y
        self._logits = np.zeros((len(y), len(order)))
        self._logits[rows] = judges[0].logits[:, list(order)]
        self._by = [self._judge(own, name) for own in groups]
        self._space: tuple[int, Array] | None = None

    def _judge(self, own: Labels, name: str) -> Judge:
        mine = np.isin(self._rows, own)
        found = next((judge for judge in self._judges if judge.out[mine].all()), None)
        if found is None:
            raise TrainingError(
                f"No network of the run of '{name}' had left out all items of a person, or of a fold of another "
                "member. Fine-tune all members on the same rows with the same seed and folds, give the table a column "
                "user, or train with the recipe linear-probe."
            )
        return found

    def without(self, left_out: int, person: int) -> Array:
        """Personal features `(n, p)` in a space that `left_out` had no part in; zeros where there are fewer."""
        if self._space is None or self._space[0] != left_out:
            judge, mine = self._by[left_out], np.isin(self._rows, self._groups[left_out])
            # A network that left others out with this person: they are strangers to it, and would be to the space.
            known = ~mine if judge.out.all() else ~judge.out
            z = space_of(judge.features[known], self._y[self._rows][known], self.personal).personal(judge.features)
            found = np.zeros((len(self._y), self.personal))
            found[self._rows, : z.shape[1]] = z
            self._space = left_out, found
        return self._space[1][self._groups[person]]

    def evidence(self, person: int) -> Array:
        """Generic logits `(n, K)` by what had left the items out."""
        return self._logits[self._groups[person]]
