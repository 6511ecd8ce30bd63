import contextlib
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from latency.errors import RegistryError, SettingError
from latency.registry.database import Database
from latency.registry.registry import Registry
from latency.registry.schema import Base


def test_migrations_end_at_the_tables_that_the_code_names(registry: Registry) -> None:
    with registry.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_opening_a_database_again_keeps_what_is_in_it(registry: Registry) -> None:
    registry.tokens.create("ci", ["read"])
    again = Database(registry.database.url)
    with again.read() as session:
        assert session.execute(text("SELECT name FROM tokens")).scalars().all() == ["ci"]
    again.close()


def test_a_write_that_raises_leaves_nothing(registry: Registry) -> None:
    with contextlib.suppress(IntegrityError), registry.database.write() as session:
        insert = text("INSERT INTO tokens (sha256, name, scopes, created_at) VALUES ('x', 'x', '[]', 0)")
        session.execute(insert)
        session.execute(insert)
    assert registry.tokens.active() == ()


def test_a_database_of_a_later_version_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    database = Database(url)
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(RegistryError, match=r"written by a later version .*9999"):
        Database(url)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("registry.db", "given as a URL such as sqlite:///registry.db; got 'registry.db'"),
        ("mysql://host/name", "sqlite or postgresql; got mysql://host/name"),
    ],
)
def test_urls_of_no_known_database_are_refused(url: str, match: str) -> None:
    with pytest.raises(SettingError, match=match):
        Database(url)


def test_a_database_that_cannot_be_reached_is_an_environment_failure_without_its_password() -> None:
    with pytest.raises(RegistryError, match=r"postgresql://trimms:\*\*\*@127.0.0.1:1/x cannot be used"):
        Database("postgresql://trimms:hidden@127.0.0.1:1/x")
