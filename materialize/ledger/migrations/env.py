"""What alembic runs for every command: it works on the connection, and in the transaction, of its caller."""

from alembic import context

from feast_embeddings.materialize.ledger.migrations import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
