"""What is kept of users beside their heads: settings, enrolled windows, windows behind versions."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import Conflict
from service.personal import changes, data_changes
from service.personal.data_changes import Answer, Enrolled
from service.personal.data_tables import enrolled_windows, retained, user_settings
from service.personal.kept import RETENTION, Kept, UserSettings
from service.personal.own_labels import placed
from service.personal.records import Scope, UserChanged
from service.personal.rows import owned
from service.personal.schema import versions
from service.personal.store import Store


class UserData:
    """Reads and changes what is kept of users; each change is one transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def settings(self, scope: Scope, user: str) -> UserSettings:
        """Return what a user chose; the defaults for one who is unknown."""
        async with self._store.transaction() as c:
            return await data_changes.settings_of(c, scope, user)

    async def adapting(self) -> dict[tuple[str, str], str]:
        """Return those whose `adapt` is not `off`: model and user, and their choice."""
        async with self._store.transaction() as c:
            where = user_settings.c.adapt != "off"
            rows = await c.execute(
                select(user_settings.c.model, user_settings.c.user, user_settings.c.adapt).where(where)
            )
            return {(row.model, row.user): row.adapt for row in rows}

    async def enrolled(self, scope: Scope, user: str, *, windows: bool = False) -> Enrolled:
        """Return what is enrolled of a user; the windows themselves on demand."""
        async with self._store.transaction() as c:
            return await data_changes.enrolled_of(c, scope, user, windows=windows)

    async def retained(self, scope: Scope, user: str, version: int) -> Kept | None:
        """Return all windows behind a version, or None where they are not kept."""
        async with self._store.transaction() as c:
            where = owned(retained, scope, user), retained.c.version == version
            data = await c.scalar(select(retained.c.data).where(*where))
        return None if data is None else Kept.from_bytes(data)

    async def configure(
        self, scope: Scope, user: str, wanted: dict[str, Any], sizes: Mapping[Scope, tuple[int, int]]
    ) -> tuple[UserSettings, bool]:
        """Set what `wanted` names of a user's settings, and delete what is no longer to be kept.

        Makes the user if there is none. Windows that may not be kept any more become statistics where those may, in
        the spaces that `sizes` names, with their classes and personal features.

        Returns:
            The settings, and whether anything was deleted.
        """
        async with self._store.transaction(write=True) as c:
            await changes.found_or_made(c, scope, user, time.time())
            before = await data_changes.settings_of(c, scope, user)
            after = replace(before, **wanted)
            await data_changes.set_settings(c, scope, user, after)
            lowered = RETENTION.index(after.retention) < RETENTION.index(before.retention)
            if lowered:
                await data_changes.let_go(c, scope, user, after, sizes)
            details = {"retention": after.retention, "adapt": after.adapt, "half_life": after.half_life}
            await self._store.audit(c, scope, user, "configured", details)
        if lowered:
            await self._store.purge()
        return after, lowered

    async def answered(self, scope: Scope, user: str, key: str, digest: str) -> Answer | None:
        """Return the answer that a call of `samples` with this key was given, or None.

        Raises:
            Conflict: it had another body.
        """
        async with self._store.transaction() as c:
            return await data_changes.answered(c, scope, user, key, digest)

    async def enrol(
        self,
        scope: Scope,
        user: str,
        new: Kept,
        *,
        classes: int,
        personal: int,
        own: tuple[str, ...],
        room: int,
        answer: Callable[[Enrolled], Answer],
        key: str | None = None,
        digest: str = "",
    ) -> tuple[Answer, bool]:
        """Keep windows as the user's retention allows; makes the user if there is none.

        Args:
            scope: the feature space.
            user: whose windows.
            new: the windows.
            classes: number of classes, with the room for the user's own.
            personal: number of features that heads are fitted in.
            own: labels that the bundle does not know, of the classes from its number of labels on.
            room: labels of their own that a user may have.
            answer: makes the call's answer from all that is enrolled then.
            key: the call's Idempotency-Key.
            digest: of the call's body.

        Returns:
            The answer, and whether it is an earlier call's.

        Raises:
            Conflict: the key was used with another body.
            Unprocessable: nothing may be kept of the user, or there are too many windows.
        """
        attempt = partial(self._enrol, scope, user, new, classes, personal, own, room, answer, key, digest)
        try:
            return await attempt()
        except UserChanged:  # another service made the user in the same moment: now there is one
            return await attempt()

    async def _enrol(
        self,
        scope: Scope,
        user: str,
        new: Kept,
        classes: int,
        personal: int,
        own: tuple[str, ...],
        room: int,
        answer: Callable[[Enrolled], Answer],
        key: str | None,
        digest: str,
    ) -> tuple[Answer, bool]:
        async with self._store.transaction(write=True) as c:
            now = time.time()
            await changes.found_or_made(c, scope, user, now)
            if key is not None and (before := await data_changes.answered(c, scope, user, key, digest)) is not None:
                return before, True
            held = await data_changes.enrolled_of(c, scope, user)
            held.settings.require("statistics", "enrolling samples")
            y, labels = placed(new.y, own, held.own, classes - room, room)
            if labels != held.own:
                await data_changes.set_own_labels(c, scope, user, labels)
            new, held = replace(new, y=y), replace(held, own=labels)
            if len(new):
                held = await data_changes.add(c, scope, user, held, new, classes, personal)
            made = answer(held)
            if key is not None:
                await data_changes.remember(c, scope, user, key, digest, made, now)
        return made, False

    async def own_labels(self, scope: Scope, user: str) -> list[str]:
        """Return the labels that a user has added in any feature space of an output."""
        async with self._store.transaction() as c:
            return await data_changes.own_labels_anywhere(c, scope, user)

    async def forget(
        self, scope: Scope, user: str, label: str | None, labels_of: Callable[[Scope], tuple[str, ...] | None]
    ) -> bool:
        """Delete enrolled windows, and windows and statistics behind all versions: of one label, or of all (None).

        In every feature space of the output: what is left in an older one would come back with a recalibration. Where
        `labels_of` does not know a space's labels, all goes. Heads stay as they are.

        Returns:
            Whether there is such a user.
        """
        async with self._store.transaction(write=True) as c:
            spaces = await data_changes.spaces_of(c, scope, user)
            for space in spaces:
                there = replace(scope, feature_space=space)
                await changes.altered(c, there, user)
                known = labels_of(there)
                if label is None or known is None:
                    await data_changes.forget_all(c, there, user)
                    continue
                names = (*known, *await data_changes.own_labels_of(c, there, user))
                if label in names:
                    await data_changes.forget_class(c, there, user, names.index(label))
            if not spaces:
                return False
            await self._store.audit(c, scope, user, "forgot samples", {"all": label is None})
        await self._store.purge()
        return True

    def committed(
        self, scope: Scope, user: str, seen: Enrolled, *, used: bool, windows: Kept | None, own: tuple[str, ...]
    ) -> Callable[[AsyncConnection, int], Awaitable[None]]:
        """Return what goes into the transaction of a new version.

        Args:
            scope: the feature space.
            user: whose version.
            seen: what was enrolled when the calibration began.
            used: whether the version takes it over.
            windows: all windows behind the version, where they may be kept.
            own: the user's own labels from now on.

        Raises:
            Conflict: (when it runs) what is enrolled, or may be kept, has changed meanwhile.
        """

        async def also(c: AsyncConnection, version: int) -> None:
            """Take over what was enrolled, keep windows, and drop those of versions whose statistics are dropped."""
            now = await data_changes.enrolled_of(c, scope, user)
            changed = now.settings.retention != seen.settings.retention or (used and now.revision != seen.revision)
            if changed or now.own != seen.own:
                raise Conflict("samples or settings of this user changed while the calibration ran; try again")
            if own != seen.own:
                await data_changes.set_own_labels(c, scope, user, own)
            if used:
                await c.execute(delete(enrolled_windows).where(owned(enrolled_windows, scope, user)))
                await data_changes.set_enrolled(c, scope, user, now.revision, None)
            if windows is not None:
                await data_changes.retain(c, scope, user, version, windows)
            held = select(versions.c.version).where(owned(versions, scope, user), versions.c.statistics.is_not(None))
            await c.execute(delete(retained).where(owned(retained, scope, user), retained.c.version.not_in(held)))

        return also
