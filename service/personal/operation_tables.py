"""Tables of long work on many users."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Float, Index, Table

from service.personal.schema import Number, Text, metadata

OUTCOMES = ("moved", "needs_enrolment", "failed")
"""What an operation comes to for a user; the columns that count them."""

operations = Table(
    "operations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("feature_space", Text, nullable=False, doc="users are moved to it"),
    Column("model_version", Number, nullable=False, doc="whose bridges and prior are used"),
    Column("sources", JSON, nullable=False, doc="feature spaces that users are moved from, the newest first"),
    Column("dry_run", Boolean, nullable=False),
    Column("state", Text, nullable=False, doc="running, done, cancelled or failed"),
    Column("message", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Column("total", Number, nullable=False),
    *[Column(name, Number, nullable=False) for name in OUTCOMES],
    Column("running", Text, unique=True, doc="tenant and model while it runs: one at a time"),
    Column("owner", Text, doc="the service that does it"),
    Column("lease", Float, nullable=False, doc="until when it is the owner's without a sign, in Unix seconds"),
)

operation_users = Table(
    "operation_users",
    metadata,
    Column("operation", Text, primary_key=True),
    Column("user", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Index("operation_users_outcome", "operation", "outcome", "user"),
)
