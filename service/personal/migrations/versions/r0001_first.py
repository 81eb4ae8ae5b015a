"""The tables of Headway 0.1.0: users, versions, activations, the audit trail."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None

_text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_OWNER = ("tenant", "model", "feature_space", "user")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "users",
        *[sa.Column(name, _text, primary_key=True) for name in _OWNER],
        sa.Column("active", _number, nullable=False),
        sa.Column("base", _number, nullable=False),
        sa.Column("last", _number, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("updated", sa.Float, nullable=False),
    )
    op.create_table(
        "versions",
        *[sa.Column(name, _text, primary_key=True) for name in _OWNER],
        sa.Column("version", _number, primary_key=True),
        sa.Column("calibration_id", _text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("head", sa.LargeBinary, nullable=False),
        sa.Column("digest", _text, nullable=False),
        sa.Column("statistics", sa.LargeBinary),
        sa.Column("report", sa.JSON, nullable=False),
        sa.Column("idempotency_key", _text),
        sa.Column("request_digest", _text),
        sa.UniqueConstraint(*_OWNER, "idempotency_key"),
    )
    op.create_table(
        "activations",
        sa.Column("id", _number, primary_key=True, autoincrement=True),
        *[sa.Column(name, _text, nullable=False) for name in _OWNER],
        sa.Column("version", _number, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Index("activations_user", *_OWNER),
    )
    op.create_table(
        "audit",
        sa.Column("id", _number, primary_key=True, autoincrement=True),
        sa.Column("at", sa.Float, nullable=False),
        *[sa.Column(name, _text, nullable=False) for name in ("tenant", "model", "pseudonym", "event")],
        sa.Column("details", sa.JSON, nullable=False),
    )
    op.create_table("meta", sa.Column("key", _text, primary_key=True), sa.Column("value", _text, nullable=False))
    op.execute("INSERT INTO meta (key, value) VALUES ('schema', '1')")
