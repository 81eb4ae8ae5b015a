"""Tables of the store. The tenant column is part of every key; this release serves one tenant."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, UniqueConstraint

SCHEMA_VERSION = 1

metadata = MetaData()


def _scope() -> list[Column[str]]:
    """Columns that say whose and in which feature space."""
    return [Column(name, String, primary_key=True) for name in ("tenant", "model", "feature_space", "user")]


users = Table(
    "users",
    metadata,
    *_scope(),
    Column("active", Integer, nullable=False, doc="version served; 0 is the shared head"),
    Column("base", Integer, nullable=False, doc="version whose statistics the next update adds to; 0 begins anew"),
    Column("last", Integer, nullable=False, doc="highest version ever given; numbers are not used again"),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    *_scope(),
    Column("version", Integer, primary_key=True),
    Column("calibration_id", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("head", LargeBinary, nullable=False, doc="safetensors: weight (K, d), bias (K)"),
    Column("digest", String, nullable=False, doc="sha256 of head"),
    Column("statistics", LargeBinary, doc="of all windows up to this version; dropped for old versions"),
    Column("report", JSON, nullable=False, doc="the answer that the calibration gave"),
    Column("idempotency_key", String),
    Column("request_digest", String),
    UniqueConstraint("tenant", "model", "feature_space", "user", "idempotency_key"),
)

activations = Table(
    "activations",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    *[Column(name, String, nullable=False) for name in ("tenant", "model", "feature_space", "user")],
    Column("version", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Index("activations_user", "tenant", "model", "feature_space", "user"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("tenant", String, nullable=False),
    Column("model", String, nullable=False),
    Column("pseudonym", String, nullable=False),
    Column("event", String, nullable=False),
    Column("details", JSON, nullable=False),
)

meta = Table("meta", metadata, Column("key", String, primary_key=True), Column("value", String, nullable=False))
