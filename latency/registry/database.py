"""The registry's database: SQLite without any set-up, PostgreSQL by URL; brought up to date when it is opened."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import Session

from latency.errors import RegistryError, SettingError
from latency.registry.schema import Base

MIGRATIONS = Path(__file__).parent / "migrations"

# Longest wait for another process's write to SQLite, in s.
_BUSY_TIMEOUT_S = 30
# Both databases take far more parameters in a statement.
_ROWS_PER_INSERT = 500
# Any number: whoever holds it in PostgreSQL migrates, the others wait.
_MIGRATION_LOCK = 7_261_966


class Database:
    """An open database whose tables are up to date.

    Attributes:
        url: where it is, its password included.
        engine: SQLAlchemy's.

    Args:
        url: SQLAlchemy's URL, such as `sqlite:///registry.db` or `postgresql+psycopg://user@host/name`.

    Raises:
        SettingError: the URL is no database's, or its driver is not installed.
        RegistryError: the database cannot be reached, or was written by a later version.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _engine(url)
        try:
            _migrate(self.engine)
        except OperationalError as error:
            raise RegistryError(f"The database {_shown(url)} cannot be used: {error.orig}.") from error
        except CommandError as error:
            raise RegistryError(
                f"The database {_shown(url)} was written by a later version ({error}); update trimms."
            ) from error

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one state of the database."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes are on disk when the block ends, or not at all when it raises."""
        with self.engine.connect().execution_options(write=True) as connection:
            with Session(connection, expire_on_commit=False) as session, session.begin():
                yield session
            connection.commit()

    def insert_new(self, session: Session, kind: type[Base], rows: list[dict[str, Any]]) -> int:
        """Insert the rows whose keys are new; returns how many those are."""
        make_insert = postgresql.insert if self.engine.dialect.name == "postgresql" else sqlite.insert
        keys = kind.__table__.primary_key.columns  # type: ignore[attr-defined]
        n_new = 0
        for first in range(0, len(rows), _ROWS_PER_INSERT):
            values = rows[first : first + _ROWS_PER_INSERT]
            insert = make_insert(kind).values(values).on_conflict_do_nothing().returning(*keys)
            n_new += len(session.execute(insert).all())
        return n_new

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise SettingError(f"The registry's database is sqlite or postgresql; got {_shown(url)}.")
        if parsed.get_backend_name() == "postgresql":
            # psycopg 3 is the driver that the extra "serve" names.
            return create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
        engine = create_engine(parsed)
    except (ArgumentError, ModuleNotFoundError) as error:
        raise SettingError(
            f"The registry's database is given as a URL such as sqlite:///registry.db; got {_shown(url)} ({error})."
        ) from error
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # what was acknowledged survives a power cut as well
        "foreign_keys=ON",
        f"busy_timeout={_BUSY_TIMEOUT_S * 1000}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A reader that turns writer halfway fails when another wrote in between: writers say so at once.
    is_write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _shown(url: str) -> str:
    """The URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return repr(url)
