"""What changes and reads of users' data do to the rows; the caller holds the transaction."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Table, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from models.heads import statistics
from models.heads.calibration import MAX_REPETITIONS
from models.heads.statistics import Statistics
from service.errors import Conflict, Unprocessable
from service.personal.data_tables import (
    enrolled,
    enrolled_windows,
    own_labels,
    retained,
    sample_calls,
    user_settings,
)
from service.personal.kept import MOST_WINDOWS, Kept, UserSettings, joined
from service.personal.records import Scope
from service.personal.rows import of_output, owned, owner_values
from service.personal.schema import users, versions

KEYS_KEPT = 128
"""Calls of `samples` with an Idempotency-Key that are remembered of a user."""

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Enrolled:
    """Windows that were enrolled and are in no version yet.

    Attributes:
        revision: grows with every change of them.
        statistics: of those whose features are not kept, or None.
        counts: of the others, by class and repetition (`Kept.counts`).
        settings: the user's, at the same moment.
        windows: those that are counted, where they were asked for and there are some.
        own: labels that the user has added to the bundle's.
    """

    revision: int
    statistics: Statistics | None
    counts: tuple[tuple[int, int, int], ...]
    settings: UserSettings
    windows: Kept | None = None
    own: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self.statistics is not None or bool(self.counts)

    def of_class(self, label: int) -> tuple[int, int]:
        """Return how many windows of a class there are, and of how many repetitions."""
        counted = [(r, n) for c, r, n in self.counts if c == label]
        windows, repetitions = sum(n for _, n in counted), len({r for r, _ in counted})
        if self.statistics is not None:
            windows += int(self.statistics.n[label])
            repetitions += int(self.statistics.repetitions_seen[label])
        return windows, repetitions


def _in_model(table: Table, scope: Scope, user: str) -> list[ColumnElement[bool]]:
    """Conditions on a table's rows of a user of a model, in all its feature spaces."""
    return [table.c.tenant == scope.tenant, table.c.model == scope.model, table.c.user == user]


async def settings_of(c: AsyncConnection, scope: Scope, user: str) -> UserSettings:
    """Read what a user chose; the defaults for one who chose nothing."""
    return await chosen_settings(c, scope, user) or UserSettings()


async def chosen_settings(c: AsyncConnection, scope: Scope, user: str) -> UserSettings | None:
    """Read what a user chose; None for one who chose nothing."""
    row = (await c.execute(select(user_settings).where(*_in_model(user_settings, scope, user)))).mappings().first()
    if row is None:
        return None
    return UserSettings(row["retention"], row["adapt"], row["attributes"], row["half_life"])


async def set_settings(c: AsyncConnection, scope: Scope, user: str, settings: UserSettings) -> None:
    """Write what a user chose."""
    await c.execute(delete(user_settings).where(*_in_model(user_settings, scope, user)))
    await c.execute(
        insert(user_settings).values(
            tenant=scope.tenant,
            model=scope.model,
            user=user,
            retention=settings.retention,
            adapt=settings.adapt,
            attributes=settings.attributes,
            half_life=settings.half_life,
            updated=time.time(),
        )
    )


async def enrolled_of(c: AsyncConnection, scope: Scope, user: str, *, windows: bool = False) -> Enrolled:
    """Read what is enrolled; the windows themselves only on demand, for they may be many."""
    row = (await c.execute(select(enrolled).where(owned(enrolled, scope, user)))).mappings().first()
    settings = await settings_of(c, scope, user)
    mine = owned(enrolled_windows, scope, user)
    counts = await c.scalars(select(enrolled_windows.c.counts).where(mine))
    parts = []
    if windows:
        chosen = select(enrolled_windows.c.data).where(mine).order_by(enrolled_windows.c.id)
        parts = [Kept.from_bytes(data) for data in await c.scalars(chosen)]
    blob = None if row is None else row["statistics"]
    return Enrolled(
        0 if row is None else row["revision"],
        None if blob is None else statistics.from_bytes(blob),
        tuple((label, repetition, n) for each in counts for label, repetition, n in each),
        settings,
        joined(parts),
        await own_labels_of(c, scope, user),
    )


async def own_labels_of(c: AsyncConnection, scope: Scope, user: str) -> tuple[str, ...]:
    """Read which labels a user has added to the bundle's."""
    return tuple(await c.scalar(select(own_labels.c.labels).where(owned(own_labels, scope, user))) or ())


async def own_labels_anywhere(c: AsyncConnection, scope: Scope, user: str) -> list[str]:
    """Read which labels a user has added in any feature space of an output."""
    mine = *_in_model(own_labels, scope, user), of_output(own_labels.c, scope)
    rows = await c.scalars(select(own_labels.c.labels).where(*mine))
    return list(dict.fromkeys(name for names in rows for name in names))


async def spaces_of(c: AsyncConnection, scope: Scope, user: str) -> list[str]:
    """Lock a user in all feature spaces of an output, and return which there are."""
    mine = select(users.c.feature_space).where(*_in_model(users, scope, user), of_output(users.c, scope))
    return list((await c.scalars(mine.order_by(users.c.feature_space).with_for_update())).all())


async def add_own_labels(c: AsyncConnection, scope: Scope, user: str, labels: tuple[str, ...]) -> None:
    """Give a user the labels of a head that comes from elsewhere, where they have the same or none yet.

    Raises:
        Conflict: they have others.
    """
    held = await own_labels_of(c, scope, user)
    common = min(len(held), len(labels))
    if held[:common] != labels[:common]:
        raise Conflict(
            f"the head's labels beyond the model's are {', '.join(labels)}, and the user's {', '.join(held)}: "
            "they must be the same, in the same order"
        )
    if len(labels) > len(held):
        await set_own_labels(c, scope, user, labels)


async def set_own_labels(c: AsyncConnection, scope: Scope, user: str, labels: tuple[str, ...]) -> None:
    """Write which labels a user has added."""
    await c.execute(delete(own_labels).where(owned(own_labels, scope, user)))
    await c.execute(insert(own_labels).values(**owner_values(scope, user), labels=list(labels)))


async def set_enrolled(c: AsyncConnection, scope: Scope, user: str, revision: int, blob: bytes | None) -> None:
    """Write the statistics of enrolled windows, as the revision after the one given."""
    await c.execute(delete(enrolled).where(owned(enrolled, scope, user)))
    await c.execute(insert(enrolled).values(**owner_values(scope, user), revision=revision + 1, statistics=blob))


async def add(
    c: AsyncConnection, scope: Scope, user: str, held: Enrolled, new: Kept, classes: int, personal: int
) -> Enrolled:
    """Enrol windows as the user's retention allows; returns what is enrolled then.

    Raises:
        Unprocessable: there would be too many.
    """
    if not held.settings.keeps("features"):
        sums = new.statistics(classes, personal)
        total = sums if held.statistics is None else held.statistics + sums
        total = total.merged_to(MAX_REPETITIONS)
        await set_enrolled(c, scope, user, held.revision, statistics.to_bytes(total))
        return replace(held, revision=held.revision + 1, statistics=total)
    kept = new if held.settings.keeps("inputs") else new.without_inputs()
    counts = [*held.counts, *((label, repetition, n) for label, repetition, n in kept.counts())]
    if (count := sum(n for *_, n in counts)) > MOST_WINDOWS:
        raise Unprocessable(
            f"{count} windows would be enrolled; at most {MOST_WINDOWS} are kept: calibrate with them first "
            "(POST …/calibrations without inputs), or DELETE …/samples"
        )
    row = {**owner_values(scope, user), "counts": kept.counts(), "data": kept.to_bytes()}
    await c.execute(insert(enrolled_windows).values(**row))
    blob = None if held.statistics is None else statistics.to_bytes(held.statistics)
    await set_enrolled(c, scope, user, held.revision, blob)
    return replace(held, revision=held.revision + 1, counts=tuple(counts))


async def answered(c: AsyncConnection, scope: Scope, user: str, key: str, digest: str) -> Answer | None:
    """Return what a call with this key was answered, or None.

    Raises:
        Conflict: it had another body.
    """
    mine = owned(sample_calls, scope, user) & (sample_calls.c.idempotency_key == key)
    row = (await c.execute(select(sample_calls).where(mine))).mappings().first()
    if row is None:
        return None
    if row["request_digest"] != digest:
        raise Conflict("an earlier call with this Idempotency-Key, or of this prediction, had another body")
    answer: Answer = row["answer"]
    return answer


async def remember(
    c: AsyncConnection, scope: Scope, user: str, key: str, digest: str, answer: Answer, now: float
) -> None:
    """Keep a call's answer for a repetition of it, and forget the oldest ones."""
    await c.execute(
        insert(sample_calls).values(
            **owner_values(scope, user), idempotency_key=key, request_digest=digest, answer=answer, at=now
        )
    )
    own = owned(sample_calls, scope, user)
    newest = select(sample_calls.c.at).where(own).order_by(sample_calls.c.at.desc()).offset(KEYS_KEPT).limit(1)
    oldest = await c.scalar(newest)
    if oldest is not None:
        await c.execute(delete(sample_calls).where(own, sample_calls.c.at <= oldest))


async def let_go(
    c: AsyncConnection, scope: Scope, user: str, settings: UserSettings, sizes: Mapping[Scope, tuple[int, int]]
) -> None:
    """Delete what a lowered retention allows no longer, in every feature space of the model.

    `sizes`: classes and personal features where enrolled windows become statistics; in other spaces they go.
    """
    if settings.keeps("features"):
        await _strip_inputs(c, scope, user)
        return
    enrolled_in = {}
    if settings.keeps("statistics"):
        enrolled_in = {space: await enrolled_of(c, space, user, windows=True) for space in sizes}
    for table in (enrolled_windows, retained):
        await c.execute(delete(table).where(*_in_model(table, scope, user)))
    if settings.keeps("statistics"):
        for space, here in enrolled_in.items():
            if here.windows is not None:
                total = here.windows.statistics(*sizes[space])
                total = total if here.statistics is None else here.statistics + total
                blob = statistics.to_bytes(total.merged_to(MAX_REPETITIONS))
                await set_enrolled(c, space, user, here.revision, blob)
        return
    for table in (enrolled, sample_calls):
        await c.execute(delete(table).where(*_in_model(table, scope, user)))
    await c.execute(update(versions).where(*_in_model(versions, scope, user)).values(statistics=None))
    # Another revision, so that no calibration that began before brings them back.
    began_anew = {"base": 0, "revision": users.c.revision + 1}
    await c.execute(update(users).where(*_in_model(users, scope, user)).values(**began_anew))


async def _strip_inputs(c: AsyncConnection, scope: Scope, user: str) -> None:
    for table in (enrolled_windows, retained):
        chosen = select(table).where(*_in_model(table, scope, user))
        for row in (await c.execute(chosen)).mappings().all():
            same = [column == row[column.name] for column in table.primary_key.columns]
            stripped = Kept.from_bytes(row["data"]).without_inputs().to_bytes()
            await c.execute(update(table).where(*same).values(data=stripped))


async def retain(c: AsyncConnection, scope: Scope, user: str, version: int, windows: Kept) -> None:
    """Keep all windows behind a version."""
    await c.execute(insert(retained).values(**owner_values(scope, user), version=version, data=windows.to_bytes()))


async def forget_all(c: AsyncConnection, scope: Scope, user: str) -> None:
    """Delete all windows and statistics of a user in a feature space."""
    revision = (await enrolled_of(c, scope, user)).revision
    for table in (enrolled_windows, retained, sample_calls):
        await c.execute(delete(table).where(owned(table, scope, user)))
    await set_enrolled(c, scope, user, revision, None)
    await c.execute(update(versions).where(owned(versions, scope, user)).values(statistics=None))
    await c.execute(update(users).where(owned(users, scope, user)).values(base=0))


async def forget_class(c: AsyncConnection, scope: Scope, user: str, label: int) -> None:
    """Take a class out of all windows and statistics of a user in a feature space."""
    held = await enrolled_of(c, scope, user)
    blob = None if held.statistics is None else _without(held.statistics, label)
    await set_enrolled(c, scope, user, held.revision, blob)
    for table in (enrolled_windows, retained):
        for row in (await c.execute(select(table).where(owned(table, scope, user)))).mappings().all():
            same = [column == row[column.name] for column in table.primary_key.columns]
            kept = Kept.from_bytes(row["data"])
            left = kept.at(np.flatnonzero(kept.y != label))
            if not len(left):
                await c.execute(delete(table).where(*same))
            elif len(left) < len(kept):
                values = {"data": left.to_bytes(), **({"counts": left.counts()} if "counts" in table.c else {})}
                await c.execute(update(table).where(*same).values(**values))
    await c.execute(delete(sample_calls).where(owned(sample_calls, scope, user)))
    mine = owned(versions, scope, user) & versions.c.statistics.is_not(None)
    for number, data in (await c.execute(select(versions.c.version, versions.c.statistics).where(mine))).all():
        changed = _without(statistics.from_bytes(data), label)
        await c.execute(update(versions).where(mine, versions.c.version == number).values(statistics=changed))


def _without(stats: Statistics, label: int) -> bytes:
    return statistics.to_bytes(stats.without_class(label))
