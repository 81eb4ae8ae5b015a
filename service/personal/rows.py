"""Whose a row is, and what a row says: between the store's tables and its records."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table
from sqlalchemy.engine import RowMapping
from sqlalchemy.sql.base import ReadOnlyColumnCollection
from sqlalchemy.sql.elements import ColumnElement

from exporters.bundle_outputs import OUTPUT_MARK
from service.personal.records import Scope, User, Version
from service.personal.schema import versions

VERSION_COLUMNS = tuple(
    versions.c[name] for name in ("version", "calibration_id", "created", "digest", "report", "request_digest")
)
"""Columns of `versions` that make a `Version`."""


def scope_values(scope: Scope) -> dict[str, str]:
    """Return the columns of a scope."""
    return {"tenant": scope.tenant, "model": scope.model, "feature_space": scope.feature_space}


def owner_values(scope: Scope, user: str) -> dict[str, str]:
    """Return the columns that say whose a row is."""
    return {**scope_values(scope), "user": user}


def in_scope(table: Table, scope: Scope) -> list[ColumnElement[bool]]:
    """Conditions on a table's rows of a scope."""
    return [table.c[name] == value for name, value in scope_values(scope).items()]


def of_output(columns: ReadOnlyColumnCollection[str, Any], scope: Scope) -> ColumnElement[bool]:
    """Condition on rows of the same output as a scope's, in whichever feature space (`records.output_of`)."""
    space: ColumnElement[str] = columns.feature_space
    if not scope.output:
        return ~space.contains(OUTPUT_MARK)
    # The name stands between the mark and a dash with eight digits.
    return space.like(f"%{OUTPUT_MARK}{scope.output.replace('_', '!_')}-{'_' * 8}", escape="!")


def owned(table: Table, scope: Scope, user: str) -> ColumnElement[bool]:
    """Condition on a table's rows of a user."""
    condition: ColumnElement[bool] = table.c.user == user
    for part in in_scope(table, scope):
        condition &= part
    return condition


def same_owner(a: Table, b: Table) -> ColumnElement[bool]:
    """Condition that joins two tables on whose their rows are."""
    condition: ColumnElement[bool] = a.c.user == b.c.user
    for name in ("tenant", "model", "feature_space"):
        condition &= a.c[name] == b.c[name]
    return condition


def user_of(row: RowMapping) -> User:
    """Read a row of `users`."""
    return User(row["user"], row["active"], row["base"], row["last"], row["created"], row["updated"], row["revision"])


def version_of(row: RowMapping) -> Version:
    """Read a row of `versions`."""
    return Version(
        row["version"], row["calibration_id"], row["created"], row["digest"], row["report"], row["request_digest"]
    )
