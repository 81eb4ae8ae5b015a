"""In which state a user of a model is: calibrated, enrolling, or stale: with heads in other feature spaces only."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import ColumnElement, select

from service.personal.records import Scope, User, output_of
from service.personal.rows import in_scope, of_output, user_of
from service.personal.schema import users
from service.personal.store import Store

State = Literal["calibrated", "enrolling", "stale"]


async def spaces_of(store: Store, scope: Scope) -> list[str]:
    """Return the feature spaces, of the scope's output, in which users of its model are known."""
    where = users.c.tenant == scope.tenant, users.c.model == scope.model
    async with store.transaction() as c:
        found = (await c.scalars(select(users.c.feature_space).where(*where).distinct())).all()
    return [space for space in found if output_of(space) == scope.output]


async def elsewhere(store: Store, scope: Scope, user: str) -> dict[str, int]:
    """Return the other feature spaces in which a head of the user is active, and its version in each."""
    async with store.transaction() as c:
        rows = await c.execute(
            select(users.c.feature_space, users.c.active).where(
                *_in_others(scope), users.c.user == user, users.c.active > 0
            )
        )
        return {row.feature_space: row.active for row in rows}


async def users_in(store: Store, scope: Scope, state: State, after: str, limit: int) -> list[User]:
    """List users in one state by name, beginning behind `after`; of stale ones nothing is here but their names."""
    if state == "stale":
        return await _stale(store, scope, after, limit)
    wanted = [users.c.active > 0] if state == "calibrated" else [users.c.active == 0, ~_active(scope, here=False)]
    query = select(users).where(*in_scope(users, scope), users.c.user > after, *wanted)
    async with store.transaction() as c:
        rows = await c.execute(query.order_by(users.c.user).limit(limit))
        return [user_of(row) for row in rows.mappings()]


async def _stale(store: Store, scope: Scope, after: str, limit: int) -> list[User]:
    active = _active(scope, here=True)
    query = select(users.c.user).where(*_in_others(scope), users.c.user > after, users.c.active > 0, ~active)
    async with store.transaction() as c:
        names = (await c.scalars(query.distinct().order_by(users.c.user).limit(limit))).all()
        known = await c.execute(select(users).where(*in_scope(users, scope), users.c.user.in_(names)))
        found = {row["user"]: user_of(row) for row in known.mappings()}
    return [found.get(name) or unknown(name) for name in names]


def _active(scope: Scope, *, here: bool) -> ColumnElement[bool]:
    """Whether the user of a row of `users` has an active head in the scope, or in another of its model."""
    row = users.alias("row")
    space = row.c.feature_space == scope.feature_space if here else row.c.feature_space != scope.feature_space
    same = row.c.tenant == scope.tenant, row.c.model == scope.model, row.c.user == users.c.user
    return select(row.c.user).where(*same, space, of_output(row.c, scope), row.c.active > 0).exists()


def unknown(name: str) -> User:
    """A user of whom nothing is here."""
    return User(name, 0, 0, 0, 0.0, 0.0)


def _in_others(scope: Scope) -> list[ColumnElement[bool]]:
    """Conditions on rows of `users`: of the scope's model and output, in another feature space."""
    return [
        users.c.tenant == scope.tenant,
        users.c.model == scope.model,
        users.c.feature_space != scope.feature_space,
        of_output(users.c, scope),
    ]
