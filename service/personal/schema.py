"""Tables of the store. The tenant column is part of every key; this release serves one tenant.

What stands here is what the migrations (`service.personal.migrations`) come to; a test compares both on each database.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.types import UserDefinedType

REVISION = "0004"
"""The last migration: the state of the tables that this release reads and writes."""
FIRST_REVISION = "0001"
"""The tables as Headway 0.1.0 made them, which knew no migrations."""

Text = String().with_variant(String(collation="C"), "postgresql")
"""Strings in order of their code points on every database."""
Number = BigInteger().with_variant(Integer, "sqlite")
"""Integers up to 2^63; SQLite counts rows up in INTEGER only, which holds as much."""

metadata = MetaData()


def _scope() -> list[Column[str]]:
    """Columns that say whose and in which feature space."""
    return [Column(name, Text, primary_key=True) for name in ("tenant", "model", "feature_space", "user")]


users = Table(
    "users",
    metadata,
    *_scope(),
    Column("active", Number, nullable=False, doc="version served; 0 is the shared head"),
    Column("base", Number, nullable=False, doc="version whose statistics the next update adds to; 0 begins anew"),
    Column("last", Number, nullable=False, doc="highest version ever given; numbers are not used again"),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Column("revision", Number, nullable=False, server_default="1", doc="another after each change; never 0"),
)

versions = Table(
    "versions",
    metadata,
    *_scope(),
    Column("version", Number, primary_key=True),
    Column("calibration_id", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("head", LargeBinary, nullable=False, doc="safetensors: weight (K, d), bias (K)"),
    Column("digest", Text, nullable=False, doc="sha256 of head"),
    Column("statistics", LargeBinary, doc="of all windows up to this version; dropped for old versions"),
    Column("report", JSON, nullable=False, doc="the answer that the calibration gave"),
    Column("idempotency_key", Text),
    Column("request_digest", Text),
    UniqueConstraint("tenant", "model", "feature_space", "user", "idempotency_key"),
)

activations = Table(
    "activations",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=True),
    *[Column(name, Text, nullable=False) for name in ("tenant", "model", "feature_space", "user")],
    Column("version", Number, nullable=False),
    Column("at", Float, nullable=False),
    Index("activations_user", "tenant", "model", "feature_space", "user"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("pseudonym", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("details", JSON, nullable=False),
    Column("by", Text, nullable=False, server_default="anonymous", doc="who asked for it"),
    Column("verdict", Text, doc="the guard's, of a calibration"),
    Index("audit_pseudonym", "pseudonym"),
)

meta = Table("meta", metadata, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))


class TransactionNumber(UserDefinedType[str]):
    """PostgreSQL's xid8: the number of a transaction, never used again."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Return the type's name in SQL."""
        return "xid8"


feed = MetaData()
"""Tables of a store that several services share."""

changes = Table(
    "changes",
    feed,
    Column("transaction", TransactionNumber, nullable=False, server_default=text("pg_current_xact_id()")),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("who", BigInteger, nullable=False, doc="keyed hash of the user and the scope; no name stands here"),
    Column("kind", SmallInteger, nullable=False, doc="service.personal.records.Kind"),
    Index("changes_transaction", "transaction"),
    Index("changes_at", "at"),
)
