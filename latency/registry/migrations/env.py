"""Run by Alembic with the connection that `latency.registry.database` gives it."""

from alembic import context

from latency.registry.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter a table in place
)
context.run_migrations()
