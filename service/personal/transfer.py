"""Whole users out of the store and into it, each in one transaction."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service.personal import data_changes
from service.personal.data_tables import enrolled, enrolled_windows, own_labels, retained, sample_calls
from service.personal.kept import UserSettings
from service.personal.records import Scope, head_from_bytes
from service.personal.rows import owned, owner_values
from service.personal.schema import activations, users, versions
from service.personal.store import Store
from service.personal.userfile import Activation, Contents, Index, StoredVersion, UserFile, digest, report_bytes


class UserExists(RuntimeError):
    """There is a user of that name already."""


async def statistics_of(store: Store, scope: Scope, user: str, version: int) -> bytes | None:
    """Return the statistics of one version, or None where they are not kept."""
    async with store.transaction() as c:
        data: bytes | None = await c.scalar(
            select(versions.c.statistics).where(owned(versions, scope, user), versions.c.version == version)
        )
    return data


async def take_out(
    store: Store, scope: Scope, user: str, *, model_version: int, feature_space: str, labels: tuple[str, ...]
) -> UserFile | None:
    """Read all of a user in one scope, as they are at one moment; None where there is no such user."""
    async with store.transaction() as c:
        pointers = (await c.execute(select(users).where(owned(users, scope, user)))).mappings().first()
        if pointers is None:
            return None
        rows = (
            (await c.execute(select(versions).where(owned(versions, scope, user)).order_by(versions.c.version)))
            .mappings()
            .all()
        )
        served = await c.execute(
            select(activations.c.version, activations.c.at)
            .where(owned(activations, scope, user))
            .order_by(activations.c.id)
        )
        settings = await data_changes.settings_of(c, scope, user)
        own = await data_changes.own_labels_of(c, scope, user)
        history = tuple(Activation(version=row.version, at=row.at) for row in served)
    for row in rows:
        head_from_bytes(row["head"], row["digest"])  # what is damaged here is not carried elsewhere
    contents = {row["version"]: Contents(row["head"], row["statistics"], row["report"]) for row in rows}
    listed = tuple(
        StoredVersion(
            version=row["version"],
            calibration_id=row["calibration_id"],
            created=row["created"],
            head=row["digest"],
            statistics=None if row["statistics"] is None else digest(row["statistics"]),
            report=digest(report_bytes(row["report"])),
        )
        for row in rows
    )
    index = Index(
        user=user,
        model=scope.model,
        model_version=model_version,
        feature_space=feature_space,
        labels=labels,
        **{name: pointers[name] for name in ("active", "base", "last", "created", "updated")},
        settings=asdict(settings),
        own_labels=own,
        versions=listed,
        activations=history,
    )
    return UserFile(index, contents)


async def bring_in(
    store: Store, files: Mapping[Scope, UserFile], user: str, sizes: Mapping[Scope, tuple[int, int]], *, replace: bool
) -> None:
    """Write a user as the files have them, all or nothing: versions, statistics, pointers and what was served before.

    Heads and statistics must have been checked against the outputs of the model that the scopes are of; `sizes` is as
    of `data_changes.let_go`, for outputs that no file is of.

    Raises:
        UserExists: and `replace` does not say that they are to be replaced.
    """
    async with store.transaction(write=True) as c:
        for scope, file in files.items():
            await _bring_in(c, store, scope, user, file, sizes, replace=replace)


async def _bring_in(
    c: AsyncConnection,
    store: Store,
    scope: Scope,
    user: str,
    file: UserFile,
    sizes: Mapping[Scope, tuple[int, int]],
    *,
    replace: bool,
) -> None:
    index, who = file.index, owner_values(scope, user)
    known = await c.scalar(select(users.c.user).where(owned(users, scope, user)).with_for_update())
    if known is not None and not replace:
        raise UserExists(user)
    for table in (versions, activations, users, enrolled, enrolled_windows, retained, sample_calls, own_labels):
        await c.execute(delete(table).where(owned(table, scope, user)))
    if index.own_labels:
        await data_changes.set_own_labels(c, scope, user, index.own_labels)
    before = await data_changes.chosen_settings(c, scope, user)
    settings = before or UserSettings()
    if index.settings:
        settings = UserSettings.of(index.settings)
        if before is not None and not before.keeps(settings.retention):
            # A file does not relax what was chosen here.
            settings = UserSettings(before.retention, settings.adapt, settings.attributes, settings.half_life)
        await data_changes.set_settings(c, scope, user, settings)
        if not settings.keeps((before or UserSettings()).retention):
            await data_changes.let_go(c, scope, user, settings, sizes)  # what is kept in other feature spaces
    await c.execute(
        insert(users).values(
            **who,
            **{name: getattr(index, name) for name in ("active", "base", "last", "created")},
            updated=time.time(),
            revision=1 + secrets.randbits(40),  # whoever began a calibration before must not commit to this
        )
    )
    for v in index.versions:
        content = file.contents[v.version]
        await c.execute(
            insert(versions).values(
                **who,
                version=v.version,
                calibration_id=v.calibration_id,
                created=v.created,
                head=content.head,
                digest=v.head,
                statistics=content.statistics if settings.keeps("statistics") else None,
                report=content.report,
            )
        )
    if index.activations:
        await c.execute(insert(activations), [{**who, **a.model_dump()} for a in index.activations])
    await store.replaced(c, scope, user)
    await store.audit(c, scope, user, "imported", {"versions": len(index.versions), "active": index.active})
