"""After a backbone upgrade: users' heads are fitted anew in the new feature space, in the background.

How is in `service.personal.refitting`; here is who, when, and that each is moved once. Whoever cannot be moved stays on
the older version, which goes on answering them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from models.heads import statistics
from service.catalogue import Catalogue
from service.errors import Conflict, HeadwayError, Unavailable, Unprocessable
from service.loaded import LoadedModel
from service.personal import data_changes
from service.personal.acting import acting
from service.personal.calibrate import Calibrator
from service.personal.operations import DONE, FAILED, NotOurs, Operation, Operations
from service.personal.records import NewVersion, Scope, StoreError, UserChanged, Version
from service.personal.refitting import Refitted, Refitter
from service.personal.resolve import Resolver
from service.personal.rows import owned
from service.personal.schema import users
from service.personal.states import spaces_of
from service.personal.store import Store

log = logging.getLogger("headway")

USERS_A_LOOK = 100
LOOK_SECONDS = 3.0
"""Between two looks for work that another service has left."""
RETRY_SECONDS = 1.0
MOST_PASSES = 60
"""Times that users are looked at again who were just being changed, `RETRY_SECONDS` apart."""
SHARE = 0.25
"""Of the time of one core that recalibration takes at most: predictions come first."""


async def sources_of(models: Catalogue, store: Store, model: LoadedModel, from_version: int | None) -> list[str]:
    """Feature spaces to move users from: those of versions that are served, the newest first, then all others.

    Raises:
        UnknownModel: there is no such version.
        Unprocessable: it has no such output, or is of the same feature space.
    """
    if from_version is not None:
        older = _same_output(models.get(model.name, from_version), model)
        if older is None:
            raise Unprocessable(f"version {from_version} of model {model.name!r} has no output {model.output!r}")
        if older.scope == model.scope:
            raise Unprocessable(
                f"versions {from_version} and {model.version} of model {model.name!r} compute the same feature space: "
                "heads are valid in both, and nobody needs to be moved"
            )
        return [older.scope.feature_space]
    counterparts = (_same_output(m, model) for m in models.candidates(model.name))
    served = [m.scope.feature_space for m in counterparts if m is not None]
    stored = await spaces_of(store, model.scope)
    return [space for space in dict.fromkeys((*served, *stored)) if space != model.scope.feature_space]


def _same_output(version: LoadedModel, output: LoadedModel) -> LoadedModel | None:
    """Return of another version the output that an output was, if there was one."""
    return next((each for each in version.each if each.scope.output == output.scope.output), None)


class Recalibrator:
    """Does operations, one after the other, as long as `run` is not cancelled.

    Args:
        store, models, calibrator, resolver: of the service.
        share: of the time of one core that it takes at most; by default `SHARE`.
        me: name of who does operations, where several processes are one.
    """

    def __init__(
        self,
        store: Store,
        models: Catalogue,
        calibrator: Calibrator,
        resolver: Resolver,
        *,
        share: float | None = None,
        me: str | None = None,
    ) -> None:
        self._store, self._models = store, models
        self._calibrator, self._resolver = calibrator, resolver
        self._refitter = Refitter(store, calibrator.data)
        self._wake, self._share = asyncio.Event(), share
        self.operations = Operations(store, me)

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    async def run(self) -> None:
        """Do operations until cancelled: those begun here, and those that another service or a kill left."""
        down = False
        while True:
            self._wake.clear()
            try:
                operation = await self.operations.claim()
                down = False
                if operation is not None:
                    await self.do(operation)
                    continue
            except NotOurs as e:
                log.info("operation %s was cancelled, or is done elsewhere", e)
            except StoreError as e:
                if not down:
                    log.warning("operations wait for the store: %s", e)
                down = True
                await asyncio.sleep(RETRY_SECONDS)
                continue
            except Exception:
                log.exception("an operation failed; it is tried again")
                await asyncio.sleep(LOOK_SECONDS)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()

    async def do(self, operation: Operation) -> None:
        """Do an operation of ours to its end.

        Raises:
            NotOurs: it was cancelled, or another service has taken it over.
            StoreError: the store does not answer.
        """
        log.info(
            "operation %s: %d of %d users are left", operation.id, operation.total - operation.done, operation.total
        )
        try:
            await self.move_all(operation)
            await self.operations.finish(operation, DONE)
            log.info("operation %s is done", operation.id)
        except asyncio.CancelledError:
            with contextlib.suppress(StoreError):
                await self.operations.release(operation)
            raise

    async def move_all(self, operation: Operation, begin: str = "", until: str | None = None) -> None:
        """Move the users of an operation of ours, or those behind a name and up to another.

        They come by name, and again those who were just being changed; not for ever.

        Raises:
            NotOurs, StoreError: as `do`.
        """
        acting.set(f"operation {operation.id}")
        busy, after, passes = list[str](), begin, 0
        while True:
            batch = await self.operations.batch(operation, after, USERS_A_LOOK, until)
            for user, spaces in batch:
                if not await self._one(operation, user, spaces):
                    busy.append(user)
                worked, self._refitter.worked = self._refitter.worked, 0.0
                share = self._share or SHARE
                await asyncio.sleep(worked * (1 - share) / share)
                after = user
            if batch:
                continue
            if not busy:
                return
            passes += 1
            if passes > MOST_PASSES:
                for user in busy:
                    await self.operations.note(
                        operation, user, "failed", "was being changed each time it was their turn"
                    )
            else:
                await self.operations.say(operation, "waits for users who are being calibrated")
                await asyncio.sleep(RETRY_SECONDS)
            busy, after = [], begin

    async def _one(self, operation: Operation, user: str, spaces: list[str]) -> bool:
        """Move a user, or note why that cannot be; false if they are being changed just now."""
        model = await self._model(operation)
        try:
            with model.used():
                async with self._calibrator.exclusively(model, user):
                    outcome, reason = await self._move(operation, model, user, spaces)
                    if outcome != "moved" or operation.dry_run:
                        await self.operations.note(operation, user, outcome, reason)
        except Conflict:
            return False
        except (NotOurs, StoreError):
            raise
        except HeadwayError as e:
            if isinstance(e.__cause__, StoreError):
                raise e.__cause__ from None
            if isinstance(e, Unavailable):  # the version is being replaced, or the service ends
                return False
            await self.operations.note(operation, user, "failed", e.message)
        except Exception as e:
            log.exception("recalibrating a user failed")
            await self.operations.note(operation, user, "failed", f"{type(e).__name__}: the log says more")
        return True

    async def _model(self, operation: Operation) -> LoadedModel:
        """Return the version that users are moved to, when it is served."""
        while True:
            try:
                model = self._models.get(operation.scope.model, operation.model_version)
            except HeadwayError as e:
                await self.operations.say(operation, f"waits: {e.message}")
            else:
                output = next((each for each in model.each if each.scope == operation.scope), None)
                if output is not None:
                    return output
                text = f"version {model.version} computes {model.scope.feature_space} now"
                await self.operations.finish(operation, FAILED, text)
                raise NotOurs(operation.id)
            await asyncio.sleep(RETRY_SECONDS)

    async def _move(self, operation: Operation, model: LoadedModel, user: str, spaces: list[str]) -> tuple[str, str]:
        reason = "no head is active any more"
        revision = await self._store.revision(model.scope, user)
        for space in spaces:
            source = Scope(model.name, space, operation.scope.tenant)
            found = await self._store.user(source, user)
            version = None if found is None else await self._store.version(source, user, found.active)
            if version is None:
                continue
            refitted = await self._refitter.refitted(model, source, user, version)
            if isinstance(refitted, str):
                reason = refitted
                continue
            if not operation.dry_run:
                new = self._version(operation, model, user, source, version, refitted, revision)
                # Shielded: once begun, a commit and the pointer's cache go together.
                await asyncio.shield(self._commit(model, user, new))
            return "moved", refitted.by
        return "needs_enrolment", reason

    async def _commit(self, model: LoadedModel, user: str, new: NewVersion) -> None:
        number = await self._store.commit(model.scope, user, new)
        self._resolver.point(model.scope, user, number)

    def _version(
        self,
        operation: Operation,
        model: LoadedModel,
        user: str,
        source: Scope,
        before: Version,
        refitted: Refitted,
        revision: int,
    ) -> NewVersion:
        identifier = str(uuid.uuid4())
        report = {
            "calibration_id": identifier,
            "operation": operation.id,
            **refitted.report(model, source, before),
        }

        async def also(c: AsyncConnection, number: int) -> None:
            """Count the move with it; and undo both if the user was erased or changed where they come from."""
            row = select(users.c.active).where(owned(users, source, user)).with_for_update()
            if await c.scalar(row) != before.version:
                raise UserChanged
            settings = await data_changes.settings_of(c, model.scope, user)
            if not settings.keeps("statistics" if refitted.kept is None else "inputs"):
                raise UserChanged  # another service was told to keep less
            await self.operations.count(c, operation, user, "moved", refitted.by)
            if refitted.own:
                await data_changes.add_own_labels(c, model.scope, user, refitted.own)
            if refitted.kept is not None:
                await data_changes.retain(c, model.scope, user, number, refitted.kept)

        # Who lets nothing be kept has neither windows nor statistics that anything could be refitted from.
        data = statistics.to_bytes(refitted.statistics.padded(model.columns))
        head = refitted.head.cut(len(model.labels) + len(refitted.own), refitted.own)
        return NewVersion(identifier, head, data, report, True, True, revision=revision, also=also)
