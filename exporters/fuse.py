"""Finished runs or bundles on paired recordings become one fused bundle."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.bundle import Bundle
from exporters.export import export_run, model_name, onnx_forward
from exporters.fusion import Member, write_fused
from models.data.paired import PairedPerson, pair
from models.data.parts import fused_input, pack
from models.data.recordings import Recordings, load_folder
from models.training.config import TrainingError
from models.training.fusion import RIDGE, Fused, How, fit_fusion
from models.training.fusion_sources import FrozenSource, Joined, RunSource, Tick, in_blocks
from models.training.media_run import is_media_run
from models.training.provenance import commit
from models.training.run import RECORD, load_run

PARITY_ROWS = 96
FEWEST_PEOPLE = 3


def fuse_recordings(
    members: Mapping[str, Path],
    data: Mapping[str, Path],
    models: Path,
    *,
    name: str,
    how: How = "late",
    personal: int = 64,
    subjects: str = "*",
    description: str = "",
    command: str = "",
    tick: Tick = lambda stage, done, total: None,
) -> Path:
    """Fuse models of several sensors, and write the bundle as the next version of `name`; returns its folder.

    A member given as a run is judged on people that its folds left out; one given as a bundle must not have been
    trained on the people of the data. The parts of a request are called what the members are called here.

    Args:
        members: two or more, by name: a folder that `headway train` wrote of recordings, or a bundle.
        data: for each member a folder of recordings; files of the same name are of the same sittings.
        models: folder of bundles to write to.
        name: of the fused model.
        how: `late` or `concatenated` (`models.training.fusion`).
        personal: features that personal heads are fitted in, at most.
        subjects: globs of the files to take.
        description: one sentence, for the card.
        command: for the record.
        tick: called with a stage, what is done of it, and its size.

    Raises:
        TrainingError: the data do not go together, or not with the members.
        ExportError: the members cannot be fused.
        ParityError: the fused graph does not compute what its members do; nothing is written.
    """
    model_name(name, models)
    if len(members) < 2 or set(members) != set(data):
        raise TrainingError(
            f"Fusing needs two members or more, and data for each: members are {', '.join(members) or 'none'}, "
            f"data are for {', '.join(data) or 'none'}."
        )
    for member, path in members.items():
        _check_kind(member, path)
    begin = time.monotonic(), datetime.now(UTC)
    recordings = {member: load_folder(folder, subjects) for member, folder in data.items()}
    with tempfile.TemporaryDirectory(prefix="headway-fuse-") as folder:
        tick("members", 0, len(members))
        for member, path in members.items():
            _check_people(member, path, recordings[member])
        found = [Member(member, bundle_of(path, Path(folder) / member)) for member, path in members.items()]
        fused, people = fit(found, members, recordings, how=how, personal=personal, tick=tick)
        made = {
            "subjects": [
                {"stem": r.stem, "subject": r.subject, "digest": r.digest} for own in recordings.values() for r in own
            ],
            "unpaired_recordings": sum(p.unpaired for p in people),
        }
        provenance = provenance_of(found, members, how, command, begin) | made
        return write_fused(
            found,
            fused.join,
            fused.prior,
            _rows(found, people),
            models,
            name=name,
            provenance=provenance,
            evaluation=fused.evaluation,
            description=description,
        )


def fit(
    members: Sequence[Member],
    paths: Mapping[str, Path],
    recordings: Mapping[str, Sequence[Recordings]],
    *,
    how: How = "late",
    personal: int = 64,
    ridge: float = RIDGE,
    tick: Tick = lambda stage, done, total: None,
) -> tuple[Fused, list[PairedPerson]]:
    """Fit what joins the members on paired recordings; returns that and the windows it was fitted on.

    Raises:
        TrainingError: as `fuse_recordings`.
    """
    labels = members[0].bundle.manifest.labels
    heads = {m.name: m.head(labels) for m in members}
    people, thinning = pair(recordings, {m.name: m.bundle.manifest.input for m in members}, labels)
    if len(people) < FEWEST_PEOPLE:
        raise TrainingError(
            f"Fusing needs recordings of at least {FEWEST_PEOPLE} people; here there are {len(people)}."
        )
    sources: list[FrozenSource] = []
    for done, m in enumerate(members):
        tick("members", done, len(members))
        windows = [p.parts[m.name] for p in people]
        forward = onnx_forward(m.bundle.backbone)
        told = [in_blocks(forward, x) for x in windows], heads[m.name], m.bundle.prior.personal
        if (paths[m.name] / RECORD).is_file():
            order, run = [m.bundle.manifest.labels.index(label) for label in labels], load_run(paths[m.name])
            sources.append(RunSource(*told, windows, run, recordings[m.name], [p.name for p in people], order))
        else:
            sources.append(FrozenSource(*told))
    tick("members", len(members), len(members))
    joined = [Joined(p.y, p.session, p.repetition) for p in people]
    names = [m.name for m in members]
    fused = fit_fusion(
        sources,
        joined,
        labels,
        how=how,
        personal=personal,
        ridge=ridge,
        thinning=thinning,
        names=names,
        tick=tick,
    )
    return fused, people


def bundle_of(path: Path, folder: Path) -> Bundle:
    """The member's bundle: a run is exported, through the parity gate."""
    if (path / RECORD).is_file():
        return bundles.load(export_run(path, folder, name="member"))
    return bundles.load(bundles.resolve(path))


def _check_kind(member: str, path: Path) -> None:
    """Refuse what is not cut from recordings, before any are looked for."""
    run = (path / RECORD).is_file()
    if is_media_run(path) or (not run and bundles.read_manifest(bundles.resolve(path))[0].input.media is not None):
        raise TrainingError(
            f"'{member}' ({path}) reads images, texts or sounds; these are fused on one table with a column for each "
            "member (--data TABLE), not on folders of recordings."
        )


def _check_people(member: str, path: Path, recordings: Sequence[Recordings]) -> None:
    """Check that everyone can be left out: people of a run by its folds, people whom a bundle knows not at all."""
    run = (path / RECORD).is_file()
    told = load_run(path).provenance if run else bundles.read_manifest(bundles.resolve(path))[0].provenance
    known = {subject.get("digest") for subject in told.get("subjects", ())}
    for r in recordings:
        if run and r.digest not in known:
            raise TrainingError(f"{r.stem} had no part in the run {path} of '{member}'; leave it out with --subjects.")
        if not run and r.digest in known:
            raise TrainingError(
                f"'{member}' was trained on {r.stem} of the data, so that it would be judged too well; give its run "
                "instead of its bundle, or other people."
            )


def provenance_of(
    members: Sequence[Member], paths: Mapping[str, Path], how: str, command: str, begin: tuple[float, datetime]
) -> dict[str, Any]:
    """What a fused bundle says of its making, whatever its members read; `begin`: monotonic seconds, and the time."""
    return {
        "command": command,
        "recipe": f"fusion, {how}",
        "members": {m.name: _told(m, paths[m.name]) for m in members},
        "commit": commit(),
        "started": begin[1].isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begin[0], 1),
    }


def _told(member: Member, path: Path) -> dict[str, Any]:
    """What a member is, for the record."""
    manifest = member.bundle.manifest
    made: dict[str, Any] = {
        key: manifest.provenance[key] for key in ("command", "config", "commit") if key in manifest.provenance
    }
    return {"from": path.resolve().name, "feature_space": manifest.feature_space, **made}


def _rows(members: Sequence[Member], people: Sequence[PairedPerson]) -> NDArray[np.float32]:
    """Real windows of everyone, spread evenly, packed."""
    spec = fused_input([m.part for m in members])
    each = -(-PARITY_ROWS // len(people))
    picked: list[dict[str, Any]] = []
    for p in people:
        where = np.linspace(0, len(p) - 1, min(each, len(p))).astype(int)
        picked.append({n: x[where] for n, x in p.parts.items()})
    return np.concatenate([pack(spec, parts) for parts in picked])
