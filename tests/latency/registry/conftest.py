from collections.abc import Iterator
from pathlib import Path

import pytest

from latency.registry.registry import Registry
from tests.postgresql import empty_database


@pytest.fixture(params=["sqlite", "postgresql"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    """An empty registry."""
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
        empty_database(url)
    opened = Registry.in_folder(tmp_path / "registry", url)
    yield opened
    opened.close()
