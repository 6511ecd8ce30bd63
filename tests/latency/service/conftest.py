from collections.abc import Iterator
from pathlib import Path

import pytest

from latency.registry.registry import Registry
from latency.service.settings import ServiceSettings
from tests.serving import RunningService, running


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service for all tests that leave it usable."""
    registry = Registry.in_folder(tmp_path_factory.mktemp("service"))
    with running(registry, ServiceSettings(batch_rows=100, body_bytes=100_000, run_jobs=False)) as found:
        yield found
    registry.close()


@pytest.fixture
def own_registry(tmp_path: Path) -> Iterator[Registry]:
    """An empty registry, for a test with a service of its own."""
    registry = Registry.in_folder(tmp_path)
    yield registry
    registry.close()
