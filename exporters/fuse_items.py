"""Finished runs or bundles of images, texts and sounds, on a table of what goes together, become one fused bundle."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.export import model_name, onnx_forward
from exporters.fuse import PARITY_ROWS, bundle_of, provenance_of
from exporters.fusion import Member, write_fused
from models.data.pairs import TENSOR, PairedItems, load_pairs
from models.data.parts import fused_input
from models.training.config import TrainingError
from models.training.fusion import RIDGE, Fused, How, fit_fusion
from models.training.fusion_sources import FrozenSource, Joined, Tick
from models.training.item_sources import ItemRunSource, groups_of, judges_of, trained_on
from models.training.media_run import is_media_run, load_media_run
from models.training.run import RECORD, load_run
from models.training.seen import known_of, short_digests

BLOCK = 32


def fuse_items(
    members: Mapping[str, Path],
    table: Path,
    models: Path,
    *,
    name: str,
    how: How = "late",
    personal: int = 64,
    description: str = "",
    command: str = "",
    seed: int = 0,
    tick: Tick = lambda stage, done, total: None,
) -> Path:
    """Fuse models of images, texts, sounds or tensors, and write the bundle as the next version of `name`.

    A member given as a run that was trained on the table's column is judged on people (without users, on items) that
    had no part in it; any other must not have been trained on any of the items. The parts of a request are called what
    the members are called here.

    Args:
        members: two or more, by name: a folder that `headway train` wrote, or a bundle.
        table: with a column for each member, `label`, and perhaps `user` (`models.data.pairs`).
        models: folder of bundles to write to.
        name: of the fused model.
        how: `late` or `concatenated` (`models.training.fusion`).
        personal: features that personal heads are fitted in, at most.
        description: one sentence, for the card.
        command: for the record.
        seed: of folds, where there are no users, and of repetitions that are not told.
        tick: called with a stage, what is done of it, and its size.

    Returns:
        The bundle's folder.

    Raises:
        CollectionError: the table cannot be read.
        TrainingError: the members were trained on some of the items, or have other labels.
        ExportError: the members cannot be fused.
        ParityError: the fused graph does not compute what its members do; nothing is written.
    """
    model_name(name, models)
    if len(members) < 2:
        raise TrainingError(f"Fusing needs two members or more; there is {', '.join(members) or 'none'}.")
    begin = time.monotonic(), datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="headway-fuse-") as folder:
        items = load_pairs(table, {member: kind_of(path) for member, path in members.items()}, seed)
        judged = {member: _is_judged(member, path, items) for member, path in members.items()}
        found: list[Member] = []
        for member, path in members.items():
            tick("members", len(found), len(members))
            found.append(Member(member, bundle_of(path, Path(folder) / member)))
        tick("members", len(members), len(members))
        own = {member: members[member] for member, known in judged.items() if known}
        fused = fit_items(found, own, items, how=how, personal=personal, seed=seed, tick=tick)
        digests = sorted({d for m in found for d in short_digests(items.column(m.name))})
        provenance = provenance_of(found, members, how, command, begin) | {
            "data": {
                "items": len(items),
                "kind": "+".join(items.kinds.values()),
                "users": len(items.users),
                "missing": {m.name: len(items) - len(items.where(m.name)) for m in found},
                "digests": digests,
            },
            "population": "pooled" if fused.prior.hyper.pooled else "users",
            "seed": seed,
        }
        return write_fused(
            found,
            fused.join,
            fused.prior,
            gate_rows(found, items, PARITY_ROWS),
            models,
            name=name,
            provenance=provenance,
            evaluation=fused.evaluation,
            description=description,
        )


def fit_items(
    members: Sequence[Member],
    runs: Mapping[str, Path],
    items: PairedItems,
    *,
    how: How = "late",
    personal: int = 64,
    ridge: float = RIDGE,
    seed: int = 0,
    tick: Tick = lambda stage, done, total: None,
) -> Fused:
    """Fit what joins the members on items, each person or fold of which is left out of what judges it.

    `runs`: of the members that were trained on the items; the others know none of them.

    Raises:
        TrainingError: the items have other labels than the members, or cannot be left out of a run.
    """
    labels = members[0].bundle.manifest.labels
    heads = {m.name: m.head(labels) for m in members}
    if set(items.labels) != set(labels):
        odd = sorted(set(items.labels) ^ set(labels))[0]
        where = "the members do not know" if odd in items.labels else "no row of the table has"
        raise TrainingError(f"The label '{odd}' is one that {where}; the members' labels are {', '.join(labels)}.")
    judged = {n: judges_of(load_media_run(path), n, items, seed, tick) for n, path in runs.items()}
    kind, groups = groups_of(items, list(judged.values()), seed)
    order = [items.labels.index(label) for label in labels]
    y = np.array([labels.index(label) for label in items.labels])[items.y]
    sources: list[FrozenSource] = []
    for m in members:
        z = features_of(m, items, tick)
        told = [z[own] for own in groups], heads[m.name], m.bundle.prior.personal
        if m.name in judged:
            judges, rows = judged[m.name]
            sources.append(ItemRunSource(*told, groups, judges, rows, y, order, m.name))
        else:
            sources.append(FrozenSource(*told))
    there, session = items.present, np.zeros(len(items), np.int64)
    joined = [Joined(y[own], session[own], items.repetition[own], there[own]) for own in groups]
    names = [m.name for m in members]
    return fit_fusion(
        sources, joined, labels, how=how, personal=personal, ridge=ridge, kind=kind, names=names, tick=tick
    )


def kind_of(path: Path) -> str:
    """What a member, a run or a bundle, reads: the kind of its media, or tensors."""
    if (path / RECORD).is_file():
        media = load_media_run(path).input.media if is_media_run(path) else None
    else:
        media = bundles.read_manifest(bundles.resolve(path))[0].input.media
    return TENSOR if media is None else media.kind


def _is_judged(name: str, path: Path, items: PairedItems) -> bool:
    """Whether a member is a run that was trained on the table; any other must know none of the items.

    Raises:
        TrainingError: it was trained on some of them.
    """
    column = items.column(name)
    if is_media_run(path):
        return trained_on(load_media_run(path), name, column)
    run = (path / RECORD).is_file()
    made = load_run(path).provenance if run else bundles.read_manifest(bundles.resolve(path))[0].provenance
    known = known_of(made, short_digests(column))
    people = sorted({str(s.get("subject")) for s in made.get("subjects", ())} & set(items.users))
    if known or people:
        what = f"{len(known)} of the table's items" if known else f"{', '.join(people)} of the table's users"
        raise TrainingError(
            f"'{name}' was trained on {what}, so that it would be judged too well; give "
            + ("its run instead of its bundle, or a table of others." if known else "a table of other people.")
        )
    return False


def features_of(member: Member, items: PairedItems, tick: Tick) -> NDArray[np.float32]:
    """Features `(n, d)` of all rows by a member's graph; zeros in those that lack its part."""
    spec, forward = member.bundle.manifest.input, onnx_forward(member.bundle.backbone)
    read = items.reader(member.name, spec, member.bundle.file)
    rows = items.where(member.name)
    found = np.zeros((len(items), member.bundle.manifest.feature_dim), np.float32)
    for at in range(0, len(rows), BLOCK):
        tick(f"features of {member.name}", at, len(rows))
        found[rows[at : at + BLOCK]] = forward(read(rows[at : at + BLOCK]))
    tick(f"features of {member.name}", len(rows), len(rows))
    return found


def gate_rows(members: Sequence[Member], items: PairedItems, most: int) -> NDArray[np.float32]:
    """Rows of the table as the fused graph takes them, `(n, size)`: so many, spread evenly, with what each has."""
    chosen = np.linspace(0, len(items) - 1, min(most, len(items))).astype(np.int64)
    files = {name: data for m in members for name, data in m.files.items()}
    return items.packed(fused_input([m.part for m in members]), files, chosen)
