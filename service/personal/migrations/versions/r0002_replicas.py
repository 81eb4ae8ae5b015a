"""Users have a revision, the audit trail says by whom and with which verdict; PostgreSQL has the feed of changes."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"

_text = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_number = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Add the columns, and in PostgreSQL the feed."""
    op.add_column("users", sa.Column("revision", _number, nullable=False, server_default="1"))
    op.add_column("audit", sa.Column("by", _text, nullable=False, server_default="anonymous"))
    op.add_column("audit", sa.Column("verdict", _text))
    op.create_index("audit_pseudonym", "audit", ["pseudonym"])
    op.execute("UPDATE meta SET value = '2' WHERE key = 'schema'")  # 0.1.0 refuses that
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            """
            CREATE TABLE changes (
                transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
                at timestamptz NOT NULL DEFAULT clock_timestamp(),
                who bigint NOT NULL,
                kind smallint NOT NULL
            )
            """
        )
        op.create_index("changes_transaction", "changes", ["transaction"])
        op.create_index("changes_at", "changes", ["at"])
