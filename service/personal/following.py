"""Heads that follow their users: causal adaptation beside the answers, for users whose `adapt` is not `off`.

Of several outputs each has streams, heads and a guard of its own; those of targets follow nobody.

Features of a user's answered rows wait in a bounded queue; a task here, the only writer, fits the adapted head anew
every `EVERY` rows on a thread. With `on` it publishes a version at most every `PUBLISH_ROWS` rows and
`PUBLISH_SECONDS`, and goes back to the calibrated one by itself when the guard says so; with `suggest` it only reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from models.heads.drift import ADVISED, drift
from models.heads.unlabelled import Stream
from service.errors import Conflict, HeadwayError
from service.loaded import LoadedModel
from service.personal.acting import acting
from service.personal.adapt import Adapter, CalibratedHead, report_of
from service.personal.calibrate import Calibrator
from service.personal.observations import Observations, Output, Rows, Who
from service.personal.records import NoSuchVersion, StoreError, UserChanged
from service.personal.resolve import Resolver
from service.personal.store import Store

log = logging.getLogger("headway")

EVERY = 50
"""Rows after which a user's head is fitted anew."""
PUBLISH_ROWS = 500
PUBLISH_SECONDS = 30.0
"""A user's versions are at least so many rows and seconds apart."""
STOP_SECONDS = 5.0
"""Time that a version has to be stored when the service ends."""
STREAM_BYTES = 256 * 2**20
"""Memory for users who are followed at one time; beyond it the longest silent begin anew when they come back."""


Known = tuple[str, str]
"""A model and a user."""


@dataclass(slots=True)
class Followed:
    """One user's stream.

    Attributes:
        known: the calibrated head it began from.
        stream: what was learned.
        rows: learned from, and published_at: of them when a version was last written.
        published: the last version that was written here, 0 for none.
        drift: of the latest rows.
        declined: whether somebody went back from what was published here.
    """

    known: CalibratedHead
    stream: Stream
    rows: int = 0
    published_at: int = 0
    published: int = 0
    at: float = field(default=-PUBLISH_SECONDS)
    drift: float = float("nan")
    declined: bool = False


class Following:
    """Learns from observations; all but the fits on the event loop of the process that owns the store.

    Attributes:
        observations: what answers of this process leave to be learned from.
        changed: called with the models and users that are observed from now on, and those that are no more.
        advised: called when a new calibration of an output is advised to a user from now on, or no more.
    """

    def __init__(
        self,
        store: Store,
        resolver: Resolver,
        calibrator: Calibrator,
        adapter: Adapter,
        models: Callable[[], Iterable[LoadedModel]],
        observed: Callable[[float, LoadedModel], None],
    ) -> None:
        self._store, self._resolver, self._calibrator, self._adapter = store, resolver, calibrator, adapter
        self._models, self._observed = models, observed
        self.observations = Observations(EVERY, self._ready)
        self.changed: Callable[[list[Known], list[Known]], None] = lambda added, gone: None
        self.advised: Callable[[Output, bool], None] = lambda output, now: None
        self._modes: dict[Known, str] = {}
        self._followed: OrderedDict[Who, Followed] = OrderedDict()
        self._due: OrderedDict[Who, None] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read who wants to be followed.

        Raises:
            StoreError: the store is out of reach.
        """
        self._modes = await self._calibrator.data.adapting()
        self._tell()

    async def stop(self) -> None:
        """Learn no more; returns when what is being learned is stored, so that the store can be closed."""
        self.observations.wanted.clear()
        self._due.clear()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=STOP_SECONDS)
            self._task.cancel()

    def _tell(self) -> None:
        wanted, now = self.observations.wanted, set(self._modes)
        added, gone = list(now - wanted), list(wanted - now)
        wanted.update(added)
        wanted.difference_update(gone)
        if added or gone:
            self.changed(added, gone)

    def set_mode(self, model: str, user: str, mode: str) -> None:
        """Note a user's choice; what was learned of one who is not followed any more is dropped."""
        if mode == "off":
            self._modes.pop((model, user), None)
            self._drop(model, user)
        else:
            self._modes[model, user] = mode
            for who, found in self._followed.items():
                if (who[0].model, who[1]) == (model, user):
                    found.declined = False
        self._tell()

    def forget(self, model: str | None, user: str) -> None:
        """Drop all that was learned of a user who is erased, and follow them no more."""
        for known in [k for k in self._modes if k[1] == user and model in (None, k[0])]:
            del self._modes[known]
        self._drop(model, user)
        self._tell()

    def begin_anew(self, model: str, user: str) -> None:
        """Drop all that was learned of a user, and what it was learned from; who is followed still is."""
        self._drop(model, user)

    def _drop(self, model: str | None, user: str) -> None:
        self.observations.forget(user)
        for who in [w for w in self._followed if w[1] == user and model in (None, w[0].model)]:
            del self._followed[who]
        # Also of who was not seen lately, and so is in `_followed` no more.
        for output in [o for o in self.observations.advised if o[1] == user and model in (None, o[0])]:
            self._advise(output, False)

    def _advise(self, output: Output, now: bool) -> None:
        """Let answers say that a calibration is advised, or no more."""
        advised = self.observations.advised
        if now != (output in advised):
            (advised.add if now else advised.discard)(output)
            self.advised(output, now)

    def state(self, who: Who) -> dict[str, Any] | None:
        """What is known of a user's stream; None for one who is not followed, or has not been seen lately."""
        found = self._followed.get(who)
        if found is None or found.stream.adaptation is None:
            return None
        last = found.stream.adaptation
        return {
            "rows": found.rows,
            "anchor": found.known.version,
            "outcome": last.outcome,
            "reason": last.reason,
            "published_version": found.published or None,
            "drift": round(found.drift, 4),
            "recalibration_advised": bool(found.drift > ADVISED),
        }

    def _ready(self, who: Who) -> None:
        self._due[who] = None
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        acting.set("following")  # not whose request began this task: it learns from everybody's
        while self._due:
            who, _ = self._due.popitem(last=False)
            rows = self.observations.take(who)
            mode = self._modes.get((who[0].model, who[1]))
            model = next((m for m in self._models() if m.scope == who[0]), None)
            if rows is None or mode is None or model is None:
                continue
            try:
                await self._learn(model, who, rows, mode)
            except (Conflict, UserChanged) as e:  # another change of the user: the next rows see what it was
                log.debug("a head does not follow its user just now: %s", e)
            except (HeadwayError, StoreError, NoSuchVersion) as e:
                # There is nothing to adapt, or the store is away: begin anew later.
                self._followed.pop(who, None)
                log.debug("a head does not follow its user for now: %s", e)
            except Exception:
                self._followed.pop(who, None)
                log.exception("a head could not follow its user")

    async def _learn(self, model: LoadedModel, who: Who, rows: Rows, mode: str) -> None:
        found = await self._current(model, who)
        await asyncio.to_thread(_observed, found, rows)
        self._observed(found.drift, model)
        adaptation = found.stream.adaptation
        if who not in self._followed:  # erased meanwhile, or not to be followed any more
            return
        self._advise(_output(who), found.drift > ADVISED)
        if mode != "on" or adaptation is None or found.declined:
            return
        waited = found.rows - found.published_at >= PUBLISH_ROWS and time.monotonic() - found.at >= PUBLISH_SECONDS
        if adaptation.outcome == "promoted" and (waited or not found.published):
            await self._publish(model, who, found)
        elif adaptation.outcome != "promoted" and found.known.active == found.published and found.published:
            await self._go_back(model, who, found)

    async def _current(self, model: LoadedModel, who: Who) -> Followed:
        """The user's stream; a new one where they were calibrated, or moved their head, since."""
        scope, user = who
        found = self._followed.get(who)
        if found is None or await self._store.revision(scope, user) != found.known.revision:
            known = await self._adapter.calibrated(model, user)
            if found is not None and (known.version, known.data) == (found.known.version, found.known.data):
                left = bool(found.published) and found.known.active == found.published != known.active
                found.known, found.declined = known, found.declined or left
            else:
                found = Followed(known, Stream(known.anchor, EVERY))
                self._advise(_output(who), False)
        if (scope.model, user) not in self._modes:  # erased meanwhile, or not to be followed any more
            raise UserChanged
        self._followed[who] = found
        self._followed.move_to_end(who)
        while len(self._followed) > max(1, STREAM_BYTES // found.known.anchor.nbytes):
            self._followed.popitem(last=False)
        return found

    async def _publish(self, model: LoadedModel, who: Who, found: Followed) -> None:
        scope, user = who
        adaptation = found.stream.adaptation
        assert adaptation is not None
        async with self._calibrator.exclusively(model, user):
            chosen = (await self._calibrator.data.settings(scope, user)).adapt
            if chosen != "on":  # by another service on the same store
                self.set_mode(model.name, user, chosen)
                return
            report = report_of(model, found.known, adaptation, found.rows, activate=True) | {"causal": True}
            committed = await self._adapter.commit(model, user, found.known, adaptation, report)
            before, found.published = found.published, committed["version"]
            found.published_at, found.at = found.rows, time.monotonic()
            found.known = await self._adapter.calibrated(model, user)
            if before:  # versions of one stream replace each other: a user's list stays short
                with contextlib.suppress(NoSuchVersion):
                    await self._store.delete_version(scope, user, before)
                    found.known = await self._adapter.calibrated(model, user)

    async def _go_back(self, model: LoadedModel, who: Who, found: Followed) -> None:
        scope, user = who
        async with self._calibrator.exclusively(model, user):
            if await self._store.revision(scope, user) != found.known.revision:
                raise UserChanged  # somebody chose another head meanwhile
            pointers = await self._store.activate(scope, user, found.known.version)
            self._resolver.point(scope, user, pointers.active)
            found.known = await self._adapter.calibrated(model, user)


def _output(who: Who) -> Output:
    scope, user = who
    return scope.model, user, scope.output


def _observed(found: Followed, rows: Rows) -> None:
    """Learn from rows; on a thread, for it takes milliseconds."""
    found.drift = drift(found.stream.anchor, found.stream.anchor.cut(rows))
    found.stream.observe(rows)
    found.rows += len(rows)
