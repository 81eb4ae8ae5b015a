"""What a calibration is fitted from: the call's windows or the enrolled ones, and what earlier calls left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.heads import statistics
from models.heads.head import Head
from models.heads.shown import repeated
from models.heads.statistics import Scalable, Statistics
from service.errors import Unavailable, Unprocessable
from service.loaded import LoadedModel
from service.personal.data_changes import Enrolled
from service.personal.kept import MOST_WINDOWS, Kept, joined
from service.personal.own_labels import placed
from service.personal.store import Store
from service.personal.user_data import UserData
from service.protocol.calibration import CalibrationRequest

S = TypeVar("S", bound=Scalable)

NEEDS = {"logistic": "features"}
"""Retention that a method's updates need, where it is not `statistics`. One call by itself needs none."""
SECONDS_A_DAY = 86_400.0
BEGUN_ANEW = "the statistics of the version that was chosen are kept no longer: begun anew"
NOTHING_KEPT = "nothing is kept of earlier windows (retention 'none'): begun anew"


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a fit is given.

    Attributes:
        windows: features, classes and repetitions that the head is fitted on and judged by.
        before: statistics of earlier windows to add to, or None.
        previous: the active personal head, to be compared with, or None.
        base: the version whose windows are added to; 0 where it begins anew.
        seen: what was enrolled at that moment, and the user's settings.
        kept: all windows behind the version to be, where they may be kept.
        warnings: sentences for the report.
        own: the user's own labels, with those that the request adds.
    """

    windows: Kept
    before: Statistics | None
    previous: Head | None
    base: int
    seen: Enrolled
    kept: Kept | None
    warnings: list[str] = field(default_factory=list)
    own: tuple[str, ...] = ()


async def gather(
    store: Store,
    data: UserData,
    model: LoadedModel,
    user: str,
    request: CalibrationRequest,
    features: NDArray[np.float32],
) -> Gathered:
    """Gather what a request is about; `features (n, d)` are those of its windows.

    Raises:
        Unprocessable: there are no windows, or the method needs more than is kept of earlier ones.
        Unavailable: what is kept is damaged.
    """
    prior = model.prior
    seen = await data.enrolled(model.scope, user, windows=request.enrolled)
    y, own = placed(request.y, request.own, seen.own, prior.known, prior.own)
    windows = Kept(features, y, request.repetition, request.x)
    earlier: Statistics | None = None
    if request.enrolled:
        if not seen:
            raise Unprocessable("there are no windows: neither in the request nor enrolled (POST …/samples)")
        windows, earlier = seen.windows or windows, seen.statistics
    begun_anew: tuple[Statistics | None, int, list[str]] = (None, 0, [])
    updates = request.mode == "update"
    before, base, warnings = await base_of(store, model, user, seen, statistics.from_bytes) if updates else begun_anew
    held = await data.retained(model.scope, user, base) if base and seen.settings.keeps("features") else None
    if earlier is not None:
        first = max(before.repetitions, default=-1) + 1 if before is not None else 0
        numbered = earlier.renumbered(first)
        before = numbered if before is None else before + numbered
    _, previous = await store.active(model.scope, user)
    if previous is not None:
        previous = previous.widened(prior.known + len(own))
        if not updates and (known := await _fitted_before(store, model, user, windows)):
            warnings.append(
                f"the active head was fitted on {known} of these repetitions and looks better on them than it is; "
                "mode 'update' counts them once and does not compare on them"
            )
    kept = None
    if seen.settings.keeps("features") and earlier is None and (held is not None or not base):
        kept = await asyncio.to_thread(_after, held, windows, prior.classes, prior.personal)
    fitted = windows
    if NEEDS.get(request.method) == "features" and before is not None:
        if kept is None:
            seen.settings.require("features", f"method {request.method!r} over several calls")
            raise Unprocessable(
                f"method {request.method!r} needs the features of all earlier windows, and those of version {base} "
                "were not kept; send all windows in one call with mode 'replace'"
            )
        # The active head was fitted on windows that are scored now: it would look better than it is.
        fitted, before, previous = kept, None, None
    if kept is not None and len(kept) > MOST_WINDOWS:
        warnings.append(f"features of at most {MOST_WINDOWS} windows are kept; of these only statistics are")
        kept = None
    if kept is not None and not seen.settings.keeps("inputs"):
        kept = kept.without_inputs()
    return Gathered(fitted, before, previous, base, seen, kept, warnings, own)


async def base_of(
    store: Store, model: LoadedModel, user: str, seen: Enrolled, read: Callable[[bytes], S]
) -> tuple[S | None, int, list[str]]:
    """Return statistics to add to, as `read` decodes them, of which version, and what is to be said of them.

    Raises:
        Unavailable: they are damaged.
    """
    blob, found = await store.statistics(model.scope, user)
    if found is None:
        return None, 0, []
    if blob is None:
        if not seen.settings.keeps("statistics"):
            return None, 0, [NOTHING_KEPT] if found.last else []
        return None, 0, [BEGUN_ANEW] if found.base else []
    try:
        held = read(blob)
        if seen.settings.half_life and (version := await store.version(model.scope, user, found.base)) is not None:
            age = max(0.0, time.time() - version.created)
            held = statistics.decayed(held, age, seen.settings.half_life * SECONDS_A_DAY)
        return held, found.base, []
    except ValueError as e:
        raise Unavailable(f"the statistics of user {user!r} are damaged: calibrate with mode 'replace' ({e})") from e


async def _fitted_before(store: Store, model: LoadedModel, user: str, windows: Kept) -> int:
    """Count the repetitions that the statistics behind the active head hold already."""
    blob, found = await store.statistics(model.scope, user)
    if found is None or blob is None or not len(windows):
        return 0
    try:
        held = statistics.from_bytes(blob)
        return len(repeated(held, windows.statistics(model.prior.classes, model.prior.personal)))
    except ValueError:  # damaged: 'replace' is the way out of that
        return 0


def _after(held: Kept | None, new: Kept, classes: int, personal: int) -> Kept:
    """Put new windows behind those held; a repetition that is sent again counts once, as the newer."""
    if held is None:
        return new
    again = repeated(held.statistics(classes, personal), new.statistics(classes, personal))
    left = held.at(np.flatnonzero(~np.isin(held.repetition, list(again.values()))))
    return joined([left, new.later_than(left)]) or new
