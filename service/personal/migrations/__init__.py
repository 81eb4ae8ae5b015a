"""Migrations of the store's tables, which Alembic runs; `headway db upgrade` is the way to them."""
