"""A head from elsewhere becomes a version: what is asked of it, and what is said of it."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import safetensors
import safetensors.numpy
from sqlalchemy.ext.asyncio import AsyncConnection

from exporters.bundle import Manifest
from models.heads import regression_sums
from models.heads import statistics as sums
from models.heads.fit import placed
from models.heads.head import Head
from models.heads.prior import Prior
from models.heads.refit import judge_statistics
from models.heads.regression_calibration import refit_regression
from models.heads.regression_prior import RegressionPrior
from models.heads.regression_sums import RepetitionSums
from models.heads.statistics import LARGEST, MAX_SEEN, MOST_COUNTED, Statistics
from service.errors import Conflict, InvalidRequest, Unprocessable
from service.loaded import LoadedModel
from service.personal import data_changes, targets
from service.personal.records import OWN_LABELS, NewVersion, head_to_bytes
from service.protocol.inputs import can_be_label

STATISTICS = "statistics."
"""Prefix of the tensors of a user's statistics beside a head."""
MOST_FLOORS = 64


@dataclass(frozen=True, slots=True)
class ImportedHead:
    """A head that fits a model, the digest of it in float32, and the statistics that came with it."""

    head: Head
    digest: str
    statistics: Statistics | RepetitionSums | None


def read_head(body: bytes, manifest: Manifest, prior: Prior | RegressionPrior, digest: str | None) -> ImportedHead:
    """Read safetensors as `GET …/weights` writes them.

    Args:
        body: the file.
        manifest: of the model it is to be served by.
        prior: of the same.
        digest: what the head's digest must be, or None: what the file's own metadata say, if they do.

    Raises:
        InvalidRequest: not safetensors, or of other tensors.
        Conflict: of another feature space, other labels or other targets; the message names both.
        Unprocessable: damaged (the digest), of another shape, or not finite.
    """
    try:
        tensors = safetensors.numpy.load(body)
        metadata = metadata_of(body)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as e:
        raise InvalidRequest(f"the body is not safetensors: {e}") from e
    check_space(metadata, manifest)
    head = head_of(tensors, manifest, own_labels_in(metadata))
    found = hashlib.sha256(head_to_bytes(head)).hexdigest()
    for wanted, whose in ((digest, "If-Match"), (metadata.get("digest"), "the file's metadata")):
        if wanted is not None and wanted != found:
            raise Unprocessable(f"the head is damaged: its digest is {found}, and {whose} say {wanted}")
    own = {name.removeprefix(STATISTICS): t for name, t in tensors.items() if name.startswith(STATISTICS)}
    return ImportedHead(head, found, statistics_of(safetensors.numpy.save(own), prior) if own else None)


def metadata_of(file: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file that has been read already."""
    header = orjson.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    return dict(header.get("__metadata__") or {})


def rows_key(manifest: Manifest) -> str:
    """Name of the metadata that say what a head's rows are: `labels`, or `targets`."""
    return "targets" if manifest.targets else "labels"


def check_space(metadata: dict[str, Any], manifest: Manifest) -> None:
    """Refuse what was fitted in another feature space, or for other labels or targets.

    Raises:
        Unprocessable: it does not say.
        Conflict: it is of another; the message names both.
    """
    key = rows_key(manifest)
    space, labels = metadata.get("feature_space"), metadata.get(key)
    if space is None or labels is None:
        raise Unprocessable(
            f"the metadata name no feature_space and {key}; "
            f"the model's are {manifest.feature_space} and {json.dumps(manifest.head_rows, ensure_ascii=False)}"
        )
    if space != manifest.feature_space:
        raise Conflict(
            f"it belongs to feature space {space}; model {manifest.name!r} version {manifest.version} computes "
            f"{manifest.feature_space}: a head is never applied in another"
        )
    try:
        named = orjson.loads(labels) if isinstance(labels, str) else labels
    except ValueError as e:
        raise Unprocessable(f"the metadata's {key} are not a JSON array: {e}") from e
    if named != list(manifest.head_rows):
        raise Conflict(f"it is for the {key} {named}; the model's are {list(manifest.head_rows)}")


def own_labels_in(metadata: dict[str, str]) -> tuple[str, ...]:
    """Return the labels of a user's own that a head's metadata name.

    Raises:
        Unprocessable: they are no list of names.
    """
    try:
        found = orjson.loads(metadata.get(OWN_LABELS, "[]"))
    except ValueError as e:
        raise Unprocessable(f"the metadata's {OWN_LABELS} are not a JSON array: {e}") from e
    if not isinstance(found, list) or not all(isinstance(name, str) and can_be_label(name) for name in found):
        raise Unprocessable(f"the metadata's {OWN_LABELS} are not a list of names")
    return tuple(found)


def check_own(own: tuple[str, ...], manifest: Manifest) -> None:
    """Refuse labels of a user's own that a model has no room for, or knows already.

    Raises:
        Unprocessable: there are such.
    """
    fitting = len(own) <= manifest.user_labels and all(map(can_be_label, own))
    if not fitting or len({*manifest.labels, *own}) < len(manifest.labels) + len(own):
        raise Unprocessable(
            f"the head has labels of its user's own ({', '.join(own)[:256]}); the model has room for "
            f"{manifest.user_labels} beside {', '.join(manifest.labels)}"
        )


def head_of(tensors: dict[str, Any], manifest: Manifest, own: tuple[str, ...] = ()) -> Head:
    """Check the tensors of a head, with rows for labels of its user's own, against the model it is for.

    Raises:
        InvalidRequest: a tensor is missing.
        Unprocessable: of another shape or datatype, or not finite.
    """
    check_own(own, manifest)
    k, d = len(manifest.head_rows) + len(own), manifest.feature_dim
    found = []
    for name, shape in (("weight", (k, d)), ("bias", (k,))):
        if name not in tensors:
            raise InvalidRequest(f"there is no tensor {name!r}; a head has weight {[k, d]} and bias {[k]}")
        value = tensors[name]
        if value.shape != shape or value.dtype.kind != "f":
            raise Unprocessable(
                f"{name} is {value.dtype} of shape {list(value.shape)}; floats of shape {list(shape)} were expected"
            )
        value = value.astype(np.float32)
        if not (np.abs(value) < LARGEST).all():  # NaN is not smaller than anything
            raise Unprocessable(f"{name} holds values that are not finite, or beyond {LARGEST:g}")
        found.append(value)
    weight, bias = found
    return Head(weight, bias, _floors(tensors.get("floors")), own)


def _floors(value: Any) -> Any:
    """Check the floors of a head's sets of labels, which not every head has."""
    if value is None:
        return None
    in_shape = value.ndim == 1 and len(value) <= MOST_FLOORS and value.dtype.kind == "f"
    if not in_shape or not ((value >= 0) & (value <= 1)).all():
        raise Unprocessable(f"floors must be at most {MOST_FLOORS} probabilities in one row")
    return value.astype(np.float32)


def _check_seen(seen: Any) -> None:
    """Check the digests of repetitions, which not all statistics have."""
    if seen is not None and (seen.dtype != np.int64 or seen.ndim != 2 or seen.shape[1] != 2 or len(seen) > MAX_SEEN):
        raise Unprocessable(
            f"the statistics' seen is {seen.dtype} of shape {list(seen.shape)}; int64 of shape [at most {MAX_SEEN}, 2] "
            "was expected"
        )


def statistics_of(data: bytes, prior: Prior | RegressionPrior) -> Statistics | RepetitionSums:
    """Read and check a user's statistics.

    Raises:
        Unprocessable: they are not statistics, or not of this model's classes or targets, and features.
    """
    if isinstance(prior, RegressionPrior):
        try:
            return regression_sums.from_bytes(data, prior.dim, len(prior.targets))
        except ValueError as e:
            raise Unprocessable(f"the statistics cannot be read: {e}") from e
    k, p = prior.classes, prior.personal
    try:
        tensors = safetensors.numpy.load(data)
        # Before they are unpacked: what is empty may claim any size.
        shape = tensors["count"].shape
        packed = p * (p + 1) // 2
        r = shape[1] if len(shape) == 2 else 0
        # Sums of classes without windows are left out, but not by earlier releases.
        shown = int((tensors["count"] != 0).any(1).sum()) if shape == (k, r) else k
        rows = k if len(tensors["total"]) == k else shown
        wanted = {
            "repetitions": (r,),
            "count": (k, r),
            "total": (rows, r, p),
            "class_moment": (rows, packed),
            "repetition_moment": (r, packed),
        }
        for name, size in wanted.items():
            if tensors[name].shape != size:
                raise Unprocessable(
                    f"the statistics' {name} has shape {list(tensors[name].shape)}; for {k} classes and {p} features "
                    f"{list(size)} was expected"
                )
        _check_seen(tensors.get("seen"))
        stats = sums.from_bytes(data)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as e:
        raise Unprocessable(f"the statistics cannot be read: {e}") from e
    arrays = (stats.count, stats.total, stats.class_moment, stats.repetition_moment)
    finite = all(bool((np.abs(value) < LARGEST).all()) for value in arrays)
    ordered = all(a < b for a, b in zip(stats.repetitions, stats.repetitions[1:], strict=False))
    counted = (stats.count >= 0).all() and (stats.count.sum(0) > 0).all() and stats.count.sum() < MOST_COUNTED
    if not finite or not ordered or not counted:
        raise Unprocessable("the statistics are not sums over windows: negative, empty or huge counts, or not finite")
    return stats


def as_version(model: LoadedModel, user: str, imported: ImportedHead, activate: str, *, keeps: bool) -> NewVersion:
    """Make the version of a user that an imported head becomes; `keeps`: whether they let statistics be kept.

    Without statistics nothing tells what it is worth here: it is served only on demand (`activate` `always`, or later
    `PUT …/active`). With them it is judged as a calibration that has nothing to hold out.
    """
    stats, own = imported.statistics, imported.head.own
    outcome, evidence, warnings = "kept", "none", list[str]()
    reason = "imported, not judged: no statistics came with it"
    if isinstance(stats, RepetitionSums):
        judged = refit_regression(model.bundle.regression, stats)
        outcome, evidence, reason = judged.outcome, judged.evidence, judged.reason
    elif stats is not None:
        shown = stats.trimmed(len(model.labels) + len(own))
        verdict, doubts = judge_statistics(shown, placed(shown, model.prior_of(own)))
        outcome, evidence, reason, warnings = verdict.outcome, verdict.evidence, verdict.reason, list(doubts)
    if activate == "always":
        told = f"; the guard: {reason}" if stats is not None else f", {reason.removeprefix('imported, ')}"
        outcome, reason = "promoted", f"activated as demanded{told}"
    serves = outcome == "promoted" and activate != "never"
    if not serves and stats is None:
        reason += "; PUT …/active serves it"
    identifier = str(uuid.uuid4())
    report = {
        "calibration_id": identifier,
        "model": model.name,
        "model_version": str(model.version),
        "origin": "import",
        "outcome": outcome,
        "evidence": evidence,
        "reason": reason,
        "method": "import",
        "mode": "replace",
        "weight": 1.0,
        "remembered": serves and stats is not None and keeps,
        "digest": imported.digest,
        **_counted(stats, (*model.labels, *own)),
        "metrics": {"shared": None, "previous": None, "candidate": None},
        "warnings": warnings,
    }
    data = None if stats is None or not keeps else _encoded(stats)

    async def also(c: AsyncConnection, version: int) -> None:
        """Let the user have the head's labels."""
        if own:
            await data_changes.add_own_labels(c, model.scope, user, own)

    return NewVersion(identifier, imported.head, data, report, serves, serves, also=also)


def _counted(stats: Statistics | RepetitionSums | None, labels: tuple[str, ...]) -> dict[str, Any]:
    return targets.counted(stats) if isinstance(stats, RepetitionSums) else {"classes": classes_of(stats, labels)}


def _encoded(stats: Statistics | RepetitionSums) -> bytes:
    return regression_sums.to_bytes(stats) if isinstance(stats, RepetitionSums) else sums.to_bytes(stats)


def classes_of(stats: Statistics | None, labels: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Count windows and repetitions by label, as reports of calibrations do."""
    if stats is None:
        return {}
    return {
        label: {"samples": round(float(stats.n[i])), "repetitions": int(stats.repetitions_seen[i]), "remaining": 0}
        for i, label in enumerate(labels)
    }
