"""Long work on many users, and what came of each user in it."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"

_text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_number = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "operations",
        sa.Column("id", _text, primary_key=True),
        sa.Column("tenant", _text, nullable=False),
        sa.Column("model", _text, nullable=False),
        sa.Column("feature_space", _text, nullable=False),
        sa.Column("model_version", _number, nullable=False),
        sa.Column("sources", sa.JSON, nullable=False),
        sa.Column("dry_run", sa.Boolean, nullable=False),
        sa.Column("state", _text, nullable=False),
        sa.Column("message", _text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("updated", sa.Float, nullable=False),
        sa.Column("total", _number, nullable=False),
        sa.Column("moved", _number, nullable=False),
        sa.Column("needs_enrolment", _number, nullable=False),
        sa.Column("failed", _number, nullable=False),
        sa.Column("running", _text, unique=True),
        sa.Column("owner", _text),
        sa.Column("lease", sa.Float, nullable=False),
    )
    op.create_table(
        "operation_users",
        sa.Column("operation", _text, primary_key=True),
        sa.Column("user", _text, primary_key=True),
        sa.Column("tenant", _text, nullable=False),
        sa.Column("model", _text, nullable=False),
        sa.Column("outcome", _text, nullable=False),
        sa.Column("reason", _text, nullable=False),
        sa.Index("operation_users_outcome", "operation", "outcome", "user"),
    )
