"""What users let be kept of them: settings, enrolled windows, windows behind versions."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0004", "0003"

_text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_SCOPE = ("tenant", "model", "feature_space", "user")


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "user_settings",
        *[sa.Column(name, _text, primary_key=True) for name in ("tenant", "model", "user")],
        sa.Column("retention", _text, nullable=False),
        sa.Column("adapt", _text, nullable=False),
        sa.Column("attributes", sa.JSON, nullable=False),
        sa.Column("half_life", sa.Float, nullable=False),
        sa.Column("updated", sa.Float, nullable=False),
    )
    op.create_table(
        "enrolled",
        *[sa.Column(name, _text, primary_key=True) for name in _SCOPE],
        sa.Column("revision", _number, nullable=False),
        sa.Column("statistics", sa.LargeBinary),
    )
    op.create_table(
        "enrolled_windows",
        sa.Column("id", _number, primary_key=True, autoincrement=True),
        *[sa.Column(name, _text, nullable=False) for name in _SCOPE],
        sa.Column("counts", sa.JSON, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Index("enrolled_windows_user", *_SCOPE),
    )
    op.create_table(
        "retained",
        *[sa.Column(name, _text, primary_key=True) for name in _SCOPE],
        sa.Column("version", _number, primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "own_labels",
        *[sa.Column(name, _text, primary_key=True) for name in _SCOPE],
        sa.Column("labels", sa.JSON, nullable=False),
    )
    op.create_table(
        "sample_calls",
        *[sa.Column(name, _text, primary_key=True) for name in (*_SCOPE, "idempotency_key")],
        sa.Column("request_digest", _text, nullable=False),
        sa.Column("answer", sa.JSON, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
