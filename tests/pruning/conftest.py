"""A small network pruned from the command line, once for all tests of what may follow."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import NET, SMALL_RUN, invoke, quick_certificates


@pytest.fixture(scope="session")
def net_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of models."""
    path = tmp_path_factory.mktemp("net") / "net.py"
    path.write_text(NET)
    return path


@pytest.fixture(scope="session")
def finished_run(net_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """Directory and result of a run; tests that change it copy it first."""
    out = tmp_path_factory.mktemp("run") / "out"
    with quick_certificates():
        done = invoke("run", "--model", f"{net_file}:net", *SMALL_RUN, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    return out, json.loads(done.stdout)


@pytest.fixture(scope="module")
def two_quick_sessions() -> Iterator[None]:
    """Certificates of two sessions."""
    with quick_certificates():
        yield
