"""A PostgreSQL server for tests."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

POSTGRESQL = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@contextlib.contextmanager
def postgresql_server() -> Iterator[str]:
    """URL of an empty PostgreSQL server of its own, reached through a socket; skips where there is none."""
    if not POSTGRESQL:
        pytest.skip("PostgreSQL is not installed; on Debian: apt install postgresql")
    folder = (
        Path("/tmp") / f"trimms-postgresql-{os.getpid()}"
    )  # a socket's path is short, and open to its user
    folder.mkdir()
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    programs, data = POSTGRESQL[-1], folder / "data"
    control = [str(programs / "pg_ctl"), "-D", str(data), "-w"]
    options = f"-k {folder} -c listen_addresses= -c fsync=off"
    try:
        _as_postgres(str(programs / "initdb"), "-D", str(data), "-U", "trimms", "--auth=trust", "--no-sync")
        _as_postgres(*control, "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://trimms@/postgres?host={folder}"
        finally:
            _as_postgres(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def empty_database(url: str) -> None:
    """Drop everything in a database."""
    with psycopg.connect(url) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")


def _as_postgres(*command: str) -> None:
    prefix = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    # The server inherits what it is given: not pytest's pipes, which would never end.
    done = subprocess.run([*prefix, *command], stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, command
