"""The ledger's database: transactions, the guards that leases put on them, and the migration of an older schema."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from feast_embeddings.materialize.ledger import schema
from feast_embeddings.models.errors import LedgerError

Guard = Callable[[Connection], None]
"""Runs first in a transaction; what it raises undoes that transaction."""


class Database:
    """Connections to a ledger; SQLite by default, any database SQLAlchemy speaks to.

    Raises:
        LedgerError: The URL names no database that can be opened, or one of a newer version of this package.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url = sa.engine.make_url(url)
            self._engine = _open(self.url)
        except (sa.exc.ArgumentError, ImportError) as error:
            raise LedgerError(
                f"The ledger's URL names no database that can be opened ({error}). Check batch_engine.ledger in "
                "feature_store.yaml: an SQLAlchemy URL, whose driver is installed; or leave it out, for SQLite."
            ) from error
        self._guards: list[Guard] = []
        self._check_schema()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction; commits at the end, rolls back on an error. Writers wait for each other."""
        with self.unguarded() as connection:
            for guard in self._guards:
                guard(connection)
            yield connection

    @contextmanager
    def unguarded(self) -> Iterator[Connection]:
        """A transaction that no guard of :meth:`guarded` stops."""
        with self._within(self._engine) as connection:
            yield connection

    @contextmanager
    def guarded(self, guard: Guard) -> Iterator[None]:
        """Inside the block, every write of this ledger runs ``guard`` first, in the transaction of that write."""
        self._guards.append(guard)
        try:
            yield
        finally:
            self._guards.remove(guard)

    def under(self, guard: Guard) -> Self:
        """The same ledger with this guard alone: each of several workers of a process writes under its own lease."""
        alike = copy.copy(self)
        alike._guards = [guard]
        return alike

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One transaction that only reads, and waits for no writer."""
        with self._within(self._engine.execution_options(reads=True)) as connection:
            yield connection

    @contextmanager
    def _within(self, engine: Engine) -> Iterator[Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            raise LedgerError(
                f"Ledger {self.url.render_as_string()}: {error.orig}. Check that it can be reached and written."
            ) from error

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def _check_schema(self) -> None:
        with self.reading() as connection:
            found = _version(connection)
        if found is not None and found > schema.SCHEMA_VERSION:
            raise LedgerError(
                f"Ledger {self.url.render_as_string()} has schema version {found}, and this feast-embeddings knows "
                f"{schema.SCHEMA_VERSION}: upgrade the package."
            )
        if found == schema.SCHEMA_VERSION:
            return
        with self.unguarded() as connection:
            found = _version(connection)  # again: another process may have been at it
            if found is not None and found < schema.SCHEMA_VERSION:
                from feast_embeddings.materialize.ledger.migrations import migrate

                migrate(connection, found)
            schema.metadata.create_all(connection)
            if found != schema.SCHEMA_VERSION:
                connection.execute(sa.insert(schema.versions).values(version=schema.SCHEMA_VERSION))


def _version(connection: Connection) -> int | None:
    if not sa.inspect(connection).has_table(schema.versions.name):
        return None
    found = connection.scalar(sa.select(sa.func.max(schema.versions.c.version)))
    return None if found is None else int(found)


def _open(url: sa.engine.URL) -> Engine:
    """Connections to a ledger; nothing is connected yet."""
    engine = sa.create_engine(url)
    if url.get_backend_name() != "sqlite":
        return engine

    # SQLite's default begins a transaction at the first write, so that two jobs could both read a free lease.
    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout = 30000")
        connection.execute("PRAGMA journal_mode = WAL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get("reads")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine
