"""Alembic's way in: migrations run on the connection that `service.personal.upgrade` hands over, in its transaction."""

from alembic import context

from service.personal.revision import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    transactional_ddl=True,  # on SQLite too: the transaction has begun by itself
)
with context.begin_transaction():
    context.run_migrations()
